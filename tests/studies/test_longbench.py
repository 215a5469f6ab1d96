"""LongBench's runner and scores, on rows that were made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import resume
from experiments.longbench import eval as scoring
from experiments.longbench import run_longbench
from experiments.longbench.metrics import (
    classification,
    code_similarity,
    count,
    qa_f1,
    retrieval,
    rouge,
    score,
)
from experiments.longbench.tasks import DATASETS, filled, load_prompts, read_rows


def row(i: int, context: str = "The code of amber-fox is 4821. ") -> dict[str, Any]:
    return {
        "input": "What is the code of amber-fox?",
        "context": context * (i + 1),
        "answers": ["4821", "no"],
        "all_classes": None,
        "length": 3000 + 2000 * i,
        "_id": str(i),
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "test").mkdir(parents=True)
    for name in ("hotpotqa", "trec", "qasper_e"):
        lines = [json.dumps(row(i)) for i in range(4)]
        (folder / "test" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "prompts.json").write_text('{"hotpotqa": "{context}{input}"}')
    return folder


def run(data: Path, *words: str, dataset: str = "hotpotqa") -> list[Path]:
    given = f"--model vllm/demo_model --max-model-len 256 --dataset {dataset}".split()
    given += ["--prompts", str(data / "prompts.json")]  # which the demo model understands
    given += ["--data-dir", str(data), "--results", str(data.parent / "results"), *words]
    return run_longbench.run(run_longbench.make_parser().parse_args(given))


def test_answers_are_lines_and_a_stopped_run_goes_on(data: Path) -> None:
    (path,) = run(data, "--n-rows", "3")
    assert path == data.parent / "results/demo_model/hotpotqa-full.jsonl"
    whole = path.read_text()
    assert [r["answers"] for r in resume.read(path)] == [["4821", "no"]] * 3
    assert "4821" in resume.read(path)[0]["pred"]
    first, second, _ = whole.splitlines(keepends=True)
    path.write_text(first + second[: len(second) // 2])  # as a crash leaves it
    assert run(data, "--n-rows", "3", "--batch-size", "2") == [path]
    assert path.read_text() == whole
    run(data)
    assert path.read_text().startswith(whole) and len(resume.read(path)) == 4
    with pytest.raises(ValueError, match="other settings"):
        run(data, "--max-model-len", "128")


def test_a_prompt_too_long_loses_its_middle(data: Path) -> None:
    long = "begin " + "word " * 2000 + "end"
    (data / "test/hotpotqa.jsonl").write_text(json.dumps(row(0, long)))
    (path,) = run(data)
    (line,) = resume.read(path)
    assert 256 - 32 - 8 <= line["prompt_tokens"] <= 256 - 32


def test_a_rate_is_what_is_kept(data: Path) -> None:
    words = "--compression-rate 2 --min-cache-tokens 32 --protected-window-size 16"
    (path,) = run(data, *words.split(), "--batch-size", "4")
    assert path.name == "hotpotqa-2x_w32_L2.jsonl"
    rows = resume.read(path)
    for line in rows:
        most = run_longbench.kept_tokens(line["prompt_tokens"], 2, 32)
        assert line["kept_kvs"] <= line["logical_kvs"] <= 16 * (line["prompt_tokens"] + 32)
        assert line["kept_kvs"] <= 16 * (most + 32)
    assert rows[-1]["kept_kvs"] < rows[-1]["logical_kvs"] and scoring.scored(path)["ratio"] > 1


def test_one_row_writes_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--test-row", "2") == []
    assert "4821" in capsys.readouterr().out
    assert not (data.parent / "results").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--compression-rate 2 --max-cache-tokens 128", "exclude each other"),
        ("--compression-rate 0.5", "at least 1"),
        ("--max-cache-tokens 0", "max-cache-tokens"),
        ("--batch-size 0", "batch-size"),
        ("--e --dataset qmsum", "LongBench-E has no qmsum"),
        ("--data-dir nowhere", "nowhere is no folder"),
    ],
)
def test_refused(data: Path, words: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        run(data, *words.split())


def test_a_rate_becomes_whole_blocks() -> None:
    assert run_longbench.kept_tokens(10_000, 8, 128) == 1248
    assert run_longbench.kept_tokens(1024, 8, 16) == 112, "below the share, by up to a block"
    assert run_longbench.kept_tokens(500, 64, 128) == 128


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("", "full"),
        ("--max-cache-tokens 128", "128_w32_L2"),
        (
            "--compression-rate 2.5 --metric-aggregation L1-avg --continual-compression "
            "--prefill-metric-collection-window-size 8 --kv-head-bias-path x.npz "
            "--compression-metric snapkv --compression-budget uniform",
            "2.5x_w8_L1_b_cc_snapkv_uniform",
        ),
    ],
)
def test_names_of_settings(words: str, name: str) -> None:
    given = ["--model", "x", "--data-dir", ".", *words.split()]
    assert run_longbench.setting_name(run_longbench.make_parser().parse_args(given)) == name


# ---- scores -------------------------------------------------------------------------------------


def test_scores() -> None:
    assert qa_f1("The Fox, of course!", "a fox") == pytest.approx(2 / 4)
    assert qa_f1("", "fox") == qa_f1("bear", "fox") == 0
    assert qa_f1("fox fox", "fox") == pytest.approx(2 / 3), "each word counts as often as it comes"
    assert rouge("the cat sat", "the cat sat down") == pytest.approx(2 * 3 / 7)
    assert rouge("", "cat") == 0
    classes = ["City", "Other city", "Person"]
    assert classification("Person", "Person", classes) == 1
    assert classification("Person or City", "Person", classes) == 0.5
    assert classification("Other city City", "Other city", ["City", "Other city"]) == 0.5
    assert classification("Other City thing", "Other City", ["City", "Other City"]) == 1
    assert classification("City", "Person", classes) == 0
    assert retrieval("Paragraph 3", "Paragraph 3") == 1
    assert retrieval("Paragraph 3 or 13", "Paragraph 3") == 0.5
    assert count("There are 5, or 6, or 5", "5") == pytest.approx(2 / 3)
    assert count("none", "5") == 0
    assert code_similarity("\n# a remark\nreturn x\nelse", "return x") == 1
    assert 0 < code_similarity("return y", "return x") < 1
    assert score("qa_f1", "no\nfox", ["fox", "no"], (), True) == 1
    assert score("qa_f1", "bear", [], (), False) == 0


def test_a_prompt_is_filled_once() -> None:
    made = filled("{context}|{input}", {"context": "{input}", "input": "{context}"})
    assert made == "{input}|{context}"
    for name, dataset in DATASETS.items():
        shown = filled(dataset.prompt, {"context": "CONTEXT", "input": "INPUT"})
        assert shown.count("CONTEXT") == 1 and "{" not in shown, name


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row(0)) + "\n{")
    with pytest.raises(ValueError, match=r"x.jsonl:2"):
        read_rows(path)
    path.write_text('{"context": ""}')
    with pytest.raises(ValueError, match="there is no input"):
        read_rows(path)
    for text in ("[]", '{"a": 1}', '{"a": "no place"}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="must map"):
            load_prompts(path)


def made_results(folder: Path) -> None:
    folder.mkdir()
    for setting, preds, kept in (
        ("full", ["4821", "4821"], None),
        ("2x_w32_L2", ["4821", "x"], 50),
        ("128_w32_L2", ["x", "x"], 10),
    ):
        lines = []
        for i, pred in enumerate(preds):
            line = {"pred": pred, "answers": ["4821"], "all_classes": None, "length": 5000 * i}
            if kept is not None:
                line |= {"logical_kvs": 100, "kept_kvs": kept}
            lines.append(line)
        resume.append(folder / f"qasper_e-{setting}.jsonl", lines)


def test_results_become_a_table_and_plots(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "model"
    made_results(folder)
    results = scoring.evaluate(folder)
    assert results["qasper_e"]["full"] == {
        "rows": 2,
        "score": 100.0,
        "by_length": {"0-4k": 100.0, "4-8k": 100.0, "8k+": None},
    }
    assert results["qasper_e"]["2x_w32_L2"]["ratio"] == 2
    monkeypatch.setattr(sys, "argv", ["eval", str(folder)])
    scoring.main()
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0] == "| | full | 2x_w32_L2 | 128_w32_L2 |"
    assert lines[2] == "| qasper_e | 100.00 | 50.00 (50%) | 0.00 (0%) |"
    assert json.loads((folder / "result.json").read_text()) == results
    for kind in ("png", "svg"):
        assert (folder / f"longbench.{kind}").stat().st_size > 5000
    with pytest.raises(ValueError, match="no dataset"):
        scoring.parts(Path("unheard-of-full.jsonl"))
    with pytest.raises(ValueError, match="no answers"):
        scoring.evaluate(tmp_path)
