"""Reading safetensors files that nobody vouches for.

    [8 bytes: n][n bytes: JSON header][data: the tensors, end to end]

The header is checked against the length of the file before any memory is asked for: the tensors
must fill the data exactly, without gap or overlap, so a file can neither make us reserve more than
its own size nor show a byte twice. What was checked is then what is read, from the same mapping.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGEST_HEADER = 100 * 2**20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int  # in bytes from the start of the file
    size: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name. Raises ValueError naming the file when it is not sound."""
    length = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if not 8 < start <= min(length, 8 + LARGEST_HEADER):
            raise ValueError(f"{path}: bad header length {start - 8} in a file of {length} bytes")
        raw = file.read(start - 8)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("the header is not an object")
        header.pop("__metadata__", None)
        entries = {name: _entry(name, given, start) for name, given in header.items()}
        at = start
        for name, entry in sorted(entries.items(), key=lambda e: (e[1].begin, e[1].size)):
            if entry.begin != at:
                raise ValueError(f"tensor {name!r} starts at byte {entry.begin}, not at {at}")
            at += entry.size
        if at != length:
            raise ValueError(f"the tensors end at byte {at}, the file at {length}")
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise ValueError(f"{path}: {error}") from None
    return entries


def read_tensors(path: Path, entries: dict[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file in the order in which they lie, each backed by the file's pages.

    Pages are read when touched and can be dropped by the kernel, so nothing is held twice.
    """
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    for name, entry in sorted(entries.items(), key=lambda e: e[1].begin):
        if entry.begin + entry.size > len(pages):
            raise ValueError(f"{path}: the file shrank while it was read")
        if not entry.size:
            yield name, torch.empty(entry.shape, dtype=entry.dtype)
            continue
        source: mmap.mmap | bytearray = pages
        begin = entry.begin
        if begin % entry.dtype.itemsize:  # allowed by the format, not by the processor
            source, begin = bytearray(pages[begin : begin + entry.size]), 0
        count = entry.size // entry.dtype.itemsize
        flat = torch.frombuffer(source, dtype=entry.dtype, count=count, offset=begin)
        yield name, flat.view(entry.shape)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("the header names something twice")
    return made


def _entry(name: str, given: Any, start: int) -> Entry:
    if not isinstance(given, dict) or {*given} != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have dtype, shape and data_offsets only")
    dtype = DTYPES.get(given["dtype"]) if isinstance(given["dtype"], str) else None
    if dtype is None:
        raise ValueError(f"tensor {name!r} has unknown dtype {given['dtype']!r}")
    shape, offsets = given["shape"], given["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has a bad shape or bad data_offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has {end - begin} bytes, not those of its shape {shape}")
    return Entry(dtype, tuple(shape), start + begin, end - begin)


def _counts(given: Any) -> bool:
    """Whether this is a list of whole numbers, none below zero."""
    return isinstance(given, list) and all(type(n) is int and n >= 0 for n in given)
