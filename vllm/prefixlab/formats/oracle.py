"""libCacheSim's oracleGeneral: 24 bytes an access, little endian, no padding.

uint32 seconds, uint64 id, uint32 bytes, int64 index of the id's next access (-1: never again).
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from vllm.prefixlab.formats import Options, Source
from vllm.prefixlab.trace import MAX_ACCESSES, MAX_BLOCK, Trace, dense, next_use

RECORD = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
PIECE = 1 << 24  # bytes read at once


def read_oracle(source: Source, options: Options) -> Trace:
    """Each access becomes a request of one block. Raises ValueError at a torn record."""
    with source.open() as file:
        data = bytearray()
        while piece := file.read(PIECE):
            data += piece
            if len(data) > MAX_ACCESSES * RECORD.itemsize:
                raise ValueError(f"{source.path}: more than {MAX_ACCESSES} accesses")
    if len(data) % RECORD.itemsize:
        raise ValueError(f"{source.path}: ends inside a record of {RECORD.itemsize} bytes")
    rows = np.frombuffer(data, RECORD)
    size = options.block_size or 1
    if not 1 <= size <= MAX_BLOCK:
        raise ValueError(f"block_size: must be 1 to {MAX_BLOCK}, is {size}")
    rows = rows[np.argsort(rows["time"], kind="stable")]
    count = rows.size
    zeros = np.zeros(count, np.int32)
    return Trace(
        block_size=size,
        starts=np.arange(count + 1, dtype=np.int64),
        ids=dense(rows["id"].astype(np.int64)),
        arrival=rows["time"].astype(np.float64),
        input_len=np.full(count, size, np.int32),
        output_len=zeros,
        session=np.full(count, -1, np.int32),
        turn=zeros,
        workload=zeros,
        name=source.name,
    )


def write_oracle(trace: Trace, out: BinaryIO) -> None:
    """All accesses, head to tail, each of size 1."""
    rows = np.zeros(trace.accesses, RECORD)
    rows["time"] = trace.arrival[trace.request]
    rows["id"] = trace.ids
    rows["size"] = 1
    rows["next"] = next_use(trace.ids)
    out.write(rows.tobytes())
