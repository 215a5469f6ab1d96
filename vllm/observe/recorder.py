"""What a server records: its metrics, and the log line."""

from __future__ import annotations

from vllm.core.request import EngineStats
from vllm.observe.metrics import Metrics
from vllm.observe.stats import StatsLog


class ServerRecorder(Metrics):
    """Metrics whose step statistics also feed the log line."""

    def __init__(self, model_name: str, log: StatsLog, *, max_model_len: int = 32768) -> None:
        super().__init__(model_name, max_model_len=max_model_len)
        self.log = log

    def step(self, stats: EngineStats) -> None:
        super().step(stats)
        self.log.record(stats)
