"""Prefix-aware order with bounded overtaking: who is looked at first among the oldest N that wait.

A sequence may be overtaken by younger ones, because more of their prefix is cached, but by no more
than N - 1 of them: one that has been is next, whatever else is cached. (Published orders by longest
prefix starve those that miss; k-LPM, which alternates oldest and longest, bounds that too.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vllm.scheduler.sequence import Sequence

Hits = Callable[[Sequence], tuple[int, int]]  # tokens cached on the device, in all tiers


def candidates(waiting: list[Sequence], size: int, hits: Hits) -> Iterator[Sequence]:
    """The first `size` of `waiting` (sorted, oldest first), in the order in which to try them.

    Those that have been overtaken `size - 1` times come first, oldest first; then by cached tokens
    on the device, then in all tiers, then by age.
    """
    window = waiting[:size]
    if len(window) < 2:
        yield from window
        return
    found = {s.number: hits(s) for s in window}
    ranked = sorted(
        enumerate(window),
        key=lambda item: (-found[item[1].number][0], -found[item[1].number][1], item[0]),
    )
    urgent = [s for s in window if s.overtaken >= size - 1]
    yield from urgent
    if not urgent:
        # With somebody urgent who cannot start yet, nobody else may: he would be overtaken again.
        yield from (s for _, s in ranked)


def overtake(waiting: list[Sequence], chosen: Sequence) -> None:
    """`chosen` starts: all that are older and still wait have been overtaken once more."""
    for sequence in waiting:
        if sequence is chosen:
            return
        sequence.overtaken += 1
