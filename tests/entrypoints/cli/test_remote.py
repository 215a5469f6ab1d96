"""chat, complete and bench serve against a server on a socket, with the fake engine behind."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from vllm.entrypoints.cli import main
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from ..openai.conftest import real_server
from ..openai.fake_engine import FakeEngine


@pytest.fixture
async def url(engine: FakeEngine) -> AsyncIterator[str]:
    async with real_server(build_app(engine, ServerArgs(api_key=["secret"]))) as url:
        yield url


async def call(*words: str) -> int:
    return await asyncio.to_thread(main.main, words)


async def test_complete(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["complete", "--url", f"{url}/v1", "--api-key", "secret", "--max-tokens", "3"]
    assert await call(*words, "-q", "The code of") == 0
    assert capsys.readouterr().out == "The code of\n"


async def test_chat_keeps_the_conversation(
    url: str,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine.ends_after = 3
    monkeypatch.setattr("sys.stdin", io.StringIO("The code\n\nWhat is\n"))
    words = ["chat", "--url", f"{url}/v1", "--api-key", "secret", "--system-prompt", "Be brief."]
    assert await call(*words) == 0
    assert capsys.readouterr().out.startswith("<|bos|><|system|>Be\n")
    second = engine.prompt(1)
    assert second.endswith("<|user|>What is<|end|><|assistant|>")
    assert second.startswith(
        "<|bos|><|system|>Be brief.<|end|><|user|>The code<|end|><|assistant|>"
    )


async def test_a_wrong_key_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await call("chat", "-q", "hi", "--url", f"{url}/v1", "--api-key", "wrong") == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("backend", ["vllm", "openai-chat"])
async def test_bench_serve(
    url: str,
    backend: str,
    tmp_path: Path,
    tokenizer_folder: Path,
    capsys: pytest.CaptureFixture[str],
    engine: FakeEngine,
) -> None:
    engine.delay = 0.002
    words = ["bench", "serve", "--base-url", url, "--api-key", "secret", "--backend", backend]
    words += ["--tokenizer", str(tokenizer_folder)]
    words += ["--num-prompts", "8", "--random-input-len", "10", "--random-output-len", "5"]
    words += ["--max-concurrency", "4", "--request-rate", "200", "--ignore-eos", "--disable-tqdm"]
    words += ["--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,99"]
    words += ["--goodput", "ttft:100000", "--metadata", "a=b", "--request-id-prefix", "bench"]
    words += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "out.json"]
    assert await call(*words) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["completed"], result["failed"]) == (8, 0)
    assert result["total_output_tokens"] == 40
    assert result["total_cached_tokens"] == 24
    assert result["request_goodput"] == result["request_throughput"]
    assert result["a"] == "b"
    assert {
        re.sub("-.*", "", asked.request_id.partition("bench")[2]) for asked in engine.asked
    } == {*map(str, range(8))}
    if backend == "vllm":
        assert result["total_input_tokens"] == 80
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p50", "p99"):
            assert result[f"{statistic}_{metric}_ms"] >= 0
    assert result["mean_itl_ms"] > 0
    assert result["mean_e2el_ms"] > result["mean_ttft_ms"] > 0
    told = capsys.readouterr().out
    assert "Serving Benchmark Result" in told
    assert "P99 TTFT (ms):" in told
    assert "Request goodput (req/s):" in told


async def test_bench_serve_reports_failures(
    url: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.fails, engine.fails_after = RuntimeError("x"), 2
    words = ["bench", "serve", "--base-url", url, "--api-key", "secret", "--disable-tqdm"]
    assert await call(*words, "--num-prompts", "3", "--random-input-len", "4") == 1
    told = capsys.readouterr()
    assert "Failed requests:" in told.out
    assert "Internal server error" in told.err
