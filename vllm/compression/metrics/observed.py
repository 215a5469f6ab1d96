"""What a metric sees, and what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor


@dataclass
class Observed:
    """What one layer of one sequence shows a metric. Heads may keep different KVs; rows are padded.

    Query head q belongs to KV head q // (Q // H).
    """

    queries: Tensor  # [W, Q, D], after rotary; W may be 0
    query_positions: Tensor  # int64 [W], logical
    read: Callable[[int], Tensor]  # gives `keys` for 0, `values` for 1
    positions: Tensor  # int64 [H, T], logical; -1 where padding
    scale: float
    running: Tensor | None = None  # float32 [H, T]: the sum of what `observe` returned before
    layer: int = 0
    length: int | None = None  # logical length of the sequence now; None: behind the last query
    buffer: int = 0  # a query says nothing of the KVs of fewer than so many positions before it
    since: int = 0  # queries before this position have been observed, or are of no interest
    decoding: bool = False  # these are the queries of decode steps, not of the prompt
    keep: int | None = None  # KVs a head that the budget comes to on average
    output: Tensor | None = None  # [hidden, Q * D], the layer's output projection
    # Turns [..., T, D] by int64 [T] further positions, a pure rotation; None: no rotary embedding.
    rotate: Callable[[Tensor, Tensor], Tensor] | None = None

    @cached_property
    def keys(self) -> Tensor:
        """[H, T, D], after rotary, in storage order; read when first asked for."""
        return self.read(0)

    @cached_property
    def values(self) -> Tensor:
        """[H, T, D]"""
        return self.read(1)

    @property
    def valid(self) -> Tensor:
        """bool [H, T]"""
        return self.positions >= 0

    @property
    def now(self) -> int:
        """The logical position of the newest token."""
        if self.length is not None:
            return self.length - 1
        newest = self.query_positions if len(self.query_positions) else self.positions
        return int(newest.max())


class Metric(Protocol):
    """How much each KV is worth. It holds no state of any sequence.

    window: how many of the last prompt queries it must see; 0: none, it goes by keys and positions;
    None: all of them. The runner keeps the last `window` for `score`. accumulates: whether to call
    `observe`; without it there is no `running`. decode: whether it wants decode steps' queries too.
    block: how many of the prompt's queries `observe` must see together, in blocks that start at
    multiples of it, when window is None; so chunked prefill gives what whole prefill gives.
    """

    window: int | None
    accumulates: bool
    decode: bool
    block: int | None

    def observe(self, o: Observed) -> Tensor:
        """float32 [H, T]: what these queries add to `running`, 0 where padding."""
        ...

    def score(self, o: Observed) -> Tensor:
        """float32 [H, T], higher is kept; anything where padding."""
        ...
