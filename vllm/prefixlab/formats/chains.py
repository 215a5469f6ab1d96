"""JSON whose requests carry chained block ids: our own, Mooncake, Bailian, sessions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import msgspec

from vllm.prefixlab.formats import Options, Source, decode
from vllm.prefixlab.trace import Trace, TraceBuilder

MOONCAKE_BLOCK, BAILIAN_BLOCK, SESSION_BLOCK = 512, 16, 64


class Row(msgspec.Struct):
    """One request. Mooncake knows the first four fields."""

    timestamp: float
    input_length: int
    hash_ids: list[int | str]
    output_length: int = 0
    session: int | str | None = None
    turn: int = 0
    workload: str = "unknown"


class BailianRow(msgspec.Struct):
    timestamp: float
    input_length: int
    hash_ids: list[int | str]
    chat_id: int
    output_length: int = 0
    parent_chat_id: int = -1
    turn: int = 1
    type: str = "unknown"


class Header(msgspec.Struct):
    vllm_lab_trace: int
    block_size: int


def read_mooncake(source: Source, options: Options) -> Trace:
    """Mooncake (FAST'25): timestamps in ms, 512 tokens a block, the last may be partial."""
    builder = TraceBuilder(options.block_size or MOONCAKE_BLOCK, source.name)
    return _rows(source.lines(), builder, 1e-3)


def read_lab(source: Source, options: Options) -> Trace:
    """Our own: a header line {"vllm_lab_trace": 1, "block_size": B}, then rows in seconds."""
    lines = source.lines()
    number, first = next(lines, (1, b""))
    try:
        header = decode(first, Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ValueError(f"{source.path}:{number}: not a header of a lab trace: {error}") from None
    if header.vllm_lab_trace != 1:
        raise ValueError(f"{source.path}:{number}: version {header.vllm_lab_trace} is not known")
    return _rows(lines, TraceBuilder(header.block_size, source.name), 1.0)


def _rows(lines: Iterable[tuple[int, bytes]], builder: TraceBuilder, second: float) -> Trace:
    for number, line in lines:
        try:
            row = decode(line, Row)
            builder.add(
                row.hash_ids,
                row.input_length,
                row.output_length,
                row.timestamp * second,
                session=row.session,
                turn=row.turn,
                workload=row.workload,
            )
        except (msgspec.MsgspecError, ValueError) as error:
            builder.refuse(number, str(error))
    return builder.build()


def read_bailian(source: Source, options: Options) -> Trace:
    """Bailian (ATC'25): seconds, 16 tokens a block; a chat's turns name the one before them."""
    builder = TraceBuilder(options.block_size or BAILIAN_BLOCK, source.name)
    root: dict[int, int] = {}  # chat -> the chat that its conversation began with
    for number, line in source.lines():
        try:
            row = decode(line, BailianRow)
            session = root.get(row.parent_chat_id, row.chat_id)
            builder.add(
                row.hash_ids,
                row.input_length,
                row.output_length,
                row.timestamp,
                session=session,
                turn=row.turn - 1,
                workload=row.type,
            )
            root[row.chat_id] = session
        except (msgspec.MsgspecError, ValueError) as error:
            builder.refuse(number, str(error))
    return builder.build()


class Turn(msgspec.Struct):
    """A request of a session; each field goes by one of two names."""

    hash_ids: list[int]
    t: float | None = None
    timestamp: float | None = None
    input_length: int | None = None
    input: int | None = msgspec.field(name="in", default=None)
    output_length: int | None = None
    output: int | None = msgspec.field(name="out", default=None)


class Session(msgspec.Struct):
    requests: list[msgspec.Raw]
    id: int | str | None = None
    session_id: int | str | None = None
    block_size: int = SESSION_BLOCK
    hash_id_scope: str = "global"
    workload: str = "unknown"


def read_sessions(source: Source, options: Options) -> Trace:
    """Sessions with their requests inside, as agent traces come (WEKA's kv-cache-tester).

    One JSON document (a session, or a list) or one session a line. Ids are of the whole file, or of
    the session alone when its `hash_id_scope` is "local".
    """
    builder: TraceBuilder | None = None
    refused: list[tuple[int, str]] = []
    for number, line in source.rows():
        try:
            session = decode(line, Session)
            size = options.block_size or session.block_size
            builder = builder or TraceBuilder(size, source.name)
            if size != builder.block_size:
                raise ValueError(f"block_size: {size}, after sessions of {builder.block_size}")
        except (msgspec.MsgspecError, ValueError) as error:
            refused.append((number, str(error)))
            continue
        name = session.id if session.id is not None else session.session_id
        name = number if name is None else name
        for turn, raw in enumerate(session.requests):
            try:
                _add_turn(builder, session, name, turn, decode(raw, Turn))
            except (msgspec.MsgspecError, ValueError) as error:
                refused.append((number, f"request {turn}: {error}"))
    builder = builder or TraceBuilder(options.block_size or SESSION_BLOCK, source.name)
    for number, why in refused:
        builder.refuse(number, why)
    return builder.build()


def _add_turn(
    builder: TraceBuilder, session: Session, name: int | str, number: int, turn: Turn
) -> None:
    time = turn.t if turn.t is not None else turn.timestamp
    length = turn.input_length if turn.input_length is not None else turn.input
    made = turn.output_length if turn.output_length is not None else turn.output
    if length is None:
        raise ValueError("in: how many tokens the request has is missing")
    ids: list[int] | list[str] = turn.hash_ids
    if session.hash_id_scope == "local":
        ids = [f"{name}/{i}" for i in turn.hash_ids]
    builder.add(
        ids,
        length,
        made or 0,
        time or 0.0,
        session=name,
        turn=number,
        workload=session.workload,
    )


def write_mooncake(trace: Trace, out: BinaryIO) -> None:
    """Mooncake's fields (ms); other block sizes than 512 must be told to whoever reads it."""
    for r in range(trace.requests):
        row = {
            "timestamp": round(float(trace.arrival[r]) * 1e3),
            "input_length": int(trace.input_len[r]),
            "output_length": int(trace.output_len[r]),
            "hash_ids": trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist(),
        }
        out.write(msgspec.json.encode(row) + b"\n")


def write_lab(trace: Trace, out: BinaryIO) -> None:
    """Our own form: nothing of the trace is lost."""
    out.write(msgspec.json.encode({"vllm_lab_trace": 1, "block_size": trace.block_size}) + b"\n")
    for r in range(trace.requests):
        session = int(trace.session[r])
        row = {
            "timestamp": float(trace.arrival[r]),
            "input_length": int(trace.input_len[r]),
            "output_length": int(trace.output_len[r]),
            "hash_ids": trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist(),
            "session": None if session < 0 else session,
            "turn": int(trace.turn[r]),
            "workload": trace.workloads[trace.workload[r]],
        }
        out.write(msgspec.json.encode(row) + b"\n")
