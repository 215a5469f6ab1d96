"""The engine's compression settings, out of its arguments."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.core.compression import CompressionParams

AGGREGATIONS = ("L1-sum", "L2-sum", "L1-avg", "L2-avg")
EXPECTED_WINDOW, RKV_WINDOW = 64, 8


@dataclass(frozen=True)
class CompressionSettings:
    """What holds for every request of an engine that compresses; `defaults` may be overridden.

    interval: steps between compressions of a decoding sequence. max_kvs: KVs that one step may
    compress. new_token_limit: compress once so many tokens were generated since the last time.
    """

    defaults: CompressionParams = field(default_factory=CompressionParams)
    interval: int = 1
    max_kvs: int = 5_000_000
    new_token_limit: int | None = None
    window: int = 32
    block: int = 4096
    aggregation: str = "L2-sum"
    max_pool: bool = True
    only_prefill: bool = False
    value_norm: bool = False
    control_layers: tuple[int, ...] = ()
    bias_path: str | None = None
    bias_weight: float = 1.0
    share_prefixes: bool = False
    seed: int = 0

    def window_of(self, metric: str) -> int | None:
        """How many of the last prompt queries a metric must see. 0: none, None: all of them."""
        return {
            "kvc": self.window,
            "kvc-full": None,
            "snapkv": self.window,
            "h2o": None,
            "tova": 1,
            "expected-attention": EXPECTED_WINDOW,
            "rkv": RKV_WINDOW,
        }.get(metric, 0)
