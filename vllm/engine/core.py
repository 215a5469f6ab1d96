"""The engine core: requests in, tokens out. No text, no HTTP, no torch.

plan = scheduler.schedule(now)
result = executor.execute(plan)
outputs = scheduler.update(plan, result)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from vllm.config import VllmConfig
from vllm.config.identity import weights_identity
from vllm.core.clock import Clock, monotonic
from vllm.core.plan import Executor
from vllm.core.request import EngineRequest, StepOutputs
from vllm.engine.capacity import Capacity, capacity
from vllm.kv.manager import KVManager
from vllm.kv.spec import fingerprint
from vllm.scheduler.scheduler import Scheduler

ExecutorFactory = Callable[[VllmConfig, Capacity], Executor]


class EngineCore:
    """Scheduler, cache manager and executor, driven one `step` at a time by whoever owns it."""

    def __init__(
        self, config: VllmConfig, make_executor: ExecutorFactory, clock: Clock = monotonic
    ) -> None:
        self.capacity = capacity(config)
        self._clock = clock
        self.executor = make_executor(config, self.capacity)
        kv = KVManager(
            self.capacity.spec,
            self.capacity.num_blocks,
            fingerprint(
                self.capacity.spec, weights_identity(config.model, config.load.load_format)
            ),
            enable_caching=config.cache.enable_prefix_caching,
        )
        self.scheduler = Scheduler(
            config.scheduler,
            kv,
            max_model_len=self.capacity.max_model_len,
            seed=config.model.seed,
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: EngineRequest) -> None:
        self.scheduler.add(request, self._clock())

    def abort(self, request_ids: Iterable[str]) -> None:
        self.scheduler.abort(request_ids)

    def end(self, outputs: Iterable[tuple[str, int]]) -> None:
        """These outputs, (request id, index), met a stop string in the front end."""
        self.scheduler.end(outputs)

    def step(self) -> StepOutputs:
        plan = self.scheduler.schedule(self._clock())
        try:
            result = self.executor.execute(plan)
        except BaseException:
            self.scheduler.recall(plan)
            raise
        outputs = self.scheduler.update(plan, result)
        return StepOutputs(outputs, self.scheduler.take_stats(), self._clock())

    def reset_prefix_cache(self) -> bool:
        return self.scheduler.kv.reset()

    def check(self) -> bool:
        """Assert every invariant; for tests and debugging."""
        self.scheduler.check()
        return True

    def shutdown(self) -> None:
        self.executor.shutdown()
