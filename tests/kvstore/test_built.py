"""The store's library is there wherever it can be built, and its C++ tests pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vllm.kvstore.native import library

SOURCE = Path(__file__).parents[2] / "csrc" / "kvstore"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_the_library_is_built_where_there_is_a_compiler() -> None:
    assert library().KVTensor is not None


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_the_tests_in_cpp() -> None:
    build = SOURCE.parents[1] / "build" / "kvstore_tests"  # kept: only what changed is compiled
    subprocess.run(["cmake", "-S", SOURCE, "-B", build], check=True, capture_output=True)
    made = subprocess.run(
        ["cmake", "--build", build, "--parallel"], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stdout + made.stderr
    ran = subprocess.run(
        ["ctest", "--test-dir", build, "--output-on-failure"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout
