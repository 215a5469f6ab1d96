"""Old door: what `LLM.get_metrics()` returns."""

from vllm.observe.reader import Counter, Gauge, Histogram, Metric, Vector

__all__ = ["Counter", "Gauge", "Histogram", "Metric", "Vector"]
