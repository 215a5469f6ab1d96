"""The engine core: requests in, tokens out. No text, no HTTP, no torch.

plan = scheduler.schedule(now)
result = executor.execute(plan)
outputs = scheduler.update(plan, result)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from vllm.config import VllmConfig
from vllm.config.engine import TierConfig
from vllm.config.identity import weights_identity
from vllm.core.clock import Clock
from vllm.core.errors import VLLMValidationError
from vllm.core.plan import Executor, StepPlan
from vllm.core.request import EngineRequest, StepOutputs
from vllm.engine.capacity import Capacity, capacity
from vllm.engine.sleep import Sleep
from vllm.kv.events import Events, Publisher
from vllm.kv.manager import KVManager
from vllm.kv.sessions import VERBS
from vllm.kv.spec import fingerprint
from vllm.observe.prefix_metrics import PrefixMetrics
from vllm.observe.residency import Residency
from vllm.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

IDLE_WAIT = 0.002  # seconds; while only transfers are under way, messages are looked at this often
FLUSH = 2.0  # seconds that the tiers get at the end to take what is only on the device


class Machine(Executor, Protocol):
    """An executor, and what memory lies under its device."""

    def attach_tiers(self, kv: KVManager, config: TierConfig, fingerprint: bytes) -> None: ...


ExecutorFactory = Callable[[VllmConfig, Capacity], Machine]


class EngineCore:
    """Scheduler, cache manager and executor, driven one `step` at a time by whoever owns it."""

    def __init__(
        self, config: VllmConfig, make_executor: ExecutorFactory, clock: Clock | None = None
    ) -> None:
        """clock: the executor's own unless another is given."""
        self.capacity = capacity(config)
        self.executor = make_executor(config, self.capacity)
        self._clock = clock or self.executor.clock
        identity = weights_identity(config.model, config.load.load_format)
        key_root = fingerprint(self.capacity.spec, identity)
        kv = KVManager(
            self.capacity.spec,
            self.capacity.num_blocks,
            key_root,
            enable_caching=config.cache.enable_prefix_caching,
            policy=config.cache.eviction_policy,
        )
        if config.cache.tiers is not None:
            self.executor.attach_tiers(kv, config.cache.tiers, key_root)
            if config.scheduler.prefetch:
                kv.enable_prefetching()
        if config.compression is not None and config.compression.share:
            kv.share_compressed(self.executor.blocks)
        if config.cache.events is not None:
            kv.tell(Events(self.capacity.spec.block_size, Publisher(config.cache.events)))
        self.scheduler = Scheduler(
            config.scheduler,
            kv,
            max_model_len=self.capacity.max_model_len,
            seed=config.model.seed,
            compression=config.compression,
        )
        if config.cache.metrics_sample:
            kv.pool.residency = Residency(config.cache.metrics_sample)
        if config.prefix_metrics is not None:
            self.scheduler.prefix_metrics = PrefixMetrics(config.prefix_metrics, self._clock())
        self._sleep = Sleep(self.scheduler, self.executor)

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
        idle = not (plan.seqs or plan.compress or plan.coasting)
        if idle and (self.scheduler.in_transfer or self.scheduler.waiting):
            self.scheduler.kv.wait(IDLE_WAIT)
        start = self._clock()
        try:
            result = self.executor.execute(plan)
        except BaseException:
            self.scheduler.recall(plan)
            raise
        self._learn(plan, self._clock() - start)
        outputs = self.scheduler.update(plan, result)
        return StepOutputs(outputs, self.scheduler.take_stats(), self._clock())

    def _learn(self, plan: StepPlan, seconds: float) -> None:
        """Tell the tiers how fast prompts are computed, from steps that did little else."""
        tiers = self.scheduler.kv.tiers
        if tiers is not None and plan.seqs and plan.num_tokens >= 16 * plan.num_sequences:
            tiers.cost.prefilled(plan.num_tokens, seconds)

    def reset_prefix_cache(self, running: bool = False, below: bool = False) -> bool:
        """Forget the device's cached KVs; with `below`, also those of slower tiers.

        False, and nothing is forgotten, while requests hold some of them; with `running`, those
        requests give them up and compute them again.
        """
        if running:
            self.scheduler.requeue()
        return self.scheduler.kv.reset(below=below)

    def sleep(self, level: int = 1) -> None:
        """Stop planning and give memory back; see `engine.sleep`."""
        self._sleep.begin(level)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        return self._sleep.end(tags)

    def is_sleeping(self) -> bool:
        return bool(self._sleep)

    def start_profile(self) -> str:
        return self.executor.start_profile()

    def stop_profile(self) -> str:
        return self.executor.stop_profile()

    def collective_rpc(
        self, method: str | Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        return self.executor.collective_rpc(method, args, kwargs)

    def dump_prefix_metrics(self) -> dict[str, int]:
        """Write both files; how many rows there are, and how many were lost for want of room.

        Raises ValueError when the engine collects none, OSError when they cannot be written.
        """
        if self.scheduler.prefix_metrics is None:
            raise ValueError("this engine was started without prefix_metrics")
        return self.scheduler.prefix_metrics.dump()

    def cache_session(
        self, session: str, verb: str, ttl: float | None = None, salt: str | None = None
    ) -> int:
        """pin, demote, prefetch or release the blocks of a session; how many are cached.

        Raises VLLMValidationError for another verb.
        """
        if verb not in VERBS:
            raise VLLMValidationError(
                f"a session's verb is one of {', '.join(VERBS)}", parameter="verb", value=verb
            )
        self.scheduler.kv.uses.now = self._clock()
        return self.scheduler.kv.session(session, verb, ttl, salt)

    def check(self) -> bool:
        """Assert every invariant; for tests and debugging."""
        self.scheduler.check()
        return True

    def tidy(self) -> bool:
        """What there is to do while no request is here. False when there is nothing left."""
        tiers = self.scheduler.kv.tiers
        return tiers is not None and tiers.tidy()

    def shutdown(self) -> None:
        tiers = self.scheduler.kv.tiers
        if tiers is not None:
            tiers.flush(FLUSH)
            tiers.close()
        if self.scheduler.kv.events is not None:
            self.scheduler.kv.events.close()
        if self.scheduler.prefix_metrics is not None:
            self._dump_at_the_end()
        self.executor.shutdown()

    def _dump_at_the_end(self) -> None:
        try:
            self.dump_prefix_metrics()
        except OSError as error:
            logger.error("The prefix metrics cannot be written: %s", error)
