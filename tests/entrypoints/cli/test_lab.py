"""`vllm lab`: its subcommands as they are called, their tables and their JSON."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.prefixlab.made import BLOCK, chains
from tests.prefixlab.test_reuse import write_metrics
from vllm.entrypoints.cli.lab import COMMANDS
from vllm.entrypoints.cli.main import main
from vllm.prefixlab.formats import write
from vllm.prefixlab.replay import replay
from vllm.prefixlab.reuse import PARTS, reuse_of
from vllm.prefixlab.trace import Trace
from vllm.prefixlab.view import view


@pytest.fixture(scope="module")
def trace() -> Trace:
    return chains(11, 300)


@pytest.fixture(scope="module")
def path(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> str:
    target = tmp_path_factory.mktemp("lab") / "made.jsonl"
    write(trace, target, "lab")
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


def test_curve_draws(capsys: pytest.CaptureFixture[str], path: str, tmp_path: Path) -> None:
    for more in (["--points", "5"], ["--all"]):
        called(capsys, "curve", "--trace", path, "--plot", str(tmp_path / "a.b"), *more)
        assert (tmp_path / "a.b.png").read_bytes()[:4] == b"\x89PNG"
        assert "prefix semantics" in (tmp_path / "a.b.svg").read_text()


def test_what_is_not_installed_is_named(path: str) -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from vllm.entrypoints.cli.main import main; main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, "lab", "curve", "--trace", path]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "needs numba: pip install 'vllm[lab]'" in done.stderr


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
        (["advise", "--trace", "PATH", "--share", "1.5"], "at most 1"),
        (["advise", "--trace", "PATH", "--model", "/nowhere"], "model: '/nowhere'"),
        (["mixed", "--trace", "PATH", "--policy", "allow,mru"], "'mru' is not one of"),
        (["convert", "--trace", "PATH", "--to", "csv", "--output", "x"], "--to"),
        (["convert", "--trace", "PATH", "--to", "lab", "--output", "/no/x"], "/no/x"),
        (["report", "--trace", "PATH"], "--output"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    capsys: pytest.CaptureFixture[str], path: str, words: list[str], says: str
) -> None:
    assert says in refused(capsys, *(path if word == "PATH" else word for word in words))


def test_a_block_size_is_the_traces_own(capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert f"{BLOCK} tokens a block" in called(capsys, "simulate", "--trace", path)


def test_summarize(capsys: pytest.CaptureFixture[str], path: str, trace: Trace) -> None:
    told = rows(capsys, "summarize", "--trace", path, "--semantics", "engine")
    reuse = reuse_of(view(trace, "engine"))
    parts = {row["part"]: row for row in told if "workload" not in row}
    assert set(parts) == {*PARTS, "ceiling"}
    assert parts["reuse_fraction"]["mean"] == pytest.approx(reuse.reuse_fraction.mean())
    assert parts["hits_per_block"]["count"] == view(trace, "engine").trace.universe
    assert parts["ceiling"]["hit_rate"] == reuse.ceiling
    assert {row["workload"] for row in told if "workload" in row} == {"chat", "qa"}
    assert "engine semantics" in called(
        capsys, "summarize", "--trace", path, path, "--semantics", "engine"
    )


def test_analyze_draws(capsys: pytest.CaptureFixture[str], path: str, tmp_path: Path) -> None:
    told = rows(capsys, "analyze", "--trace", path, "--plots", str(tmp_path / "plots"))
    assert [row["part"] for row in told] == list(PARTS)
    for row in told:
        values, shares = zip(*row["cdf"], strict=True)
        assert list(values) == sorted(values) and shares[-1] == 1.0
    for part in PARTS:
        assert (tmp_path / "plots" / f"cdf_{part}.png").read_bytes()[:4] == b"\x89PNG"
        assert "<svg" in (tmp_path / "plots" / f"cdf_{part}.svg").read_text()
    table = called(capsys, "analyze", "--trace", path)
    assert "Seconds between two uses" in table and "prefix" in table


def test_prefix_metrics_are_a_source(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prefix = str(write_metrics(tmp_path, chains(2, 60)))
    told = rows(capsys, "summarize", "--trace", prefix)
    assert {row["semantics"] for row in told} == {"measured"}
    assert rows(capsys, "simulate", "--trace", prefix, "--capacity", "30")[0]["requests"] > 0


def test_mixed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paths = []
    for number, name in enumerate(("one", "two")):
        paths.append(str(tmp_path / f"{name}.mooncake.jsonl"))
        part = chains(number, 80)
        write(replace(part, workloads=("unknown", "unknown")), Path(paths[-1]), "mooncake")
    words = ("mixed", "--trace", *paths, "--block-size", str(BLOCK), "--capacity", "30,60")
    told = rows(capsys, *words, "--order", "round-robin")
    assert [row["workload"] for row in told[:3]] == ["all", "one", "two"]
    named = {row["policy"].partition(":")[0] for row in told}
    assert named == {"lru", "fifo", "allow", "workload", "quota", "optimal"}
    assert any(row["policy"].startswith("quota:one=") for row in told)
    for at in range(0, len(told), 3):
        whole, one, two = told[at : at + 3]
        assert whole["hits"] == one["hits"] + two["hits"]
        assert whole["requests"] == 160 and one["requests"] == 80
    by_time = rows(capsys, *words)
    assert {row["requests"] for row in by_time} == {80, 160}
    assert [row["hits"] for row in by_time] != [row["hits"] for row in told]


def test_advise(capsys: pytest.CaptureFixture[str], path: str) -> None:
    words = ("advise", "--trace", path, "--share", "0.85", "--policy", "lru,fifo,slru")
    told = rows(capsys, *words)
    assert 0.85 in [row["share_of_ceiling"] for row in told["sizes"]]
    assert len(told["policies"]) == 3
    assert sum(row["share"] for row in told["misses"]) == pytest.approx(1)
    assert told["shared_prefixes"] and told["diverged_at_token"]["count"] > 0
    table = called(capsys, *words, "--model", "llama-3-8b")
    assert "85% of the ceiling take" in table and "GiB of llama-3-8b" in table


def test_convert(capsys: pytest.CaptureFixture[str], path: str, tmp_path: Path) -> None:
    for form, name in (
        ("lab", "a.jsonl"),
        ("mooncake", "b.jsonl.gz"),
        ("oracle-general", "c.oracleGeneral"),
    ):
        out = str(tmp_path / name)
        told = rows(capsys, "convert", "--trace", path, "--to", form, "--output", out)
        assert told["accesses"] > 0 and told["bad_lines"] == 0
        size = ("--block-size", str(BLOCK))
        same = ("simulate", "--policy", "fifo", "--capacity", "40", "--semantics", "flat")
        first = rows(capsys, *same, "--trace", path)[0]["hits"]
        assert rows(capsys, *same, "--trace", out, *size)[0]["hits"] == first
    out = str(tmp_path / "coarse.jsonl")
    called(capsys, "convert", "--trace", path, "--to", "lab", "--output", out, "--coarser", "2")
    assert f"{2 * BLOCK} tokens a block" in called(capsys, "simulate", "--trace", out)


def test_report_is_one_page_that_loads_nothing(
    capsys: pytest.CaptureFixture[str], trace: Trace, tmp_path: Path
) -> None:
    evil = tmp_path / "<script>alert(1)<$x$.jsonl"
    write(replace(trace, workloads=("<b>chat", "qa")), evil, "lab")
    out = tmp_path / "report.html"
    words = ("report", "--trace", str(evil), "--output", str(out), "--policy", "fifo,lru")
    told = rows(capsys, *words, "--semantics", "engine")
    page = out.read_text()
    assert told["bytes"] == out.stat().st_size
    assert page.count("<svg") == 7 and "engine semantics" in page
    assert "<script" not in page and "<b>" not in page
    assert "http" not in re.sub(
        r'xmlns(:\w+)?="[^"]*"|<metadata>.*?</metadata>', "", page, flags=re.S
    )
    ET.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    again = tmp_path / "again.html"
    called(capsys, *words[:3], "--output", str(again), *words[5:], "--semantics", "engine")
    assert again.read_text() == page, "the same trace is the same page"


def test_names_are_no_markup(
    capsys: pytest.CaptureFixture[str], trace: Trace, tmp_path: Path
) -> None:
    named = replace(trace, workloads=("[bold]chat", "[/]qa"))
    write(named, tmp_path / "t.jsonl", "lab")
    told = called(capsys, "mixed", "--trace", str(tmp_path / "t.jsonl"), "--policy", "lru")
    assert "[bold]chat" in told and "[/]qa" in told


def test_what_the_simulated_engine_reused_is_what_the_laboratory_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Requests far enough apart that none waits for another, and memory for all of them."""
    words = ("--workloads", "qa", "chat_multi", "--block-sizes", "16", "--conversations", "12")
    called(capsys, "collect", "--out", str(tmp_path), *words, "--rate", "0.05", "--think", "60")
    for workload in ("qa", "chat_multi"):
        prefix = tmp_path / f"prefix_{workload}_b16"
        measured = rows(capsys, "summarize", "--trace", str(prefix))
        engine = ("--semantics", "engine", "--policy", "lru", "--capacity", "100000")
        (told,) = rows(capsys, "simulate", "--trace", str(prefix), *engine)
        ceiling = next(row for row in measured if row["part"] == "ceiling")
        assert told["token_hit_rate"] == pytest.approx(ceiling["token_hit_rate"], abs=1e-12)
        assert told["token_hit_rate"] > 0.3
