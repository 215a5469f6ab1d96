"""The C++ kernels are there wherever they can be built: other tests skip without them."""

import shutil

import pytest

from vllm.kernels import cpu

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_kernels_are_built_where_there_is_a_compiler() -> None:
    assert cpu.available("cpu") is None
