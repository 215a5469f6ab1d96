"""The runner: every program on every preset, in simulated time; a few on real servers."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import runner
from benchmarks.presets import BITS, PRESETS, compresses, flags
from benchmarks.programs import PROGRAMS
from benchmarks.recorded import differences, measures
from examples.agents.client import Answer
from vllm.config import EngineArgs

SIMULATED = ["--simulate", "h100", "llama-3-8b", "--scale", "small", "--num-trials", "1"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.runner", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def raw(folder: Path) -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((folder / "raw").glob("*.json"))}


def test_every_program_runs_on_every_preset(tmp_path: Path) -> None:
    done = run("--result-dir", str(tmp_path / "r"), *SIMULATED)
    assert done.returncode == 0, done.stderr[-3000:]
    results = raw(tmp_path / "r")
    assert len(results) == len(PROGRAMS) * len(BITS)
    for name, result in results.items():
        assert result["failed"] == 0 and result["completed"] > 0, name
        assert result["simulated"] == ["h100", "llama-3-8b"], "marked in every file"
        assert result["duration"] > 0 and result["median_ttft_ms"] > 0, name
        if result["server"] == "no-apc":
            assert result["total_cached_tokens"] == 0
    assert results["guessing_game_apc_0"]["device_prefix_cache_hit_rate"] > 10
    assert results["multiturn_long_mt-apc_0"]["host_prefix_cache_hit_rate"] > 0
    rows = list(csv.DictReader((tmp_path / "r" / "cleaned" / "debate.csv").open()))
    assert [row["method"] for row in rows] == list(BITS)
    assert all(row["simulated"] == "h100 llama-3-8b" for row in rows)
    report = [sys.executable, "-m", "benchmarks.report", str(tmp_path / "r")]
    subprocess.run(report, check=True, capture_output=True, timeout=300)
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("<svg") == len(PROGRAMS) and "Simulated." in page
    assert page.count("SIMULATED: ") == len(PROGRAMS), "in every plot"


def test_real_servers_answer_alike(tmp_path: Path) -> None:
    done = run(
        *("--result-dir", str(tmp_path / "r"), "--scale", "small", "--num-trials", "1"),
        *("--benchmarks", "guessing_game", "--servers", "no-apc", "mt-apc", "own=--block-size 32"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = raw(tmp_path / "r")
    texts = {r["server"]: r["texts"] for r in results.values()}
    assert texts["no-apc"] and texts["no-apc"] == texts["mt-apc"] == texts["own"]
    for result in results.values():
        assert result["simulated"] is None and result["failed"] == 0
        assert result["peak_memory_bytes"] > 50e6
    tiered = results["guessing_game_mt-apc_0"]
    assert tiered["total_cached_tokens"] == sum(tiered["cached_tokens_by_tier"].values()) > 0
    assert results["guessing_game_own_0"]["cache_block_size"] == 32


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    words = ["--result-dir", str(folder), *SIMULATED, "--benchmarks", "debate", "--servers", "apc"]
    assert run(*words).returncode == 0
    path = folder / "raw" / "debate_apc_0.json"
    kept = path.stat().st_mtime_ns
    assert run(*words).returncode == 0
    assert path.stat().st_mtime_ns == kept, "what is done is not done again"
    other = run(*words, "--seed", "7")
    assert other.returncode == 2 and "other settings" in other.stderr
    assert run(*words, "--seed", "7", "--clear-result-dir").returncode == 0
    assert path.stat().st_mtime_ns != kept


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    for more in ([], ["--clear-result-dir"]):
        done = run("--result-dir", str(tmp_path), *SIMULATED, *more)
        assert done.returncode == 2 and "not a result folder" in done.stderr
    assert (tmp_path / "precious").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--benchmarks", "nothing"], "nothing"),
        (["--servers", "fast"], "'fast'"),
        (["--num-trials", "0"], "--num-trials"),
        (["--data", "debate=x"], "takes no file"),
        (["--data", "sharegpt=/nowhere"], "no file"),
        (["--simulate", "z80", "llama-3-8b"], "z80"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = run("--result-dir", str(tmp_path / "r"), *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_arguments_of_the_engine(name: str) -> None:
    """As keywords and as flags, to the same configuration."""
    small = PRESETS[name] | {"max_model_len": 2048}
    keywords = EngineArgs(**small)
    assert runner.read_servers([f"x={' '.join(flags(small))}"], "")["x"] == small
    keywords.create_engine_config()


def test_what_compresses() -> None:
    kept = {name for name, engine in PRESETS.items() if compresses(engine)}
    assert kept == {"kvc-2x", "kvc-8x", "mt-apc-kvc-8x"}
    assert compresses(runner.read_servers(["x=--enable-kvc --max-cache-tokens 64"], "")["x"])
    assert not compresses(runner.read_servers(["x=--enable-kvc"], "")["x"])


def test_answers_of_compressed_servers_are_counted_and_let_pass() -> None:
    """Compared with the first that keeps everything, wherever it stands."""

    def result(server: str, text: str, compressed: bool) -> dict[str, Any]:
        told = {"benchmark": "b", "trial": 0, "server": server, "compressed": compressed}
        return told | {"texts": {"p": text}}

    results = [result("kvc-8x", "wrong", True), result("apc", "right", False)]
    results.append(result("mt-apc", "right", False))
    assert runner.unlike(results) == {("b", "mt-apc"): (0, 1), ("b", "kvc-8x"): (1, 1)}


def test_real_files_are_replayed(tmp_path: Path) -> None:
    share = [
        {"conversations": [{"value": f"please say {i} " * 3}, {"value": "so be it then"}]}
        for i in range(30)
    ]
    (tmp_path / "s.json").write_text(json.dumps(share))
    (tmp_path / "m.csv").write_text('"what, now?",a,b,c,d,A\nwhere,a,b,c,d,B\nwho,a,b,c,d,C\n')
    lines = [json.dumps({"prompt": f"call {i}", "max_tokens": 2}) for i in range(40)]
    (tmp_path / "g.jsonl").write_text("\n".join(lines))
    files = {"sharegpt": "s.json", "gptswarm_mmlu": "m.csv", "generative_agents": "g.jsonl"}
    done = run(
        *("--result-dir", str(tmp_path / "r"), *SIMULATED, "--servers", "apc"),
        *("--benchmarks", *files),
        *("--data", *(f"{name}={tmp_path / file}" for name, file in files.items())),
    )
    assert done.returncode == 0, done.stderr
    results = raw(tmp_path / "r")
    assert results["sharegpt_apc_0"]["output_lens"] == [4] * 20
    assert results["gptswarm_mmlu_apc_0"]["completed"] == 3 * 16
    assert results["generative_agents_apc_0"]["completed"] == 30


def test_measures_by_hand() -> None:
    """Two good requests and a failed one, over two seconds."""
    answers = [
        Answer("a", 10, 3, 4, start=0.0, times=[0.1, 0.2, 0.4]),
        Answer("b", 20, 1, 0, start=1.0, times=[1.5]),
        Answer(error="HTTP 500"),
    ]
    told = measures(answers, 2.0)
    assert (told["completed"], told["failed"], told["errors"]) == (2, 1, ["HTTP 500"])
    assert told["request_throughput"] == 1.0 and told["output_throughput"] == 2.0
    assert told["total_token_throughput"] == 17.0
    assert told["mean_ttft_ms"] == pytest.approx(300)
    assert told["median_tpot_ms"] == pytest.approx(150), "one token has no TPOT"
    assert told["mean_itl_ms"] == pytest.approx(150)
    assert told["mean_e2el_ms"] == pytest.approx(450)


def test_other_answers_are_counted_where_prompts_are_the_same() -> None:
    texts = {"a": {"p": "1", "q": "2"}, "b": {"p": "1", "q": "3", "r": "4"}, "c": {"s": "9"}}
    assert differences(texts) == {"b": 1, "c": 0}
