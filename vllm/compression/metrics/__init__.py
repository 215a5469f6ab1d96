"""Metrics: how much each KV of a sequence is worth keeping. One file a metric.

The runner shows a metric one layer of one sequence at a time. A metric that `accumulates` is asked
to `observe` each block of queries once; what it returns is summed in `Observed.running`, which
moves along with the KVs. `score` then turns that, or the last queries, into scores.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.compression.metrics.expected_attention import ExpectedAttention
from vllm.compression.metrics.h2o import H2O
from vllm.compression.metrics.head_bias import HeadBias
from vllm.compression.metrics.keydiff import KeyDiff
from vllm.compression.metrics.knorm import Knorm
from vllm.compression.metrics.kvc import KVC
from vllm.compression.metrics.kvc_diff import KVCDiff
from vllm.compression.metrics.observed import Metric, Observed
from vllm.compression.metrics.random import Random
from vllm.compression.metrics.recency import Recency
from vllm.compression.metrics.rkv import RKV
from vllm.compression.metrics.snapkv import SnapKV
from vllm.compression.metrics.tova import TOVA
from vllm.compression.metrics.value_norm import ValueNorm
from vllm.config.compression import CompressionSettings

METRICS: dict[str, Callable[[CompressionSettings], Metric]] = {
    "kvc-diff": lambda s: KVCDiff.of(s, s.window),
    "kvc": lambda s: KVC.of(s, s.window),
    "kvc-full": lambda s: KVC.of(s, None),
    "snapkv": lambda s: SnapKV(s.window),
    "h2o": lambda s: H2O(),
    "tova": lambda s: TOVA(),
    "knorm": lambda s: Knorm(),
    "keydiff": lambda s: KeyDiff(),
    "expected-attention": lambda s: ExpectedAttention(),
    "rkv": lambda s: RKV(),
    "recency": lambda s: Recency(),
    "random": lambda s: Random(s.seed),
}


def make(name: str, settings: CompressionSettings) -> Metric:
    """The metric of that name with the settings' wrappers around it.

    Raises ValueError for an unknown name.
    """
    if name not in METRICS:
        raise ValueError(f"compression_metric must be one of {', '.join(METRICS)}, not {name!r}")
    metric = METRICS[name](settings)
    if settings.value_norm:
        metric = ValueNorm(metric)
    if settings.bias is not None:
        metric = HeadBias(metric, settings.bias, settings.bias_weight)
    return metric


__all__ = ["METRICS", "Metric", "Observed", "make"]
