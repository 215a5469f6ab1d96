"""Result files of rows, JSON lines, that grow while a study runs: what is done stays done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm


def begin(path: Path, settings: dict[str, Any]) -> int:
    """How many rows `path` has already; a last line that was cut off is removed.

    The settings stand beside it as `.settings.json`. Raises ValueError when the rows that are
    there were made with others.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".settings.json")
    settings = json.loads(json.dumps(settings))
    if path.exists() and path.stat().st_size:
        before = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else None
        if before != settings:
            raise ValueError(f"{path} was made with other settings: {beside} has {before}")
    beside.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    if not path.exists():
        return 0
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    return data.count(b"\n")


def fill(
    path: Path,
    settings: dict[str, Any],
    total: int,
    answer: Callable[[int, int], list[dict[str, Any]]],
    *,
    batch: int = 1,
) -> None:
    """Rows up to `total`, those that are missing; `answer(first, end)` gives so many at a time.

    Raises ValueError as `begin` does.
    """
    done = begin(path, settings)
    with tqdm(total=total, initial=min(done, total), desc=path.stem) as bar:
        for first in range(done, total, batch):
            end = min(first + batch, total)
            append(path, answer(first, end))
            bar.update(end - first)


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows, each whole or not there at all after a crash."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
