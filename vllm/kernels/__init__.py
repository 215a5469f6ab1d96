"""Kernels: one table of operations, filled once from the best set that the machine has."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from vllm.kernels.ops import DenseBatch, HeadBatch, Ops, dense_batch, head_blocks

__all__ = ["DenseBatch", "HeadBatch", "Ops", "dense_batch", "head_blocks", "load"]

logger = logging.getLogger(__name__)

# Best first. A set is a module with `available(device) -> str | None` (None when it can run there,
# else the reason why it cannot) and a function for each op that it has.
SETS = ("cpu",)


def load(device: str, prefer: str = "auto") -> Ops:
    """Fill the table for `device` ("cpu", "cuda"): `prefer` is "auto", "reference" or a set's name.

    An op that the chosen set lacks comes from `reference`. Raises ValueError for an unknown set and
    RuntimeError when a set that was asked for by name cannot run here.
    """
    if prefer not in ("auto", "reference", *SETS):
        raise ValueError(f"kernels must be auto, reference or one of {SETS}, not {prefer!r}")
    reference = importlib.import_module("vllm.kernels.reference")
    chosen: ModuleType | None = None
    for name in SETS if prefer == "auto" else (prefer,):
        if name == "reference":
            break
        module = importlib.import_module(f"vllm.kernels.{name}")
        reason = module.available(device)
        if reason is None:
            chosen = module
            break
        if prefer != "auto":
            raise RuntimeError(f"kernels {name!r} cannot run on {device}: {reason}")
        logger.warning("Kernels %r not used on %s: %s", name, device, reason)
    table, origin = {}, {}
    for op in Ops.names():
        source = chosen if chosen is not None and hasattr(chosen, op) else reference
        table[op] = getattr(source, op)
        origin[op] = source.__name__.rpartition(".")[2]
    return Ops(**table, origin=origin)
