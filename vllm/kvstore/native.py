"""The C++ library's binding, loaded when it is first needed."""

from __future__ import annotations

import importlib
from typing import Any


def library() -> Any:
    """The module `vllm._kvstore`. Raises RuntimeError where it was not built or does not load."""
    try:
        return importlib.import_module("vllm._kvstore")
    except ImportError as error:
        raise RuntimeError(
            f"the shared store's library vllm/_kvstore.so is not there or does not load ({error}); "
            "install again where there are CMake, nanobind and a C++ compiler"
        ) from error
