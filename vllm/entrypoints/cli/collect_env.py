"""`vllm collect-env`: print what a bug report needs."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

from vllm.config.flags import FlexibleArgumentParser
from vllm.version import __version__

PACKAGES = [
    *("torch", "triton", "tokenizers", "transformers", "safetensors", "numpy", "msgspec", "pyzmq"),
    *("fastapi", "uvicorn", "pydantic", "openai", "ray"),
]
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def main(words: Sequence[str]) -> int:
    FlexibleArgumentParser(
        prog="vllm collect-env", description="Print what a bug report needs."
    ).parse_args(list(words))
    for name, value in report():
        print(f"{name}: {value}")
    return 0


def report() -> Iterator[tuple[str, str]]:
    yield "vllm", __version__
    yield "Python", platform.python_version()
    yield "System", platform.platform()
    yield "CPU", processor()
    yield "CPUs this process may use", str(len(os.sched_getaffinity(0)))
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    yield "Memory", f"{pages * size / 2**30:.1f} GiB"
    yield "GPU", _gpu()
    for package in PACKAGES:
        try:
            yield package, installed(package)
        except PackageNotFoundError:
            yield package, "not installed"
    for name, value in sorted(os.environ.items()):
        if name.startswith(("VLLM_", "CUDA_", "OMP_", "RAY_")):
            yield name, "(set)" if any(word in name for word in SECRET) else value


def processor() -> str:
    """The CPU's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return "unknown, without torch"
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(names)
