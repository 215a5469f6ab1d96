"""The one form of a trace: requests in the order of their arrival, each a chain of block ids.

An id names a block's content and all that came before it, so equal ids are equal KVs. The last id
of a request may stand for a block that is not full.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

Names = Sequence[int] | Sequence[str] | Sequence[bytes] | Sequence[int | str]
Ints = npt.NDArray[np.int32]
MAX_ACCESSES = 1 << 29  # twice as many slots of the curve's tree still have 32-bit numbers
MAX_BLOCK = 1 << 20  # tokens
MAX_TOLD = 20  # bad lines that are kept word for word; all are counted


@dataclass(frozen=True)
class BadLine:
    line: int
    why: str


@dataclass(frozen=True)
class Trace:
    """Columns over requests, and the block ids of all requests one behind the other.

    starts: int64 [requests + 1]; the ids of request r are ids[starts[r]:starts[r + 1]].
    ids: int32 [accesses], dense from 0 in the order of first use.
    arrival: float64 [requests], seconds, ascending.
    input_len, output_len: int32 [requests], tokens.
    session: int32 [requests], -1 for none; turn: int32 [requests], from 0.
    workload: int32 [requests], an index into `workloads`.
    """

    block_size: int
    starts: npt.NDArray[np.int64]
    ids: Ints
    arrival: npt.NDArray[np.float64]
    input_len: Ints
    output_len: Ints
    session: Ints
    turn: Ints
    workload: Ints
    workloads: tuple[str, ...] = ("unknown",)
    name: str = "trace"
    bad: tuple[BadLine, ...] = ()
    bad_count: int = 0

    @property
    def requests(self) -> int:
        return int(self.input_len.size)

    @property
    def accesses(self) -> int:
        return int(self.ids.size)

    @cached_property
    def universe(self) -> int:
        """How many distinct ids there are."""
        return int(self.ids.max()) + 1 if self.ids.size else 0

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    @cached_property
    def depth(self) -> Ints:
        """int32 [accesses]: the place of each access in its request, from 0."""
        begins = np.repeat(self.starts[:-1], self.lengths)
        places: Ints = (np.arange(self.ids.size) - begins).astype(np.int32)
        return places

    @cached_property
    def request(self) -> Ints:
        """int32 [accesses]: the request of each access."""
        return np.repeat(np.arange(self.requests, dtype=np.int32), self.lengths)

    @cached_property
    def tokens(self) -> Ints:
        """int32 [accesses]: the tokens of each block; the last of a request may be partial."""
        left = self.input_len[self.request] - self.depth * self.block_size
        counts: Ints = np.minimum(left, self.block_size).astype(np.int32)
        return counts

    def only(self, keep: npt.NDArray[np.bool_]) -> Trace:
        """The accesses for which `keep` (bool [accesses]) holds; all requests stay."""
        lengths = np.bincount(self.request[keep], minlength=self.requests)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        return replace(self, starts=starts, ids=self.ids[keep])

    def coarser(self, times: int) -> Trace:
        """The same requests with blocks `times` as large: every `times`-th id names such a block.

        A request's end may be partial: its last id then names it. Exact, because ids are chained.
        """
        if not 1 <= times * self.block_size <= MAX_BLOCK:
            raise ValueError(
                f"times: blocks have 1 to {MAX_BLOCK} tokens, not {times} times as many"
            )
        last = np.zeros(self.ids.size, bool)
        last[self.starts[1:][self.lengths > 0] - 1] = True
        keep = (self.depth % times == times - 1) | last
        made = replace(self.only(keep), block_size=self.block_size * times)
        return replace(made, ids=dense(made.ids))

    def check(self) -> None:
        """AssertionError unless the columns fit each other."""
        columns = (self.arrival, self.input_len, self.output_len, self.session, self.turn)
        assert all(c.size == self.requests for c in (*columns, self.workload))
        assert self.starts.size == self.requests + 1 and self.starts[0] == 0
        assert self.starts[-1] == self.ids.size and (self.lengths >= 0).all()
        assert (np.diff(self.arrival) >= 0).all(), "requests stand in the order of their arrival"
        assert self.universe == np.unique(self.ids).size, "ids are dense"
        assert self.workload.size == 0 or self.workload.min() >= 0
        assert self.workload.size == 0 or self.workload.max() < len(self.workloads)
        assert self.tokens.size == 0 or self.tokens.min() > 0


def dense(ids: npt.NDArray[np.int64] | Ints) -> Ints:
    """The ids renamed 0, 1, ... in the order of their first use."""
    if not ids.size:
        return ids.astype(np.int32)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int32)
    rank[np.argsort(first)] = np.arange(first.size, dtype=np.int32)
    renamed: Ints = rank[inverse.ravel()]
    return renamed


def next_use(ids: Ints) -> npt.NDArray[np.int64]:
    """int64 [accesses]: the index of the same id's next access; -1: never again."""
    order = np.argsort(ids, kind="stable")
    same = ids[order][1:] == ids[order][:-1]
    result = np.full(ids.size, -1, np.int64)
    result[order[:-1][same]] = order[1:][same]
    return result


@dataclass
class TraceBuilder:
    """Collects requests, refuses what cannot be one, and counts what was refused."""

    block_size: int
    name: str = "trace"
    bad: list[BadLine] = field(default_factory=list)
    bad_count: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.block_size <= MAX_BLOCK:
            raise ValueError(f"block_size: must be 1 to {MAX_BLOCK}, is {self.block_size}")
        self._ids = array("q")
        self._codes: dict[Hashable, int] = {}
        self._lengths = array("i")
        self._rows: list[tuple[float, int, int, int, int, int]] = []
        self._sessions: dict[Hashable, int] = {}
        self._workloads: dict[str, int] = {}

    def refuse(self, line: int, why: str) -> None:
        self.bad_count += 1
        if len(self.bad) < MAX_TOLD:
            self.bad.append(BadLine(line, why))

    def add(
        self,
        ids: Names,
        input_len: int,
        output_len: int = 0,
        arrival: float = 0.0,
        *,
        session: Hashable = None,
        turn: int = 0,
        workload: str = "unknown",
    ) -> None:
        """One request. Raises ValueError, naming the field, and nothing changes."""
        if input_len < 1 or input_len >= 2**31:
            raise ValueError(f"input_length: must be 1 to {2**31 - 1}, is {input_len}")
        if not 0 <= output_len < 2**31:
            raise ValueError(f"output_length: must be 0 to {2**31 - 1}, is {output_len}")
        if not 0 <= arrival < 1e15:  # false for NaN too
            raise ValueError(f"timestamp: must be a time that is not negative, is {arrival}")
        if not 0 <= turn < 2**31:
            raise ValueError(f"turn: must be 0 to {2**31 - 1}, is {turn}")
        full, rest = divmod(input_len, self.block_size)
        if len(ids) != full and len(ids) != full + (rest > 0):
            raise ValueError(
                f"hash_ids: {len(ids)} ids do not fit an input_length of {input_len} in blocks of "
                f"{self.block_size} tokens"
            )
        if len(set(ids)) != len(ids):
            raise ValueError("hash_ids: a chained id stands twice in one request")
        if len(self._ids) + len(ids) > MAX_ACCESSES:
            raise ValueError(f"hash_ids: a trace holds at most {MAX_ACCESSES} accesses")
        self._ids.extend(self._numbers(ids))
        self._lengths.append(len(ids))
        group = -1
        if session is not None:
            group = self._sessions.setdefault(session, len(self._sessions))
        kind = self._workloads.setdefault(workload, len(self._workloads))
        self._rows.append((arrival, input_len, output_len, group, turn, kind))

    def _numbers(self, ids: Names) -> Iterable[int]:
        codes = self._codes
        if ids and not isinstance(ids[0], int):
            # Below zero, so that they never meet ids that are numbers.
            return [-1 - codes.setdefault(i, len(codes)) for i in ids]
        try:
            numbers = array("q", cast(Sequence[int], ids))
        except (OverflowError, TypeError):
            raise ValueError("hash_ids: must be 64-bit numbers, or names") from None
        if numbers and min(numbers) < 0:
            raise ValueError("hash_ids: must not be negative")
        return numbers

    def build(self) -> Trace:
        """The trace, in the order of arrival; equal times stay in the order of `add`."""
        table = np.array(self._rows, np.float64).reshape(len(self._rows), 6)
        order = np.argsort(table[:, 0], kind="stable")
        lengths = np.frombuffer(self._lengths, np.int32).astype(np.int64)
        starts = np.concatenate(([0], np.cumsum(lengths)))
        ids = np.frombuffer(self._ids, np.int64) if self._ids else np.zeros(0, np.int64)
        if (np.diff(order) < 0).any():
            table = table[order]
            moved = lengths[order]
            ends = np.cumsum(moved)
            within = np.arange(ids.size) - np.repeat(ends - moved, moved)
            ids = ids[np.repeat(starts[:-1][order], moved) + within]
            starts = np.concatenate(([0], ends))
        whole = table.astype(np.int32, casting="unsafe") if len(table) else table
        columns = np.ascontiguousarray(whole.T).astype(np.int32)
        return Trace(
            block_size=self.block_size,
            starts=starts.astype(np.int64),
            ids=dense(ids),
            arrival=np.ascontiguousarray(table[:, 0]),
            input_len=columns[1],
            output_len=columns[2],
            session=columns[3],
            turn=columns[4],
            workload=columns[5],
            workloads=tuple(self._workloads) or ("unknown",),
            name=self.name,
            bad=tuple(self.bad),
            bad_count=self.bad_count,
        )


def joined(traces: Iterable[Trace], name: str = "mixed") -> Trace:
    """Several traces as one stream, request by request in the order of arrival.

    Their ids, sessions and workloads stay apart, workloads of one name do not. Raises ValueError
    when block sizes differ.
    """
    parts = [(number, trace, trace.starts.tolist()) for number, trace in enumerate(traces)]
    sizes = {trace.block_size for _, trace, _ in parts}
    if len(sizes) != 1:
        raise ValueError(f"block_size: traces of one stream need one size, have {sorted(sizes)}")
    builder = TraceBuilder(sizes.pop(), name)
    offset = 0
    for number, trace, bounds in parts:
        builder.bad_count += trace.bad_count
        for r in range(trace.requests):
            session = int(trace.session[r])
            builder.add(
                (trace.ids[bounds[r] : bounds[r + 1]].astype(np.int64) + offset).tolist(),
                int(trace.input_len[r]),
                int(trace.output_len[r]),
                float(trace.arrival[r]),
                session=None if session < 0 else (number, session),
                turn=int(trace.turn[r]),
                workload=trace.workloads[trace.workload[r]],
            )
        offset += trace.universe
    return builder.build()


def interleaved(traces: Iterable[Trace]) -> Trace:
    """One stream of one request of each trace in turn; one that is at its end is left out.

    A request's time is its place in the stream, in seconds.
    """
    parts = list(traces)
    places = [
        (turn, number) for number, trace in enumerate(parts) for turn in range(trace.requests)
    ]
    at = {place: float(i) for i, place in enumerate(sorted(places))}
    return joined(
        replace(trace, arrival=np.array([at[turn, number] for turn in range(trace.requests)]))
        for number, trace in enumerate(parts)
    )
