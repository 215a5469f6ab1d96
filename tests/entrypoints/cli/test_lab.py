"""`vllm lab`: its subcommands as they are called, their tables and their JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.prefixlab.made import BLOCK, chains
from vllm.entrypoints.cli.lab import COMMANDS
from vllm.entrypoints.cli.main import main
from vllm.prefixlab.formats.chains import write_lab
from vllm.prefixlab.replay import replay
from vllm.prefixlab.trace import Trace
from vllm.prefixlab.view import view


@pytest.fixture(scope="module")
def trace() -> Trace:
    return chains(11, 300)


@pytest.fixture(scope="module")
def path(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("lab") / "made.jsonl"
    write_lab(trace, target)
    return str(target)


def called(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["lab", *words]) == 0
    return capsys.readouterr().out


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(called(capsys, *words, "--json"))


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["lab", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    told = called(capsys, "--help")
    assert all(f"  {name}" in told for name in COMMANDS)
    assert main(["lab", "guess"]) == 2


FIELDS = "semantics policy capacity requests accesses hits hit_rate token_hit_rate".split()


@pytest.mark.parametrize("semantics", ["flat", "prefix", "engine"])
def test_simulate(
    capsys: pytest.CaptureFixture[str], path: str, trace: Trace, semantics: str
) -> None:
    words = ("--trace", path, "--policy", "lru,fifo,optimal", "--capacity", "20,60")
    told = rows(capsys, "simulate", *words, "--semantics", semantics)
    assert [list(row) for row in told] == [FIELDS] * 6
    assert [(row["policy"], row["capacity"]) for row in told] == [
        (policy, capacity) for policy in ("lru", "fifo", "optimal") for capacity in (20, 60)
    ]
    seen = view(trace, semantics)
    for row in told:
        assert row["semantics"] == semantics and row["requests"] == 300
        assert row["hits"] == replay(seen, row["policy"], row["capacity"]).hits.sum()
        assert row["hit_rate"] == row["hits"] / row["accesses"]


def test_simulate_by_workload_after_warm_up_and_in_flops(
    capsys: pytest.CaptureFixture[str], path: str
) -> None:
    words = ("--trace", path, "--policy", "quota:chat=3,qa=1,allow:qa,lfu", "--capacity", "50")
    more = ("--by", "workload", "--warmup", "0.5", "--model", "llama-3-8b")
    told = rows(capsys, "simulate", *words, *more)
    policies = ["quota:chat=3,qa=1", "allow:qa", "lfu"]
    assert [row["policy"] for row in told if "workload" not in row] == policies
    for policy in policies:
        whole, *parts = [row for row in told if row["policy"] == policy]
        assert sum(part["hits"] for part in parts) == whole["hits"]
        assert {part["workload"] for part in parts} == {"chat", "qa"}
        assert 0 < whole["flop_hit_rate"] < 1 and whole["warm_hit_rate"] > 0
        assert "warm_flop_hit_rate" in whole


def test_tables_name_their_semantics(capsys: pytest.CaptureFixture[str], path: str) -> None:
    for words in (["simulate", "--semantics", "engine"], ["curve", "--semantics", "engine"]):
        told = called(capsys, *words, "--trace", path, "--capacity", "20,60")
        assert "engine semantics" in told
        assert "Traceback" not in told and "hit rate" in told


def test_curve(capsys: pytest.CaptureFixture[str], path: str, trace: Trace) -> None:
    told = rows(capsys, "curve", "--trace", path, "--points", "9")
    seen = view(trace, "prefix")
    assert told[0]["capacity"] == 1 and told[-1]["capacity"] == trace.universe
    for row in told:
        assert row["lru_hits"] == replay(seen, "lru", row["capacity"], fast=False).hits.sum()
        assert row["lru_hits"] <= row["optimal_hits"]
    every = rows(capsys, "curve", "--trace", path, "--all")
    assert [row["capacity"] for row in every] == list(range(1, trace.universe + 1))


def test_bad_lines_are_told_on_stderr_and_counted(
    capsys: pytest.CaptureFixture[str], path: str, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text(Path(path).read_text() + "{\n{}\n")
    assert main(["lab", "simulate", "--trace", str(spoilt), "--capacity", "9", "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out)[0]["requests"] == 300
    assert f"{spoilt}:302: " in out.err and f"{spoilt}:303: " in out.err
    assert "2 bad lines left out" in out.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["simulate"], "--trace"),
        (["simulate", "--trace", "/nowhere"], "/nowhere"),
        (["simulate", "--trace", "PATH", "--policy", "mru"], "'mru' is not one of"),
        (["simulate", "--trace", "PATH", "--policy", ","], "names with commas"),
        (["simulate", "--trace", "PATH", "--capacity", "0"], "at least 1"),
        (["simulate", "--trace", "PATH", "--capacity", "many"], "not numbers"),
        (["simulate", "--trace", "PATH", "--warmup", "2"], "warmup"),
        (["simulate", "--trace", "PATH", "--model", "gpt-9"], "model: 'gpt-9'"),
        (["simulate", "--trace", "PATH", "--semantics", "round"], "--semantics"),
        (["simulate", "--trace", "PATH", "--capactiy", "3"], "--capactiy"),
        (["curve", "--trace", "PATH", "--points", "0"], "at least 1"),
        (["curve", "--trace", "PATH", "--format", "csv"], "format: 'csv'"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], path: str, words: list[str], says: str
) -> None:
    assert says in refused(capsys, *(path if word == "PATH" else word for word in words))


def test_a_block_size_is_the_traces_own(capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert f"{BLOCK} tokens a block" in called(capsys, "simulate", "--trace", path)
