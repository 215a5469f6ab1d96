"""What statistics and users are told of prompts: each token once, as found or as computed."""

from __future__ import annotations

from collections.abc import Mapping

from vllm.core.request import EngineStats
from vllm.scheduler.sequence import Sequence


def started(
    stats: EngineStats, sequence: Sequence, cached: int, sources: Mapping[str, int]
) -> None:
    """It starts for the first time; so many of its tokens were cached.

    sources: the same by tier; nothing of what forks share.
    """
    sequence.cached = sequence.counted = cached
    sequence.cached_by_source = dict(sources)
    if sequence.index > 0:
        return
    if "compressed" in sources:  # the ordinary cache was not asked
        stats.compressed_prefix_hits += sources["compressed"]
    elif not sequence.request.params.skip_reading_prefix_cache:
        stats.prefix_requests += 1
        stats.prefix_queries += sequence.length
        _hits(stats, sources)


def saved(stats: EngineStats, sequence: Sequence, sources: Mapping[str, int]) -> None:
    """So many more, by tier, were found after it had started."""
    sequence.cached += sum(sources.values())
    sequence.counted += sum(sources.values())
    for tier, tokens in sources.items():
        known = sequence.cached_by_source.get(tier, 0)
        sequence.cached_by_source[tier] = known + tokens
    if sequence.index == 0:
        _hits(stats, sources)


def computed(stats: EngineStats, sequence: Sequence) -> None:
    """A preempted prompt is computed again, and not counted again."""
    known = min(sequence.computed, sequence.prompt_len)
    if sequence.index == 0 and known > sequence.counted:
        stats.computed_prompt_tokens += known - sequence.counted
        sequence.counted = known


def _hits(stats: EngineStats, sources: Mapping[str, int]) -> None:
    for tier, tokens in sources.items():
        if tier == "device":
            stats.prefix_hits += tokens
        else:
            stats.tier_hits[tier] = stats.tier_hits.get(tier, 0) + tokens
