"""How much of its KV cache one request keeps, and by which rule: plain numbers, no tensors."""

from __future__ import annotations

import math

import msgspec

METRICS = (
    "kvc-diff",
    "kvc",
    "kvc-full",
    "snapkv",
    "h2o",
    "tova",
    "knorm",
    "keydiff",
    "expected-attention",
    "rkv",
    "recency",
    "random",
)
DEFAULT_METRIC = METRICS[0]
BUDGET_RULES = ("global", "per-layer", "uniform", "pyramid")
# The fields of SamplingParams that ask for compression.
WISHES = (
    "max_cache_tokens",
    "target_compression_rate",
    "protected_window_size",
    "compress_once",
    "metric_collection_buffer_size",
    "compression_metric",
    "sinks",
    "protected_spans",
    "shared_prefix_tokens",
)
MAX_SPANS = 64


class CompressionParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request's compression, resolved: the client's wishes over the engine's defaults.

    max_cache_tokens: KVs a head, on average over all layers and heads. target_compression_rate:
    the share of the unprotected KVs that stays, in (0, 1]; it counts where max_cache_tokens is
    None. window: how many of the last prompt queries the metric must see; 0: none, None: all.
    protected_spans: [start, end) token ranges that are kept whole. shared_prefix_tokens: so many of
    the prompt's first tokens are compressed before the rest, to be shared. head_floor: the share of
    an even split that every head is sure of.
    """

    max_cache_tokens: int | None = None
    target_compression_rate: float = 1.0
    protected_window_size: int = 64
    compress_once: bool = False
    metric_collection_buffer_size: int = 0
    metric: str = DEFAULT_METRIC
    window: int | None = 32
    sinks: int = 0
    protected_spans: tuple[tuple[int, int], ...] = ()
    shared_prefix_tokens: int | None = None
    budget_rule: str = "global"
    head_floor: float = 0.0

    @property
    def asks_for_nothing(self) -> bool:
        return self.max_cache_tokens is None and self.target_compression_rate == 1.0

    def budget(self, length: int, heads: int, block_size: int) -> int:
        """KVs that a sequence of `length` tokens keeps over its `heads` (layers times KV heads).

        What is protected counts towards it. A rate keeps its share of what is not protected; what
        is, is taken in whole blocks.
        """
        whole = length * heads
        if self.max_cache_tokens is not None:
            return min(whole, _up(self.max_cache_tokens, block_size) * heads)
        protected = min(length, _up(self.protected_tokens(length), block_size))
        open_to_choice = (length - protected) * heads
        return min(
            whole, math.ceil(open_to_choice * self.target_compression_rate) + protected * heads
        )

    def shape(self, length: int) -> bytes:
        """Equal for two requests only if both compress the same `length` first tokens alike."""
        spans = tuple((a, min(b, length)) for a, b in self.protected_spans if a < length)
        plain = msgspec.structs.replace(
            self, protected_spans=spans, compress_once=False, shared_prefix_tokens=None
        )
        return msgspec.msgpack.encode(plain)

    def protected_tokens(self, length: int) -> int:
        """How many of the first `length` positions every head keeps whatever the budget."""
        kept = [
            (0, self.sinks),
            (length - self.protected_window_size, length),
            *self.protected_spans,
        ]
        total = end = 0
        for first, last in sorted((max(0, a), min(b, length)) for a, b in kept):
            total += max(0, last - max(first, end))
            end = max(end, last)
        return total


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class CompressionStats(msgspec.Struct, frozen=True, omit_defaults=True):
    """What compression did to one sequence. KVs are counted over all layers and heads."""

    logical: int  # KVs that it would hold uncompressed
    kept: int
    times: int  # that it was compressed
    head_lengths: list[list[int]] = []  # [L][H]: KVs of each head

    @property
    def ratio(self) -> float:
        return self.logical / max(1, self.kept)
