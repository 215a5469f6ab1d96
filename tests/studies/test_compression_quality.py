"""The recall study: what it asks, and what it makes of the answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments import resume
from experiments.compression_quality import report, run


def test_a_trial_is_rows_and_becomes_a_report(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    words = "--tokens 256 --trials 2 --rules global --metrics kvc recency".split()
    args = run.make_parser().parse_args([*words, "--results", str(tmp_path)])
    run.run(args)
    paths = [tmp_path / f"code-256-global-{place}.jsonl" for place in run.PLACES]
    for path in paths:
        rows = resume.read(path)
        assert [r["trial"] for r in rows] == [0, 1]
        for row in rows:
            assert row["full"], "so short that the model finds it for sure"
            for ratios in row["ratio"].values():
                assert ratios == sorted(ratios) and 1.7 < ratios[0] < 2.1
    whole = paths[0].read_text()
    paths[0].write_text(whole.splitlines(keepends=True)[0])
    run.run(args)
    assert paths[0].read_text() == whole, "the same again"
    monkeypatch.setattr(
        sys, "argv", ["report", "--tokens=256", "--results", str(tmp_path), "--out", str(tmp_path)]
    )
    report.main()
    assert "| global (2) | kvc |" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["window"]["global"]["trials"] == 2
    for kind in ("png", "svg"):
        assert (tmp_path / f"recall.{kind}").stat().st_size > 5000
    with pytest.raises(ValueError, match="holds nothing"):
        report.figures(tmp_path, "code", 512)


def test_wishes_keep_their_share() -> None:
    wish = run.wish("kvc", 8, 1024)
    assert wish["max_cache_tokens"] == 128 and wish["protected_window_size"] == 32
    wish = run.wish("kvc", 64, 1000)
    assert wish["max_cache_tokens"] == 16 and wish["protected_window_size"] == 8
