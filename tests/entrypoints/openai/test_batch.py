"""Batches: order, limits, refusals, and the whole command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from vllm.entrypoints.cli import main
from vllm.entrypoints.openai import batch
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.server_args import ServerArgs

from .fake_engine import FakeEngine

CHAT = {"messages": [{"role": "user", "content": "The code of"}], "max_tokens": 2}


def line(name: str, body: Any, url: str = "/v1/chat/completions", **more: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body, **more}


def in_file(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


async def answers(engine: FakeEngine, path: Path, most: int = 4, **args: Any) -> list[Any]:
    written: list[Any] = []
    app = build_app(engine, ServerArgs(**args))
    await batch.answer_all(
        app,
        batch.read(path),
        lambda output: written.append(msgspec.to_builtins(output)),
        max_inflight=most,
        key=(args.get("api_key") or [None])[0],
    )
    return written


async def test_answers_come_in_the_requests_order(engine: FakeEngine, tmp_path: Path) -> None:
    engine.delay = 0.001
    lines = [line(f"r{i}", CHAT | {"max_tokens": 9 - i}) for i in range(8)]
    told = await answers(engine, in_file(tmp_path, *lines), api_key=["secret"])
    assert [answer["custom_id"] for answer in told] == [f"r{i}" for i in range(8)]
    for i, answer in enumerate(told):
        assert answer["error"] is None
        assert answer["response"]["status_code"] == 200
        assert answer["response"]["body"]["usage"]["completion_tokens"] == 9 - i
    assert len({answer["id"] for answer in told}) == 8


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_at_once_than_was_said(
    engine: FakeEngine, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, peak = 0, 0
    whole = batch._answer

    async def counted(*args: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            return await whole(*args)
        finally:
            running -= 1

    monkeypatch.setattr(batch, "_answer", counted)
    engine.delay = 0.001
    await answers(engine, in_file(tmp_path, *[line(str(i), CHAT) for i in range(7)]), most)
    assert peak == most


async def test_what_is_refused_is_an_answer_too(engine: FakeEngine, tmp_path: Path) -> None:
    engine.fails_after, engine.fails = 1, RuntimeError("boom")
    told = await answers(
        engine,
        in_file(
            tmp_path,
            line("url", CHAT, "/v1/embeddings"),
            line("admin", {}, "/sleep"),
            line("stream", CHAT | {"stream": True}),
            line("bad", CHAT | {"n": -1}),
            line("model", CHAT | {"model": "x"}),
            line("fails", CHAT),
        ),
    )
    found = {
        answer["custom_id"]: (answer["response"]["status_code"], answer["error"]["error"])
        for answer in told
    }
    assert [status for status, _ in found.values()] == [400, 400, 400, 400, 404, 500]
    params = [error["param"] for _, error in found.values()]
    assert params == ["url", "url", "stream", "n", "model", None]
    assert all(answer["response"]["body"] == answer["error"] for answer in told)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([line("a", CHAT), "{"], "line 2"),
        (["", json.dumps({"custom_id": "a"})], "line 2.*method"),
        ([line("a", [])], r"line 1.*object.*\$.body"),
        ([line(7, CHAT)], r"custom_id"),  # type: ignore[arg-type]
        ([line("", CHAT)], "custom_id must have"),
        ([line("a", CHAT, method="GET")], "line 1.*GET"),
        ([line("a", CHAT), line("a", CHAT)], "'a' comes twice"),
        (["x" * (batch.MAX_LINE + 1)], "line 1 has more than"),
        (["[" * 100_000], "line 1"),
        (['{"custom_id": "\ud800"}'.encode("utf-8", "surrogatepass").decode("latin1")], "line 1"),
    ],
)
def test_a_line_that_is_none(tmp_path: Path, lines: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        batch.check(in_file(tmp_path, *lines))


def test_the_command(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = in_file(tmp_path, line("a", CHAT | {"temperature": 0}), line("b", {}))
    words = ["run-batch", "-i", str(path), "--kv-cache-memory-bytes", "16M"]
    assert main.main([*words, "-o", "-"]) == 0
    told = [json.loads(x) for x in capfdbinary.readouterr().out.splitlines()]
    assert [x["response"]["status_code"] for x in told] == [200, 400]
    out = tmp_path / "out.jsonl"
    assert main.main([*words, "-o", str(out)]) == 0
    again = [json.loads(x) for x in out.read_text().splitlines()]
    assert again[0]["response"]["body"]["choices"] == told[0]["response"]["body"]["choices"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_bad_files_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = in_file(tmp_path, "{")
    for words, says in (
        (["-i", str(tmp_path / "none"), "-o", "-"], "none"),
        (["-i", str(path), "-o", str(tmp_path / "out")], "line 1"),
        (["-i", str(path)], "--output-file"),
    ):
        with pytest.raises(SystemExit) as ended:
            main.main(["run-batch", *words])
        assert ended.value.code == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
