"""A scheduler, a fake worker, and a record of what every request was given."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from vllm.config import SchedulerConfig
from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams
from vllm.core.plan import StepPlan
from vllm.core.request import EngineRequest, EngineStats, SequenceOutput, TokenLogprobs
from vllm.core.retention import NO_HINTS, CacheHints
from vllm.kv.manager import KVManager
from vllm.kv.spec import KVSpec
from vllm.sampling_params import SamplingParams
from vllm.scheduler.scheduler import Scheduler
from vllm.scheduler.sequence import Sequence

from .fake import FakeExecutor, oracle, told

BASES = (list(range(50)), [6, 7] * 25)  # prompts begin like one of these


def prompt(length: int, start: int = 0) -> list[int]:
    return [start + i for i in range(length)]


def some_prompt(rng: random.Random, most: int) -> list[int]:
    length = rng.randint(1, most)
    own = min(length, rng.choice([0, 0, 1, 2, 4]))
    return rng.choice(BASES)[: length - own] + [rng.randint(8, 10)] * own


@dataclass
class Told:
    """One output, as its user has it."""

    tokens: list[int] = field(default_factory=list)
    end: tuple[str, int | str | None] | None = None
    cached: int = 0


class Drive:
    def __init__(
        self,
        *,
        blocks: int = 32,
        size: int = 4,
        seqs: int = 8,
        budget: int = 64,
        chunked: bool = True,
        threshold: int = 0,
        policy: str = "fcfs",
        max_model_len: int | None = None,
        caching: bool = True,
        queued_reqs: int | None = None,
        queued_tokens: int | None = None,
        seed: int = 0,
        window: int = 1,
        eviction: str = "lru",
        swap: bool = False,
        prefetch: int = 0,
        heads: int = 1,
        compression: CompressionSettings | None = None,
    ) -> None:
        spec = KVSpec(
            num_layers=1, num_kv_heads=heads, head_dim=1, block_size=size, dtype="float32"
        )
        self.kv = KVManager(spec, blocks, bytes(32), enable_caching=caching, policy=eviction)
        self.max_model_len = max_model_len or blocks * size
        self.scheduler = Scheduler(
            SchedulerConfig(
                policy,
                seqs,
                budget,
                chunked,
                threshold,
                queued_reqs,
                queued_tokens,
                window,
                swap,
                prefetch,
            ),
            self.kv,
            max_model_len=self.max_model_len,
            seed=seed,
            compression=compression,
        )
        self.fake = FakeExecutor(self.kv, seqs, budget)
        self.requests: dict[str, EngineRequest] = {}
        self.told: dict[tuple[str, int], Told] = {}
        self.prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        self.aborted: set[str] = set()
        self.ended: set[tuple[str, int]] = set()
        self.rejected: dict[str, tuple[str | None, int | str | None]] = {}
        self.finished: list[tuple[str, int]] = []  # in this order
        self.totals = EngineStats()
        self.now = 0.0

    def add(
        self,
        prompt: list[int],
        request_id: str | None = None,
        *,
        priority: int = 0,
        salt: str | None = None,
        arrival: float | None = None,
        eos: tuple[int, ...] = (),
        hints: CacheHints = NO_HINTS,
        compression: CompressionParams | None = None,
        **params,
    ) -> str:
        request_id = request_id or f"r{len(self.requests)}"
        made = SamplingParams(**({"seed": 1000 * len(self.requests)} | params))
        request = EngineRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            params=made,
            max_tokens=made.max_tokens,
            arrival=float(len(self.requests)) if arrival is None else arrival,
            priority=priority,
            cache_salt=salt,
            eos_token_ids=list(eos),
            hints=hints,
            compression=compression,
        )
        self.requests[request_id] = request
        for index in range(made.n):
            self.told[request_id, index] = Told()
        self.scheduler.add(request, self.now)
        return request_id

    def abort(self, *request_ids: str) -> None:
        self.aborted |= set(request_ids)
        self.scheduler.abort(request_ids)

    def end(self, *outputs: tuple[str, int]) -> None:
        self.ended |= set(outputs)
        self.scheduler.end(outputs)

    def step(self) -> StepPlan:
        self.now += 1
        scheduler = self.scheduler
        here = scheduler.waiting or scheduler.running or scheduler.in_transfer
        queued = bool(here) and not scheduler.paused
        plan = scheduler.schedule(self.now)
        assert bool(plan.seqs or plan.compress) == queued or self.may_pause(), (
            "a step with something to do does something"
        )
        for output in scheduler.update(plan, self.fake.execute(plan)):
            self._take(output)
        self._count(scheduler.take_stats())
        scheduler.check()
        return plan

    def overtaking(self) -> list[tuple[Sequence, Sequence]]:
        """A step; (older, younger) for each of the queue that started before one ahead of it."""
        before = list(self.scheduler.waiting)
        self.step()
        left = set(self.scheduler.waiting)
        return [
            (old, young)
            for i, young in enumerate(before)
            if young not in left
            for old in before[:i]
            if old in left
        ]

    def may_pause(self) -> bool:
        """Whether a step may do nothing though requests are here."""
        return False

    def _take(self, output: SequenceOutput) -> None:
        key = (output.request_id, output.index)
        if output.finish_reason in ("rejected", "invalid"):
            self.rejected[output.request_id] = (output.finish_reason, output.stop_reason)
            return
        assert output.request_id not in self.aborted, "an aborted request gave something"
        assert key not in self.ended, "an ended output gave something"
        mine = self.told[key]
        assert mine.end is None, "a finished output gave something"
        mine.tokens += output.token_ids
        if output.token_ids:
            mine.cached = output.num_cached_tokens
        if output.prompt_logprobs:
            self.prompt_logprobs.setdefault(output.request_id, []).extend(output.prompt_logprobs)
        if output.finish_reason is not None:
            mine.end = (output.finish_reason, output.stop_reason)
            self.finished.append(key)

    def _count(self, stats: EngineStats) -> None:
        for tier, tokens in stats.tier_hits.items():
            self.totals.tier_hits[tier] = self.totals.tier_hits.get(tier, 0) + tokens
        for name in (
            "prefix_queries",
            "prefix_hits",
            "compressed_prefix_hits",
            "preemptions",
            "computed_prompt_tokens",
            "generated_tokens",
        ):
            value = getattr(stats, name)
            assert value >= 0
            setattr(self.totals, name, getattr(self.totals, name) + value)
        self.totals.step_tokens.extend(stats.step_tokens)
        assert stats.running == len(self.scheduler.running)
        assert stats.waiting == len(self.scheduler.waiting)
        assert stats.kv_usage == self.kv.usage

    def run(self, most: int | None = None) -> int:
        """Until nothing is left. By default within the steps that all would need one by one, twice:
        the first in order never waits, so a preempted one's second life is the only extra."""
        if most is None:
            most = 10 + 2 * sum(
                r.params.n * min(len(r.prompt_token_ids) + r.max_tokens, self.max_model_len)
                for r in self.requests.values()
            )
        steps = 0
        while self.scheduler.has_work:
            self.step()
            steps += 1
            assert steps <= most, "it does not come to an end"
        return steps

    def expected(self, request_id: str, index: int) -> tuple[list[int], str, int | None]:
        request = self.requests[request_id]
        params = request.params
        return oracle(
            request.prompt_token_ids,
            params.seed + index,
            max_tokens=request.max_tokens,
            max_model_len=self.longest(request),
            stop=tuple(params.stop_token_ids),
            eos=() if params.ignore_eos else tuple(request.eos_token_ids),
            min_tokens=params.min_tokens,
        )

    def longest(self, request: EngineRequest) -> int:
        """Tokens at which its outputs end in any case."""
        return self.max_model_len

    def verify(self) -> None:
        """Everybody got what the oracle says, or its beginning, and nothing is left behind."""
        for (request_id, index), mine in self.told.items():
            if request_id in self.rejected:
                assert not mine.tokens
                continue
            tokens, reason, stop = self.expected(request_id, index)
            if request_id in self.aborted or (request_id, index) in self.ended:
                assert tokens[: len(mine.tokens)] == mine.tokens
            else:
                assert (mine.tokens, mine.end) == (tokens, (reason, stop))
        for request_id, request in self.requests.items():
            self._verify_prompt_logprobs(request_id, request)
        self._verify_counts()
        scheduler, pool = self.scheduler, self.kv._pool
        assert not scheduler.waiting
        assert not scheduler.running
        assert not scheduler._by_request
        assert not scheduler.loading
        assert not scheduler._arrived
        assert not self.kv._expected
        assert scheduler._queue._requests == scheduler._queue._tokens == 0
        assert not self.kv._tables
        assert self.kv.usage == 0
        assert pool._refs == [0] * pool.num_blocks
        assert len(pool._free) + len(pool._policy) == pool.num_blocks
        self.fake.execute(scheduler.schedule(self.now))  # the last orders to forget
        assert not self.fake.rows

    def _verify_prompt_logprobs(self, request_id: str, request: EngineRequest) -> None:
        got = self.prompt_logprobs.get(request_id, [])
        if request.params.prompt_logprobs is None:
            assert not got
            return
        prompt = request.prompt_token_ids
        expected = [told(prompt[: p + 1]) for p in range(1, len(prompt))]
        if request_id in self.aborted or request_id in self.rejected:
            expected = expected[: len(got)]
        assert got == expected

    def _verify_counts(self) -> None:
        totals = self.totals
        assert totals.generated_tokens == sum(len(t.tokens) for t in self.told.values())
        assert sum(totals.step_tokens) == sum(self.fake.computed.values())
        prompts = sum(
            len(r.prompt_token_ids) for i, r in self.requests.items() if i not in self.rejected
        )
        hits = totals.prefix_hits + sum(totals.tier_hits.values())
        known = totals.computed_prompt_tokens + hits + totals.compressed_prefix_hits
        assert known <= prompts
        if not self.aborted:
            assert known == prompts, "a prompt's tokens are cached or computed, each once"
        assert hits <= totals.prefix_queries <= prompts
