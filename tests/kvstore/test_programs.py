"""Programs written for the original run here; only the package's name and their paths change."""

from __future__ import annotations

import runpy
from pathlib import Path

from tests.kvstore.daemon import in_thread

PROGRAMS = Path(__file__).parent / "programs"


def run(name: str, here: Path, paths: dict[str, str]) -> None:
    text = (PROGRAMS / name).read_text()
    for old, new in paths.items():
        assert old in text
        text = text.replace(old, new)
    (here / name).write_text(text)
    runpy.run_path(str(here / name), run_name="__main__")


def test_shared_memory(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon:
        run("shared.py", tmp_path, {"/tmp/vineyard_test.sock": str(daemon.socket)})


def test_files(tmp_path: Path) -> None:
    run("files.py", tmp_path, {"/tmp/vineyard/llm_cache": str(tmp_path / "files")})
