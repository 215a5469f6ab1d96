"""Which executor carries out an engine's plans: the one place that knows all of them."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.engine.capacity import Capacity
from vllm.engine.core import Machine


def make_executor(config: VllmConfig, capacity: Capacity) -> Machine:
    """One worker in this process, or the simulator. Raises ValueError for what cannot be loaded."""
    if config.simulator is not None:
        from vllm.simulator.executor import SimulatedExecutor

        return SimulatedExecutor(config, capacity)
    from vllm.worker.executor.uniproc import UniprocExecutor

    return UniprocExecutor(config, capacity.spec, capacity.num_blocks, capacity.max_model_len)
