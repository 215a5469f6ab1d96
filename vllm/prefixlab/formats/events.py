"""KV events of an engine, a JSON line an event or a batch, as `BlockStored` and its kin.

What a batch stores in one chain is taken for a request that uses the whole chain, from its root. An
engine does not announce what it found cached: the trace has the shape of what was computed, so its
hit rates are those of the rest, behind that engine's cache. Other tiers than the device, and blocks
that were there before, tell of no request.
"""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.prefixlab.formats import Options, Source, decode
from vllm.prefixlab.trace import Trace, TraceBuilder

BLOCK = 16
MAX_DEPTH = 1 << 20
DEVICE = (None, "GPU", "device")
Name = int | str


class _Chains:
    """Block -> the one before it, as far as the events have told."""

    def __init__(self) -> None:
        self._parent: dict[Name, Name | None] = {}
        self._ends: dict[Name, None] = {}  # of the chains that this batch has stored

    def store(self, hashes: list[Name], parent: Name | None) -> None:
        if parent is not None:
            self._ends.pop(parent, None)
        for name in hashes:
            self._parent[name] = parent
            parent = name
        self._ends[hashes[-1]] = None

    def batch(self) -> list[list[str]]:
        """The chains that were stored since the last call, each from its root."""
        ends, self._ends = self._ends, {}
        return [self._chain(end) for end in ends]

    def _chain(self, end: Name) -> list[str]:
        chain: list[str] = []
        at: Name | None = end
        while at is not None:
            chain.append(str(at))
            if len(chain) > MAX_DEPTH:
                raise ValueError("parent_block_hash: the chain does not end")
            at = self._parent.get(at)
        return chain[::-1]


def _events(row: Any) -> tuple[float, list[Any]]:
    """(seconds, events) of a line: a batch, as object or array, or one event."""
    if isinstance(row, dict) and "events" in row:
        return _time(row), row["events"]
    if isinstance(row, dict):
        return _time(row), [row]
    if isinstance(row, list) and len(row) >= 2 and isinstance(row[1], list):
        if isinstance(row[0], (int, float)):
            return float(row[0]), row[1]
        return 0.0, [row]
    raise ValueError("neither an event nor a batch of them")


def _time(row: dict[str, Any]) -> float:
    return float(row.get("ts") or row.get("timestamp") or 0.0)


def _stored(event: Any) -> tuple[list[Name], Name | None, int] | None:
    """(hashes, parent, block size) of what was stored on the device; None for all else."""
    if isinstance(event, list) and event and isinstance(event[0], str):
        names = "block_hashes parent_block_hash token_ids block_size lora_id medium".split()
        event = {"type": event[0], **dict(zip(names, event[1:], strict=False))}
    if not isinstance(event, dict):
        raise ValueError("an event is an object, or an array with its type first")
    kind = event.get("type")
    if kind in ("BlockRemoved", "AllBlocksCleared"):
        return None
    if kind != "BlockStored":
        raise ValueError(f"type: {kind!r} is no event that is known")
    hashes, parent = event.get("block_hashes"), event.get("parent_block_hash")
    size = event.get("block_size", BLOCK)
    if not isinstance(hashes, list) or not all(type(h) in (int, str) for h in hashes):
        raise ValueError("block_hashes: must be numbers or names")
    if type(parent) not in (int, str, type(None)) or type(size) is not int:
        raise ValueError("parent_block_hash, block_size: must be a name and a number")
    found = parent is None and not event.get("token_ids", True)
    return (hashes, parent, size) if event.get("medium") in DEVICE and not found else None


def read_events(source: Source, options: Options) -> Trace:
    builder: TraceBuilder | None = None
    chains = _Chains()
    refused: list[tuple[int, str]] = []
    start: float | None = None
    for number, line in source.lines():
        try:
            time, events = _events(decode(line, object))
            start = time if start is None else start
            stored = [found for event in events if (found := _stored(event)) and found[0]]
            sizes = {options.block_size or size for _, _, size in stored}
            for size in sizes:
                builder = builder or TraceBuilder(size, source.name)
                if size != builder.block_size:
                    raise ValueError(f"block_size: {size}, after events of {builder.block_size}")
            for hashes, parent, _ in stored:
                chains.store(hashes, parent)
            if builder is not None:
                for ids in chains.batch():
                    builder.add(ids, len(ids) * builder.block_size, 0, max(0.0, time - start))
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            refused.append((number, str(error)))
    builder = builder or TraceBuilder(options.block_size or BLOCK, source.name)
    for number, why in refused:
        builder.refuse(number, why)
    return builder.build()
