"""The offline throughput benchmark: its flags reach the engine, its figures add up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import benchmark_throughput as throughput

SMALL = "--input-len 200 --output-len 6 --num-prompts 5 --max-model-len 256"


def parsed(words: str) -> Any:
    return throughput.make_parser().parse_args(words.split())


def settings(words: str) -> Any:
    return throughput.engine_args(parsed(words)).create_engine_config().compression


def test_older_names_reach_the_engine() -> None:
    assert settings("") is None
    made = settings("--enable-kvc --kvc-rate 0.25")
    assert made.defaults.target_compression_rate == 0.25
    assert (made.interval, made.defaults.protected_window_size) == (1_000_000, 50)
    made = settings(
        "--enable-kvc --kvc-interval 7 --protected-window-size 20 --new-token-limit 9 "
        "--max-kv-per-compression 1000 --metric-aggregation L1-sum --only-prefill-metrics"
    )
    assert (made.interval, made.defaults.protected_window_size) == (7, 20)
    assert (made.new_token_limit, made.max_kvs, made.aggregation) == (9, 1000, "L1-sum")
    assert made.only_prefill
    assert settings("--enable-kvc --compression-interval 1").interval == 1
    assert throughput.engine_args(parsed("--max-batch-size 3")).max_num_seqs == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--compression-rate 2", "compression-rate needs --enable-kvc"),
        ("--compress-once", "compress-once needs --enable-kvc"),
        ("--protected-window-size 3", "protected_window_size needs enable_kvc"),
        ("--enable-kvc --compression-rate 0.5", "at least 1"),
        ("--enable-kvc --compression-rate 2 --kvc-rate 0.5", "only one"),
        ("--enable-kvc --compression-rate 2 --max-cache-tokens 100", "only one"),
        ("--input-len 0", "input-len must be positive"),
        ("--num-prompts 0", "num-prompts must be positive"),
        ("--input-len 5", "are needed without --dataset"),
        ("--real-text README.md", "are needed without --dataset"),
    ],
)
def test_refused(words: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        throughput.run(parsed(f"{words} --max-model-len 64 --num-gpu-blocks-override 16"))


def test_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "figures.json"
    words = f"{SMALL} --enable-kvc --compression-rate 1.6 --latency-breakdown --real-text"
    monkeypatch.setattr(sys, "argv", ["x", *words.split(), "--output-json", str(path)])
    throughput.main()
    assert "output tokens/s" in capsys.readouterr().out
    figures = json.loads(path.read_text())["results"]
    assert figures["output_tokens_per_second"] == pytest.approx(5 * 6 / figures["seconds"])
    assert figures["tokens_per_second"] == pytest.approx(5 * 206 / figures["seconds"])
    assert 1.4 < figures["compression_ratio"] < 1.7
    parts = figures["breakdown_seconds"]
    assert sum(parts.values()) <= figures["seconds"] and parts["steps that compress"] > 0


def test_input_and_output_alone() -> None:
    figures = throughput.run(parsed(f"{SMALL} --benchmark-input-only"))
    assert figures["output_tokens_per_second"] == pytest.approx(5 / figures["seconds"])
    figures = throughput.run(parsed(f"{SMALL} --benchmark-output-only"))
    assert figures["output_tokens_per_second"] == figures["tokens_per_second"]
    assert figures["largest_decode_batch"] == 5


def test_conversations(tmp_path: Path) -> None:
    path = tmp_path / "share.json"
    turns = [{"value": "Please tell me the code of amber-fox."}, {"value": "It is 4821, I think."}]
    rows = [{"conversations": turns[:k]} for k in (1, 2, 2, 0, 2)] + [{}]
    path.write_text(json.dumps(rows))
    figures = throughput.run(parsed(f"--dataset {path} --num-prompts 3 --max-model-len 64"))
    assert figures["requests_per_second"] == pytest.approx(3 / figures["seconds"])
    with pytest.raises(ValueError, match="only 3 conversations"):
        throughput.run(parsed(f"--dataset {path} --num-prompts 4 --max-model-len 64"))
