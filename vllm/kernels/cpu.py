"""Placeholder until the C++ kernels land in this file's next version."""


def available(device: str) -> str | None:
    return "not built"
