"""Traces of times and lengths only (Azure, BurstGPT): prefixes are fitted to them.

Such traces say when how many tokens came, and nothing of their content. Which of them share a
prefix is drawn: some continue an earlier conversation whose tokens fit into theirs, some start with
one of a few templates, the others share nothing. The shares are fitted to a trace that has ids, or
are those of the Mooncake conversation trace. Hit rates of such a trace say what that sharing would
give under these arrivals; they are no measurement.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import count

import numpy as np

from vllm.prefixlab.formats import Options, Source
from vllm.prefixlab.trace import Trace, TraceBuilder

BLOCK = 16
OPEN = 512  # conversations that may be continued


@dataclass(frozen=True)
class Sharing:
    """continued, templated: shares of the requests. template: tokens. templates: how many."""

    continued: float
    templated: float
    template: int
    templates: int


# fit_sharing() of the Mooncake conversation trace.
CONVERSATION = Sharing(continued=0.33, templated=0.67, template=512, templates=592)


def fit_sharing(trace: Trace) -> Sharing:
    """How the requests of a trace with ids share prefixes."""
    seen: set[int] = set()
    ends: set[int] = set()  # last full block of each request so far
    continued, depths, branches = 0, [], set()
    for r in range(trace.requests):
        ids = trace.ids[trace.starts[r] : trace.starts[r + 1]].tolist()
        ids = ids[: int(trace.input_len[r]) // trace.block_size]
        run = 0
        while run < len(ids) and ids[run] in seen:
            run += 1
        if run and not ends.isdisjoint(ids[1:run]):
            continued += 1
        elif run:
            depths.append(run)
            branches.add(ids[run - 1])
        seen.update(ids)
        if ids:
            ends.add(ids[-1])
    total = max(1, trace.requests)
    template = int(np.median(depths)) * trace.block_size if depths else 0
    return Sharing(continued / total, len(depths) / total, template, max(1, len(branches)))


@dataclass
class _Conversation:
    session: int
    turn: int
    tokens: int
    ids: list[int]


class _Prefixes:
    """Draws the ids of one request after the other."""

    def __init__(self, sharing: Sharing, block_size: int, seed: int) -> None:
        self._sharing = sharing
        self._size = block_size
        self._rng = np.random.default_rng(seed)
        self._fresh = count()
        self._open: deque[_Conversation] = deque(maxlen=OPEN)
        self._templates: dict[int, list[int]] = {}
        self._sessions = count()

    def next(self, input_len: int, output_len: int) -> tuple[list[int], int, int]:
        """(ids, session, turn)."""
        draw = self._rng.random()
        full = input_len // self._size
        fits = [c for c in self._open if c.tokens <= input_len]
        if fits and draw < self._sharing.continued:
            before = max(fits, key=lambda c: c.tokens)
            self._open.remove(before)
            shared, session, turn = before.ids, before.session, before.turn + 1
        else:
            session, turn = next(self._sessions), 0
            shared = []
            if draw < self._sharing.continued + self._sharing.templated:
                which = min(int(self._rng.zipf(1.5)), self._sharing.templates)
                blocks = self._sharing.template // self._size
                if which not in self._templates:
                    self._templates[which] = [next(self._fresh) for _ in range(blocks)]
                shared = self._templates[which]
        shared = shared[:full]
        ids = shared + [next(self._fresh) for _ in range(full - len(shared))]
        self._open.append(_Conversation(session, turn, input_len + output_len, ids))
        partial = [next(self._fresh)] if input_len % self._size else []
        return ids + partial, session, turn


def _table(source: Source) -> Iterator[tuple[int, dict[str, str]]]:
    with source.text() as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                named = {str(k).strip().lower(): v for k, v in row.items() if isinstance(v, str)}
                yield reader.line_num, named
        except csv.Error as error:
            raise ValueError(f"{source.path}:{reader.line_num}: {error}") from None


def _moment(text: str) -> float:
    """Seconds, of a number or of a date with a time."""
    try:
        return float(text)
    except ValueError:
        pass
    # Azure writes seven digits of a second, one more than Python reads.
    whole, _, rest = text.strip().partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    zone = rest[len(digits) :]
    moment = datetime.fromisoformat(f"{whole}.{digits[:6]:0<6}{zone}" if digits else text.strip())
    return moment.replace(tzinfo=moment.tzinfo or timezone.utc).timestamp()


def _read(
    source: Source,
    options: Options,
    fields: tuple[str, str, str],
    kind: Callable[[dict[str, str]], str],
) -> Trace:
    size = options.block_size or BLOCK
    sharing = fit_sharing(options.fit) if options.fit is not None else CONVERSATION
    prefixes = _Prefixes(sharing, size, options.seed)
    builder = TraceBuilder(size, source.name)
    start: float | None = None
    for number, row in _table(source):
        try:
            missing = [name for name in fields if not row.get(name)]
            if missing:
                raise ValueError(f"{missing[0]}: missing")
            time, asked, made = (row[name] for name in fields)
            moment, input_len, output_len = _moment(time), int(asked), int(made)
            start = moment if start is None else start
            if not 1 <= input_len <= 1 << 24 or output_len < 0:
                raise ValueError(f"{fields[1]}, {fields[2]}: {asked} and {made} tokens")
            if moment < start:
                raise ValueError(f"{fields[0]}: before the first request")
            ids, session, turn = prefixes.next(input_len, output_len)
            builder.add(
                ids,
                input_len,
                output_len,
                moment - start,
                session=session,
                turn=turn,
                workload=kind(row),
            )
        except ValueError as error:
            builder.refuse(number, str(error))
    return builder.build()


def read_azure(source: Source, options: Options) -> Trace:
    """Azure's LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens."""
    fields = ("timestamp", "contexttokens", "generatedtokens")
    return _read(source, options, fields, lambda row: "unknown")


def read_burstgpt(source: Source, options: Options) -> Trace:
    """BurstGPT: Timestamp (s), Request tokens, Response tokens; the log type is the workload."""
    fields = ("timestamp", "request tokens", "response tokens")
    return _read(source, options, fields, lambda row: row.get("log type") or "unknown")
