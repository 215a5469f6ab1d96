"""The engine's prefix metrics: PREFIX_requests.jsonl and PREFIX_blocks.jsonl.

Blocks carry their parent and all times at which they were used, so the requests can be put together
again: blocks used at one moment hang together in chains, and a chain ends where more requests used
a block than used its children. Files whose blocks are token lists without parents, as the original
study wrote them, give single accesses.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vllm.prefixlab.formats import Options, Source, decode
from vllm.prefixlab.reuse import Reuse
from vllm.prefixlab.trace import BadLine, Trace, TraceBuilder

REQUESTS, BLOCKS = "_requests.jsonl", "_blocks.jsonl"
BLOCK = 16  # tokens, where the requests do not tell it
SIZES = [1 << power for power in range(12)]


class RequestRow(msgspec.Struct):
    request_id: str
    total_tokens: int
    reused_tokens: int
    mode: str = "single"
    workload: str = "unknown"


class BlockRow(msgspec.Struct):
    block_key: str | list[int]
    hits: int
    use_times: list[float]
    reuse_gaps: list[float]
    depth: int | None = None
    parent: str | None = None


Faults = list[tuple[Path, BadLine]]


def prefix_of(path: Path) -> Path | None:
    """PREFIX, of itself or of one of its files; None where there is no PREFIX_blocks.jsonl."""
    for end in ("", REQUESTS, BLOCKS):
        if path.name.endswith(end):
            prefix = path.with_name(path.name[: len(path.name) - len(end)])
            if prefix.with_name(prefix.name + BLOCKS).is_file():
                return prefix
    return None


def _rows(path: Path, kind: type[Any], faults: Faults) -> list[Any]:
    rows = []
    for number, line in Source(path).lines():
        try:
            rows.append(decode(line, kind))
        except (msgspec.MsgspecError, ValueError) as error:
            faults.append((path, BadLine(number, str(error))))
    return rows


def rows(prefix: Path) -> tuple[list[RequestRow], list[BlockRow], Faults]:
    """What both files hold; a missing file of requests is empty. Bad lines stand apart."""
    faults: Faults = []
    of_requests = prefix.with_name(prefix.name + REQUESTS)
    requests = _rows(of_requests, RequestRow, faults) if of_requests.is_file() else []
    blocks = _rows(prefix.with_name(prefix.name + BLOCKS), BlockRow, faults)
    return requests, blocks, faults


def reuse_of_files(prefix: Path) -> tuple[Reuse, Faults]:
    """What the engine has measured, as it was written down. Raises ValueError for empty files."""
    requests, blocks, faults = rows(prefix)
    if not requests and not blocks:
        raise ValueError(f"{prefix}: neither requests nor blocks in its files")
    reuse = Reuse(
        name=prefix.name,
        total_tokens=np.array([row.total_tokens for row in requests], np.int64),
        reused_tokens=np.array([row.reused_tokens for row in requests], np.int64),
        workload=[row.workload for row in requests],
        hits_per_block=np.array([row.hits for row in blocks], np.int64),
        reuse_gap=np.array([gap for row in blocks for gap in row.reuse_gaps], np.float64),
    )
    return reuse, faults


def read_metrics(source: Source, options: Options) -> Trace:
    """The requests behind the blocks' use times. Raises ValueError when there is no such file."""
    prefix = prefix_of(source.path)
    if prefix is None:
        raise ValueError(f"{source.path}: there is no {source.path.name}{BLOCKS}")
    requests, blocks, faults = rows(prefix)
    size = options.block_size or _block_size(requests, blocks)
    builder = TraceBuilder(size, prefix.name)
    for path, bad in faults:
        builder.refuse(bad.line, f"{path.name}: {bad.why}")
    found = _chains(blocks)
    told = [row for row in requests if row.total_tokens >= size]
    # In the order of their admission; chains of one moment are told apart by their lengths.
    at = 0
    for time, chains in sorted(found.items()):
        here = told[at : at + len(chains)]
        at += len(chains)
        here.sort(key=lambda row: row.total_tokens)
        chains.sort(key=len)
        pairs = [
            row.total_tokens // size == len(ids) for row, ids in zip(here, chains, strict=False)
        ]
        known = len(here) == len(chains) and all(pairs)
        for i, ids in enumerate(chains):
            workload = here[i].workload if known else "unknown"
            tokens = here[i].total_tokens if known else len(ids) * size
            try:
                builder.add(ids, tokens, 0, time, workload=workload)
            except ValueError as error:
                builder.refuse(0, str(error))
    return builder.build()


def _block_size(requests: list[RequestRow], blocks: list[BlockRow]) -> int:
    """The size for which the requests have as many full blocks as there were uses."""
    uses = sum(len(row.use_times) for row in blocks)
    for size in SIZES:
        if uses and uses == sum(row.total_tokens // size for row in requests):
            return size
    return BLOCK


def _chains(blocks: list[BlockRow]) -> dict[float, list[list[str]]]:
    """Time -> the chains of block names that requests used then, each from its root."""
    names = [
        row.block_key if isinstance(row.block_key, str) else json.dumps(row.block_key)
        for row in blocks
    ]
    parent = dict(zip(names, (row.parent for row in blocks), strict=True))
    used: dict[float, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for name, row in zip(names, blocks, strict=True):
        for time in row.use_times:
            used[time][name] += 1
    found: dict[float, list[list[str]]] = {}
    for time, counts in used.items():
        ends = dict(counts)
        for name, count in counts.items():
            above = parent[name]
            if above in ends:
                ends[above] -= count
        found[time] = [
            chain
            for name, count in ends.items()
            for chain in [_chain(name, parent)] * max(0, count)
        ]
    return found


def _chain(end: str, parent: dict[str, str | None]) -> list[str]:
    chain: list[str] = []
    at: str | None = end
    while at is not None and at in parent and len(chain) <= len(parent):
        chain.append(at)
        at = parent[at]
    return chain[::-1]
