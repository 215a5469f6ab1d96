"""Which executor carries out an engine's plans: the one place that knows all of them."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.core.plan import Executor
from vllm.engine.capacity import Capacity


def make_executor(config: VllmConfig, capacity: Capacity) -> Executor:
    """One worker in this process. Raises ValueError for a model that cannot be loaded."""
    from vllm.worker.executor.uniproc import UniprocExecutor

    return UniprocExecutor(config, capacity.spec, capacity.num_blocks, capacity.max_model_len)
