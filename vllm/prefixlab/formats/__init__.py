"""Traces in and out, one file a family of formats. What is read is told by the first line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec

from vllm.prefixlab.trace import Trace

MAX_LINE = 64 << 20  # bytes
MAX_DOCUMENT = 2 << 30  # bytes, of a file that is one JSON document

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class Options:
    """What a reader may need beside the file. `encode` makes text to tokens; None: UTF-8 bytes."""

    block_size: int | None = None
    encode: Encode | None = None
    fit: Trace | None = None  # whose sharing traces without content are given
    seed: int = 0


class Source:
    """A trace file, unpacked when it is gzip, read line by line with numbers from 1.

    `step` is told of each line's bytes as it is read.
    """

    def __init__(self, path: Path, step: Callable[[int], object] | None = None) -> None:
        self.path = path
        self.name = path.name
        self._step = step

    def open(self) -> BinaryIO:
        file = open(self.path, "rb")  # noqa: SIM115 (its readers close it)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        return gzip.GzipFile(fileobj=file, mode="rb") if packed else file  # type: ignore[return-value]

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Lines that hold something. Raises ValueError at one longer than MAX_LINE."""
        with self.open() as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise ValueError(f"{self.path}:{number}: a line of more than {MAX_LINE} bytes")
                if self._step is not None:
                    self._step(len(line))
                if line.strip():
                    yield number, line

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """JSON objects: one a line, or the file's one document, with all of a list's elements.

        Those of a list are numbered from 1 instead of their lines.
        """
        first = next(self.lines(), (0, b""))[1]
        document = None
        if not _is(first, dict):
            with self.open() as file:
                data = file.read(MAX_DOCUMENT + 1)
            if len(data) > MAX_DOCUMENT:
                raise ValueError(f"{self.path}: a document of more than {MAX_DOCUMENT} bytes")
            if _is(data, dict):
                document = [data]
            elif _is(data, list):
                document = [bytes(raw) for raw in decode(data, list[msgspec.Raw])]
        yield from self.lines() if document is None else enumerate(document, 1)

    def head(self, size: int = 1 << 16) -> bytes:
        with self.open() as file:
            return file.read(size)

    def text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(self.open(), encoding="utf-8", errors="replace", newline="")


T = TypeVar("T")


def decode(data: bytes, type: type[T]) -> T:
    """JSON of that type. Raises ValueError, also for what is nested too deeply to be read."""
    try:
        return msgspec.json.decode(data, type=type)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _is(data: bytes, kind: type) -> bool:
    try:
        return isinstance(decode(data, object), kind)
    except (msgspec.MsgspecError, ValueError):
        return False


Reader = Callable[[Source, Options], Trace]


def readers() -> dict[str, Reader]:
    """Name of a format -> its reader."""
    from vllm.prefixlab.formats import arrivals, chains, events, metrics, oracle, text

    return {
        "lab": chains.read_lab,
        "mooncake": chains.read_mooncake,
        "bailian": chains.read_bailian,
        "sessions": chains.read_sessions,
        "text": text.read_text,
        "azure": arrivals.read_azure,
        "burstgpt": arrivals.read_burstgpt,
        "kv-events": events.read_events,
        "oracle-general": oracle.read_oracle,
        "prefix-metrics": metrics.read_metrics,
    }


def guess(source: Source) -> str:
    """The format by the file's name and beginning. Raises ValueError when it is none of ours."""
    from vllm.prefixlab.formats.metrics import prefix_of

    if prefix_of(source.path) is not None:
        return "prefix-metrics"
    if "oraclegeneral" in source.name.lower():
        return "oracle-general"
    head = source.head()
    first = next((line for line in head.split(b"\n") if line.strip()), b"")
    compact = first.replace(b" ", b"")
    if not compact.lstrip().startswith((b"{", b"[")):
        columns = {c.strip().lower() for c in first.decode("utf-8", "replace").split(",")}
        if {"timestamp", "contexttokens", "generatedtokens"} <= columns:
            return "azure"
        if {"timestamp", "request tokens", "response tokens"} <= columns:
            return "burstgpt"
        raise ValueError(f"{source.path}: not a trace that is known by its first line; --format")
    marks = (
        ("lab", b'"vllm_lab_trace"'),
        ("kv-events", b"BlockStored"),
        ("kv-events", b"AllBlocksCleared"),
        ("kv-events", b'"events"'),
        ("bailian", b'"chat_id"'),
        ("text", b'"messages"'),
        ("text", b'"prompt"'),
        ("text", b'"conversations"'),
        ("text", b'"text"'),
        ("text", b'"input"'),
    )
    # A session file may be one long line, or one document over many lines.
    if b'"requests"' in head[:4096] and b'"hash_ids"' in head:
        return "sessions"
    if len(compact.strip()) < 3:
        compact = head.replace(b" ", b"")
    for name, mark in marks:
        if mark in compact:
            return name
    if b'"hash_ids"' in compact:
        return "mooncake"
    raise ValueError(f"{source.path}: not a trace that is known by its first line; --format")


def read(
    path: str | Path,
    format: str | None = None,
    options: Options | None = None,
    step: Callable[[int], object] | None = None,
) -> Trace:
    """The trace in the file. Bad lines are in `Trace.bad`, by number and reason, and counted.

    `step` is told of the bytes as they are read. Raises ValueError for a file that is no trace at
    all, and OSError.
    """
    source = Source(Path(path), step)
    known = readers()
    if format is not None and format not in known:
        raise ValueError(f"format: {format!r} is not one of {', '.join(known)}")
    try:
        trace = known[format or guess(source)](source, options or Options())
    except (EOFError, zlib.error) as error:
        raise ValueError(f"{path}: gzip data that is not whole: {error}") from None
    if not trace.requests:
        told = f"; line {trace.bad[0].line}: {trace.bad[0].why}" if trace.bad else ""
        raise ValueError(f"{path}: no request in it{told}")
    return trace


def write(trace: Trace, path: Path, format: str) -> None:
    """Write the trace, packed when the name ends in .gz. Raises ValueError for other formats."""
    from vllm.prefixlab.formats import chains, oracle

    writers = {
        "lab": chains.write_lab,
        "mooncake": chains.write_mooncake,
        "oracle-general": oracle.write_oracle,
    }
    if format not in writers:
        raise ValueError(f"format: {format!r} is not one of {', '.join(writers)}")
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as file:
        writers[format](trace, file)  # type: ignore[arg-type]
