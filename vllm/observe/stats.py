"""The line that tells every few seconds what the engine does."""

from __future__ import annotations

import logging
import os
from collections import deque

from vllm.core.clock import Clock, monotonic
from vllm.core.request import EngineStats

logger = logging.getLogger(__name__)

HIT_RATE_REQUESTS = 1000


class HitRate:
    """Share of looked-up tokens that were cached, over the last requests that looked any up."""

    def __init__(self, requests: int = HIT_RATE_REQUESTS) -> None:
        self._most = requests
        self._window: deque[tuple[int, int, int]] = deque()
        self._requests = self._queries = self._hits = 0

    def add(self, requests: int, queries: int, hits: int) -> None:
        if not requests:
            return
        self._window.append((requests, queries, hits))
        self._requests += requests
        self._queries += queries
        self._hits += hits
        while len(self._window) > 1 and self._requests > self._most:
            old = self._window.popleft()
            self._requests -= old[0]
            self._queries -= old[1]
            self._hits -= old[2]

    @property
    def value(self) -> float:
        return self._hits / self._queries if self._queries else 0.0


class StatsLog:
    """Collects statistics and logs a line an interval: INFO when there was work, DEBUG if idle.

    `record` may log; `tick` is for those who want the line without traffic too.
    """

    def __init__(
        self, *, device: str = "CPU", interval: float | None = None, clock: Clock = monotonic
    ) -> None:
        if interval is None:
            interval = float(os.environ.get("VLLM_LOG_STATS_INTERVAL", "10"))
        self._device, self._interval, self._clock = device, interval, clock
        self._since = clock()
        self._last = EngineStats()
        self._prompt = self._generated = self._preemptions = 0
        self._hit_rate = HitRate()
        self._was_active = False

    def record(self, stats: EngineStats) -> None:
        self._last = stats
        self._prompt += stats.computed_prompt_tokens
        self._generated += stats.generated_tokens
        self._preemptions += stats.preemptions
        self._hit_rate.add(stats.prefix_requests, stats.prefix_queries, stats.prefix_hits)
        self.tick()

    def tick(self) -> None:
        """Log if the interval has passed."""
        now = self._clock()
        if self._interval <= 0 or now - self._since < self._interval:
            return
        line = self.line(now - self._since)
        active = bool(self._prompt or self._generated or self._last.running or self._last.waiting)
        # One more INFO line after the work ends, so that the log's last word is not "running".
        logger.log(logging.INFO if active or self._was_active else logging.DEBUG, "%s", line)
        self._was_active = active
        self._since = now
        self._prompt = self._generated = self._preemptions = 0

    def line(self, seconds: float) -> str:
        """The prompt throughput counts what was computed, not what was cached."""
        last = self._last
        parts = [
            f"Avg prompt throughput: {self._prompt / seconds:.1f} tokens/s",
            f"Avg generation throughput: {self._generated / seconds:.1f} tokens/s",
            f"Running: {last.running} reqs",
            f"Waiting: {last.waiting} reqs",
            f"{self._device} KV cache usage: {last.kv_usage * 100:.1f}%",
            f"Prefix cache hit rate: {self._hit_rate.value * 100:.1f}%",
        ]
        if self._preemptions:
            parts.append(f"Preemptions: {self._preemptions}")
        return f"Engine 000: {', '.join(parts)}"
