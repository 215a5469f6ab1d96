"""How the C++ kernels pick an instruction set, and what is said when they cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from vllm.kernels import cpu, load

needs_library = pytest.mark.skipif(cpu.available("cpu") is not None, reason="C++ kernels not built")


def loaded_with(isa: str) -> str:
    """What a fresh process says that is asked for `isa`: the reason why not, or the set in use."""
    say = (
        "import torch; from vllm.kernels import cpu; "
        "print(cpu.available('cpu') or torch.ops.vllm_cpu.isa())"
    )
    run = subprocess.run(
        [sys.executable, "-c", say],
        env=os.environ | {"VLLM_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


@needs_library
def test_the_environment_forces_a_lower_set():
    assert loaded_with("base") == "base"


@needs_library
def test_a_set_that_is_not_there_is_refused():
    assert "'sse9' is not one that runs here: base" in loaded_with("sse9")
    with pytest.raises(ValueError, match="is not one that runs here"):
        torch.ops.vllm_cpu.set_isa("sse9")


@needs_library
def test_every_op_comes_from_the_library():
    ops = load("cpu")
    assert set(ops.origin.values()) == {"cpu"}
    assert set(load("cpu", "reference").origin.values()) == {"reference"}


def test_without_the_library_the_reference_runs(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(cpu, "LIBRARY", tmp_path / "_cpu.so")
    monkeypatch.setattr(cpu, "_load", cpu._load.__wrapped__)
    assert set(load("cpu").origin.values()) == {"reference"}
    assert "not built" in caplog.text
    (tmp_path / "_cpu.so").write_bytes(b"no library")
    assert "cannot be loaded" in cpu.available("cpu")
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        load("cpu", "cpu")


def test_other_devices_are_declined():
    assert "CPU only" in cpu.available("cuda")
