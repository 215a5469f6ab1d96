"""The examples run, and say what they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_process import Server

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_offline() -> None:
    said = run("offline.py")
    assert "4821" in said
    assert "7390" in said
    assert "Asked again: " in said
    assert "Asked again: 0 of" not in said


def test_compression() -> None:
    lines = run("compression.py").splitlines()
    assert "1.0 times fewer KVs: 4821" in lines[0]
    ratios = [float(line.split()[0]) for line in lines[:4]]
    assert ratios == sorted(ratios) and ratios[3] > 4


def test_async_stream() -> None:
    assert len(run("async_stream.py").splitlines()) == 4


def test_openai_client() -> None:
    server = Server()
    try:
        assert "4821" in run("openai_client.py", server.url)
    finally:
        server.stop()


def test_shared_cache(tmp_path: Path) -> None:
    shared = ["--shared-cache", f"file://{tmp_path}/kv"]
    servers = [Server(*shared)]
    try:
        servers.append(Server(*shared))
        first, second = run("shared_cache.py", *(s.url for s in servers)).splitlines()
        assert "4821" in first and "{}" in first
        assert "4821" in second and "'shared'" in second
    finally:
        for server in servers:
            server.stop()


def test_every_example_is_run_here() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    files = [p.name for p in EXAMPLES.glob("*.py") if p.name != "__init__.py"]
    missing = [name for name in files if f'"{name}"' not in source]
    if missing:
        pytest.fail(f"examples that no test runs: {missing}")
