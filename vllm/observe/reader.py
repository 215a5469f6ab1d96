"""Metrics as values that a program can read: what `LLM.get_metrics()` returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family


@dataclass
class Metric:
    """One metric with one set of labels. The name is without Prometheus' suffixes."""

    name: str
    labels: dict[str, str]


@dataclass
class Counter(Metric):
    value: int


@dataclass
class Vector(Metric):
    """Counts by position, for metrics that have them."""

    values: list[int]


@dataclass
class Gauge(Metric):
    value: float


@dataclass
class Histogram(Metric):
    """`buckets` counts the observations up to each bound; the last bound is "+Inf"."""

    count: int
    sum: float
    buckets: dict[str, int] = field(default_factory=dict)


def read(registry: CollectorRegistry) -> list[Metric]:
    """All of a registry's vllm metrics."""
    metrics: list[Metric] = []
    for family in registry.collect():
        if not family.name.startswith("vllm:"):
            continue
        if family.type == "counter":
            metrics += [
                Counter(family.name, dict(s.labels), int(s.value))
                for s in family.samples
                if s.name.endswith("_total")
            ]
        elif family.type == "gauge":
            metrics += [Gauge(family.name, dict(s.labels), s.value) for s in family.samples]
        elif family.type == "histogram":
            metrics += _histograms(family)
    return metrics


def _histograms(family: Family) -> Iterable[Histogram]:
    found: dict[tuple[tuple[str, str], ...], Histogram] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        key = tuple(sorted(labels.items()))
        histogram = found.setdefault(key, Histogram(family.name, labels, 0, 0.0))
        if sample.name.endswith("_bucket"):
            histogram.buckets[sample.labels["le"]] = int(sample.value)
        elif sample.name.endswith("_count"):
            histogram.count = int(sample.value)
        elif sample.name.endswith("_sum"):
            histogram.sum = sample.value
    return found.values()
