"""Requests through simulated engines in virtual time, open loop or by session."""

from __future__ import annotations

import gc
import heapq
import itertools
import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Protocol

from vllm.config import VllmConfig
from vllm.config.failures import Failures
from vllm.core.request import EngineRequest, SequenceOutput
from vllm.core.retention import CacheHints
from vllm.engine.core import EngineCore, ExecutorFactory
from vllm.kv.lineage import Key
from vllm.sampling_params import SamplingParams
from vllm.simulator.clock import VirtualClock
from vllm.simulator.executor import SimulatedExecutor


@dataclass(slots=True)
class Ask:
    """A request that comes at `arrival` seconds. `note` is the caller's own."""

    arrival: float
    prompt: list[int]
    max_tokens: int
    salt: str | None = None
    workload: str = ""
    session: str = ""
    mode: str = ""
    turn: int = 0
    keys: list[bytes] = field(default_factory=list)  # of its full blocks, where they are known
    note: object = None


@dataclass(slots=True)
class Told:
    """What became of it. Times in seconds of the simulation."""

    ask: Ask
    replica: int = 0
    first_token: float = 0.0
    finished: float = 0.0
    cached_tokens: int = 0
    preemptions: int = 0
    finish_reason: str | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    sources: dict[str, int] = field(default_factory=dict)  # cached tokens by tier

    @property
    def output_tokens(self) -> int:
        return len(self.tokens)

    @property
    def ttft(self) -> float:
        return self.first_token - self.ask.arrival

    @property
    def latency(self) -> float:
        return self.finished - self.ask.arrival

    @property
    def tpot(self) -> float:
        """Seconds an output token after the first."""
        return (self.finished - self.first_token) / max(1, self.output_tokens - 1)


class Replica(Protocol):
    """An engine on a virtual clock, as `drive` and routers see it."""

    number: int

    @property
    def now(self) -> float: ...

    @property
    def busy_seconds(self) -> float:
        """Of steps."""

    @property
    def has_work(self) -> bool: ...

    @property
    def requests(self) -> int:
        """That are in the engine."""

    @property
    def tokens_ahead(self) -> int:
        """That these have not computed yet, of what is known."""

    def cached_tokens(self, ask: Ask) -> int:
        """Leading tokens of its prompt that need not be computed, in whole blocks."""

    def add(self, ask: Ask) -> None:
        """Give the engine a request, at its arrival or as soon as the clock is there.

        Raises ValueError for a prompt that is empty or that the context has no room for, and for
        max_tokens below 1.
        """

    def step(self, next_arrival: float | None = None, others: float = math.inf) -> list[Told]:
        """One step, or several with which nothing ends but with the last; what ended.

        None but the first begins after the next arrival, or after the other replicas' time. With
        nothing to do before the next arrival, until then.
        """

    def check(self) -> None:
        """AssertionError unless every invariant holds."""


def engine(config: VllmConfig, number: int = 0) -> Replica:
    """A simulated engine: over arrays where it is plain enough, which is the same and sooner.

    Raises ValueError for a configuration that is not the simulator's, in virtual time.
    """
    if not plain(config):
        return Simulation(config, number)
    from vllm.simulator.arrays import ArrayEngine

    return ArrayEngine(config, number)


def plain(config: VllmConfig) -> bool:
    """Whether there is nothing in the engine but what `simulator.kernel` has."""
    cache, scheduler, simulator = config.cache, config.scheduler, config.simulator
    return (
        simulator is not None
        and (simulator.clock, simulator.mode) == ("virtual", "random")
        and simulator.failures == Failures()
        and not simulator.latency.startswith("table")
        and (cache.eviction_policy, cache.tiers, cache.events) == ("lru", None, None)
        and (scheduler.policy, scheduler.window_size) == ("fcfs", 1)
        and (scheduler.max_num_queued_reqs, scheduler.max_num_queued_tokens) == (None, None)
        and (config.compression, config.prefix_metrics) == (None, None)
        and find_spec("numba") is not None
    )


def room_for(ask: Ask, longest: int) -> int:
    """Tokens of output that the context has room for.

    Raises ValueError when there are none, or when the request asks nothing or for nothing.
    """
    if not ask.prompt or ask.max_tokens < 1:
        raise ValueError("a request needs a prompt, and max_tokens of at least 1")
    room = longest - len(ask.prompt)
    if room < 1:
        raise ValueError(
            f"a prompt of {len(ask.prompt)} tokens is too long for a context of {longest}"
        )
    return room


COLLECT = 100_000  # objects that were made between two looks of the garbage collector

Follow = Callable[[Told], Iterable[Ask]]
Progress = Callable[[int], object]


def drive(
    replicas: Sequence[Replica],
    asks: Iterable[Ask],
    route: Callable[[Ask], int],
    *,
    follow: Follow | None = None,
    progress: Progress | None = None,
) -> list[Told]:
    """All requests to their ends, in the order in which they end.

    Each replica has a clock of its own; the one that is behind goes first, so a request is routed
    by what the replicas are when it comes. follow: what a finished request brings about.
    """
    usual = gc.get_threshold()
    gc.freeze()  # or the collector would look through all the long prompts again and again
    gc.set_threshold(COLLECT, *usual[1:])  # nothing here is in cycles
    try:
        return list(_ended(replicas, asks, route, follow, progress))
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _ended(
    replicas: Sequence[Replica],
    asks: Iterable[Ask],
    route: Callable[[Ask], int],
    follow: Follow | None,
    progress: Progress | None,
) -> Iterator[Told]:
    numbers = itertools.count()
    queue = [(ask.arrival, next(numbers), ask) for ask in asks]
    heapq.heapify(queue)
    while True:
        busy = [replica for replica in replicas if replica.has_work]
        first = min(busy, key=lambda replica: replica.now, default=None)
        if queue and (first is None or queue[0][0] <= first.now):
            ask = heapq.heappop(queue)[2]
            replicas[route(ask)].add(ask)
            continue
        if first is None:
            return
        others = min((r.now for r in busy if r is not first), default=math.inf)
        for told in first.step(queue[0][0] if queue else None, others):
            yield told
            if progress is not None:
                progress(1)
            for ask in follow(told) if follow is not None else ():
                heapq.heappush(queue, (ask.arrival, next(numbers), ask))


class Simulation:
    """The real engine as a `Replica`. The same requests and seed give the same results."""

    def __init__(
        self, config: VllmConfig, number: int = 0, make: ExecutorFactory = SimulatedExecutor
    ) -> None:
        """Raises ValueError for a configuration that is not the simulator's, in virtual time."""
        if config.simulator is None or config.simulator.clock != "virtual":
            raise ValueError("a simulation needs simulator and simulator_clock virtual")
        self.number = number
        # `random` goes on as long as it may; the other modes say themselves when they end.
        ends = config.model.eos_token_ids or (config.model.vocab_size - 1,)
        self._ends = None if config.simulator.mode == "random" else list(ends)
        self.core = EngineCore(config, make)
        executor = self.core.executor
        assert isinstance(executor, SimulatedExecutor)
        assert isinstance(executor.clock, VirtualClock)
        self.executor, self.clock = executor, executor.clock
        self.core.scheduler.foresee(executor)
        self._names = itertools.count()
        self._running: dict[str, Told] = {}
        # One for each length; most are asked for many times.
        self._params = lru_cache(maxsize=4096)(self._new_params)

    @property
    def now(self) -> float:
        return self.clock.now

    @property
    def busy_seconds(self) -> float:
        return self.executor.busy_seconds

    @property
    def has_work(self) -> bool:
        return self.core.has_work

    @property
    def requests(self) -> int:
        scheduler = self.core.scheduler
        here = len(scheduler.running) + len(scheduler.waiting) + len(scheduler.loading)
        return here + scheduler.coasting

    @property
    def tokens_ahead(self) -> int:
        scheduler = self.core.scheduler
        ahead = (*scheduler.running, *scheduler.waiting, *scheduler.loading.values())
        return sum(sequence.remaining for sequence in ahead) + scheduler.coasting

    def cached_tokens(self, ask: Ask) -> int:
        kv, limit = self.core.scheduler.kv, len(ask.prompt) - 1
        known = [Key(key) for key in ask.keys[: limit // kv.spec.block_size]]
        return kv.found(known or kv.keys(ask.prompt, ask.salt, limit))[1]

    def check(self) -> None:
        self.core.check()

    def _new_params(self, length: int) -> SamplingParams:
        return SamplingParams(max_tokens=length, ignore_eos=self._ends is None, detokenize=False)

    def run(
        self,
        asks: Iterable[Ask],
        *,
        follow: Follow | None = None,
        progress: Progress | None = None,
    ) -> list[Told]:
        """All requests to their ends on this engine alone, as `drive` does it."""
        return drive([self], asks, lambda ask: 0, follow=follow, progress=progress)

    def _idle(self, until: float) -> None:
        """No request is here: the tiers take what is only on the device, as in the real loop."""
        kv = self.core.scheduler.kv
        while self.clock.now < until and self.core.tidy():
            kv.wait(until - self.clock.now)
        self.clock.sleep_until(until)

    def add(self, ask: Ask) -> None:
        length = min(ask.max_tokens, room_for(ask, self.core.capacity.max_model_len))
        if not self.core.has_work:
            self._idle(ask.arrival)
        name = str(next(self._names))
        self._running[name] = Told(ask, self.number)
        self.core.add(
            EngineRequest(
                request_id=name,
                prompt_token_ids=ask.prompt,
                params=self._params(length),
                max_tokens=length,
                eos_token_ids=self._ends or [],
                arrival=ask.arrival,
                cache_salt=ask.salt,
                block_keys=ask.keys,
                hints=CacheHints(workload=ask.workload, session=ask.session, mode=ask.mode),
            )
        )

    def step(self, next_arrival: float | None = None, others: float = math.inf) -> list[Told]:
        before = self.clock.now
        self.executor.horizon = min(others, math.inf if next_arrival is None else next_arrival)
        step = self.core.step()
        outputs, made = step.outputs, step.stats is not None and step.stats.step_tokens
        ended = [told for output in outputs if (told := self._take(output)) is not None]
        if self.clock.now == before and not (outputs or made) and next_arrival is not None:
            self.clock.sleep_until(next_arrival)  # nothing can run before
        return ended

    def _take(self, output: SequenceOutput) -> Told | None:
        told = self._running[output.request_id]
        if not told.tokens and output.token_ids:
            told.first_token = self.clock.now
            told.cached_tokens, told.sources = output.num_cached_tokens, output.cached_by_source
        told.tokens.extend(output.token_ids)
        if output.finish_reason is None:
            return None
        told.preemptions = output.preemptions
        told.finished, told.finish_reason = self.clock.now, output.finish_reason
        del self._running[output.request_id]
        return told
