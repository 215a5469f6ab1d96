"""RULER's tasks: what they hide can be found, and a run goes on where it was stopped."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

from experiments import resume
from experiments.ruler import run_ruler
from experiments.ruler.tasks import NEEDLES, TASKS, make, share_found


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("tokens", [800, 1500])
def test_prompts_fill_their_length_and_no_more(task: str, tokens: int) -> None:
    sample = make(task, random.Random(1), tokens, count)
    assert tokens * 0.85 < count(sample.prompt) <= tokens
    assert len(set(sample.expected)) == len(sample.expected)
    assert sample == make(task, random.Random(1), tokens, count), "the seed decides"
    assert sample != make(task, random.Random(2), tokens, count)


@pytest.mark.parametrize("task", NEEDLES)
def test_needles_answer_their_question(task: str) -> None:
    sample = make(task, random.Random(3), 600, count)
    told, _, question = sample.prompt.rpartition(". ")
    codes: dict[str, list[str]] = {}
    for key, value in re.findall(r"The code of (\S+) is (\S+?)\.", f"{told}."):
        codes.setdefault(key, []).append(value)
    asked = re.search(r"codes? of (.+)\?", question)
    assert asked is not None
    found = [v for key in asked.group(1).split(", ") for v in codes[key]]
    assert sorted(found) == sorted(sample.expected)
    how = NEEDLES[task]
    assert len(codes) >= how.keys and len(found) == how.asked * how.values
    if how.hay == "needles":
        assert len(codes) > 40


def test_variables_can_be_traced() -> None:
    sample = make("vt", random.Random(4), 600, count)
    given = dict(re.findall(r"VAR (\S+) = (?:VAR )?(\w+)", sample.prompt))
    value = sample.prompt.split("value ")[1].split("?")[0]

    def resolved(name: str) -> str:
        return resolved(given[name]) if name in given else name

    assert sorted(n for n in given if resolved(n) == value) == sorted(sample.expected)
    assert len(sample.expected) == 5 and len(given) == 10


@pytest.mark.parametrize(("task", "most"), [("cwe", 10), ("fwe", 3)])
def test_words_can_be_counted(task: str, most: int) -> None:
    sample = make(task, random.Random(5), 1500, count)
    listed = re.sub(
        r"\d+\. |\.\.\.", "", sample.prompt.rpartition(" Which" if most == 10 else " Dots")[0]
    )
    shown = listed.split()
    ranked = sorted(set(shown), key=shown.count, reverse=True)
    assert sorted(ranked[:most]) == sorted(sample.expected)
    assert shown.count(ranked[most - 1]) > shown.count(ranked[most])


def test_what_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="unknown task"):
        make("else", random.Random(0), 100, count)
    with pytest.raises(ValueError, match="does not fit"):
        make("cwe", random.Random(0), 50, count)


def test_share_found() -> None:
    assert share_found("it is 12, or ab", ["12", "AB", "x", "y"]) == 0.5


# ---- the runner ---------------------------------------------------------------------------------


def words_of(folder: Path, *more: str) -> list[str]:
    given = "--model vllm/demo_model --tasks niah_single_2 niah_multikey_1 --lengths 256"
    return [*given.split(), "--samples", "3", "--results", str(folder), *more]


def test_a_run_is_resumed_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run", *words_of(tmp_path, "--compression-rates", "1")])
    run_ruler.main()
    folder = tmp_path / "demo_model"
    path = folder / "niah_single_2-256-full-1x.jsonl"
    whole = path.read_text()
    rows = resume.read(path)
    assert len(rows) == 3 and all(r["prompt_tokens"] <= 256 for r in rows)
    path.write_text("".join(whole.splitlines(keepends=True)[:1]))
    run_ruler.main()
    assert path.read_text() == whole
    [one, two] = json.loads((folder / "result.json").read_text())
    assert {one["task"], two["task"]} == {"niah_single_2", "niah_multikey_1"}
    assert one["samples"] == 3 and 0 <= one["found"] <= 100
    assert "| niah_single_2 | 256 |" in (folder / "table.md").read_text()
    for kind in ("png", "svg"):
        assert (folder / f"ruler.{kind}").stat().st_size > 5000


def test_rates_and_metrics_are_cells(tmp_path: Path) -> None:
    words = "--compression-rates 1 4 --compression-metrics kvc recency --tasks niah_single_2"
    args = run_ruler.make_parser().parse_args(words_of(tmp_path, *words.split()))
    records = run_ruler.evaluate(run_ruler.run(args))
    found = {(r["metric"], r["rate"]): r for r in records}
    assert set(found) == {("full", 1.0), ("kvc", 4.0), ("recency", 4.0)}
    assert found["full", 1.0]["ratio"] == 1
    assert 2.5 < found["kvc", 4.0]["ratio"] < 4
    assert found["full", 1.0]["found"] >= found["recency", 4.0]["found"]


def test_refused(tmp_path: Path) -> None:
    for words in (["--compression-rates", "0.5"], ["--samples", "0"], ["--batch-size", "0"]):
        args = run_ruler.make_parser().parse_args(words_of(tmp_path, *words))
        with pytest.raises(ValueError, match=words[0]):
            run_ruler.run(args)
