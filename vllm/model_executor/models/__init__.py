"""Model families, one file each: a new file is found by its class's `architectures`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from vllm.model_executor.model import Model


@cache
def families() -> dict[str, type[Model]]:
    """Every supported name of `architectures` in config.json, with its class."""
    found: dict[str, type[Model]] = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for one in vars(module).values():
            if (
                isinstance(one, type)
                and issubclass(one, Model)
                and one.__module__ == module.__name__
            ):
                found |= dict.fromkeys(one.architectures, one)
    return found


def resolve(hf: dict[str, Any]) -> type[Model]:
    """The class for `architectures[0]`. Raises ValueError naming it when it is not supported."""
    names = hf.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    model = families().get(name) if isinstance(name, str) else None
    if model is None:
        known = ", ".join(sorted(families()))
        raise ValueError(f"config.json: architecture {name!r} is not supported; known: {known}")
    return model
