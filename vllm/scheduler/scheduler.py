"""Continuous batching with chunked prefill under one token budget.

    plan = scheduler.schedule(now)
    result = executor.execute(plan)
    outputs = scheduler.update(plan, result)

Each step gives every sequence a number of tokens to compute; there are no prefill and decode
phases. Decodes come first, so that a long prompt never delays the tokens of those who stream; what
is left of the budget goes to prompts, oldest first. Cached tokens are not computed and not charged.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable

import numpy as np

from vllm.config import SchedulerConfig
from vllm.config.compression import CompressionSettings
from vllm.core.plan import Choice, NewSequence, StepPlan, StepResult
from vllm.core.request import EngineRequest, EngineStats, SequenceOutput, TokenLogprobs
from vllm.kv.lineage import Key
from vllm.kv.manager import KVManager
from vllm.observe.prefix_metrics import PrefixMetrics
from vllm.scheduler import prompts, stop, window
from vllm.scheduler.compression import Compression
from vllm.scheduler.order import ORDERS
from vllm.scheduler.sequence import Sequence


class Scheduler:
    """All requests of an engine: `waiting` and `running`, both sorted by the policy's order."""

    def __init__(
        self,
        config: SchedulerConfig,
        kv: KVManager,
        *,
        max_model_len: int,
        seed: int = 0,
        compression: CompressionSettings | None = None,
    ) -> None:
        self.kv = kv
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._config = config
        chunk = config.max_num_batched_tokens if config.enable_chunked_prefill else None
        self._compression = Compression(compression, kv, chunk)
        self._order = ORDERS[config.policy]
        self._max_model_len = max_model_len
        self._seed = seed
        self._numbers = 0
        self.loading: dict[int, Sequence] = {}  # admitted, with blocks on their way from a tier
        self._arrived: list[Sequence] = []  # loaded, and not in a plan yet
        self._by_request: dict[str, list[Sequence]] = {}  # those of the request's n that are left
        self._queued_reqs = self._queued_tokens = 0  # of requests of which nothing has started
        self.paused = False  # nothing is planned until it is false again
        self._rejected: list[SequenceOutput] = []
        self._forget: list[int] = []  # what the workers shall forget at the next step
        self._park: list[int] = []  # and what they shall park
        self._planned: list[Sequence] = []  # the rows of the plan that is being executed
        self._stats = EngineStats()
        self.prefix_metrics: PrefixMetrics | None = None

    # ---- requests -----------------------------------------------------------------------------

    def add(self, request: EngineRequest, now: float) -> None:
        """Queue a request, or reject it when the queue is at its limits."""
        longest = self._compression.longest(request, self._max_model_len)
        refusal = self._refusal(request, longest)
        if refusal:
            reason, detail = refusal
            self._rejected.append(
                SequenceOutput(request.request_id, 0, [], finish_reason=reason, stop_reason=detail)
            )
            return
        params = request.params
        sequences = []
        for index in range(params.n):
            self._numbers += 1
            own = (self._seed << 32) + self._numbers if params.seed is None else params.seed + index
            sequences.append(
                Sequence(
                    number=self._numbers,
                    request=request,
                    index=index,
                    sampling_seed=own,
                    tokens=list(request.prompt_token_ids),
                    longest=longest,
                    queued=now,
                )
            )
        for sequence in sequences:
            self._compression.prepare(sequence)
        first, *forks = sequences
        first.forks = forks
        self._by_request[request.request_id] = sequences
        self._enqueue(first)
        self.kv.seek(first.number, first.tokens, request.cache_salt, self._readable(first))

    def _refusal(self, request: EngineRequest, longest: int) -> tuple[str, str] | None:
        if request.request_id in self._by_request:
            return "invalid", f"a request with the id {request.request_id} is in the engine already"
        tokens = len(request.prompt_token_ids)
        if tokens >= longest:
            return "invalid", (
                f"the prompt has {tokens} tokens, and the KV cache has room for {longest} of such "
                "a request; max_cache_tokens or target_compression_rate would let it keep fewer KVs"
            )
        most = self._config.max_num_queued_reqs
        if most is not None and self._queued_reqs >= most:
            return "rejected", "max_num_queued_reqs"
        most = self._config.max_num_queued_tokens
        if most is not None and self._queued_reqs and self._queued_tokens + tokens > most:
            return "rejected", "max_num_queued_tokens"
        return None

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests, wherever they are; their blocks are free at once. Unknown ids are fine.

        Called between steps only, so no step is writing to the blocks.
        """
        for request_id in request_ids:
            for sequence in self._by_request.pop(request_id, ()):
                self._remove(sequence)

    def end(self, outputs: Iterable[tuple[str, int]]) -> None:
        """Finish single outputs, (request id, index), of requests; unknown ones are fine."""
        for request_id, index in outputs:
            for sequence in self._by_request.get(request_id, ()):
                if sequence.index == index:
                    self._finish(sequence)
                    break

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=self._order)
        request = sequence.request
        if request.block_keys and not self.kv.holds(sequence.number):
            self.kv.introduce(sequence.number, request.cache_salt, map(Key, request.block_keys))
        if sequence.index == 0:  # the others only wait once their request has started
            self._queued_reqs += 1
            self._queued_tokens += len(sequence.tokens)

    def _dequeue(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        if sequence.index == 0:
            self._queued_reqs -= 1
            self._queued_tokens -= len(sequence.tokens)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.running:
            self.running.remove(sequence)
            sequence.running = False
            self._forget.append(sequence.number)
        elif sequence in self._arrived:
            self._arrived.remove(sequence)
        elif self.loading.pop(sequence.number, None) is None and sequence in self.waiting:
            self._dequeue(sequence)
        if sequence.parked:
            self._forget.append(sequence.number)
        self.kv.release(sequence.number)

    @property
    def in_transfer(self) -> bool:
        """Whether sequences wait for blocks from a slower tier."""
        return bool(self.loading or self._arrived)

    @property
    def has_work(self) -> bool:
        if self.paused:
            return bool(self._rejected)
        return bool(self.running or self.waiting or self.in_transfer or self._rejected)

    def requeue(self) -> None:
        """Queue again all that runs or loads, and take back what the waiting hold: no KV is held.

        Called between steps only. What was computed is computed again, or found in the cache.
        """
        for sequence in reversed(self.running[:]):
            self._preempt(sequence, aside=False)
        for sequence in [*self._arrived, *self.loading.values()]:
            self.kv.release(sequence.number)
            self._enqueue(sequence)
        self._arrived, self.loading = [], {}
        for sequence in self.waiting:
            self.kv.release(sequence.number)

    def _parked(self) -> list[Sequence]:
        return [s for s in [*self.waiting, *self._arrived, *self.loading.values()] if s.parked]

    # ---- a step -------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan:
        """The next step. An empty plan means that there is nothing to run."""
        self._planned = []
        self._compression.begin()
        self.kv.uses.now = now
        if self.paused:
            return self._plan([], [], [], [])
        counts: list[int] = []
        blocks: list[list[int]] = []
        new: list[NewSequence] = []
        budget = self._config.max_num_batched_tokens
        preemptions = self._stats.preemptions
        self._take_arrivals()
        self._meet()
        compressing = self._compression.enabled
        if compressing:
            self._compress_first()

        for sequence in self._decodes_first():
            if budget == 0:
                break
            if not sequence.running:
                continue  # preempted by one before it
            count = self._share(sequence, budget)
            if count == 0:
                continue
            added = self._grow(sequence, sequence.computed + count)
            if added is None:
                continue
            self._planned.append(sequence)
            counts.append(count)
            blocks.append(list(added))
            budget -= count
            if compressing:
                self._compression.planned(sequence, sequence.computed + count)

        # After a preemption there is no room; admitting would only push the same one out again.
        admitting = self._stats.preemptions == preemptions or not self.running
        while budget:
            started = self._next(budget, now, admitting=admitting)
            if started is None:
                break
            count = self._share(started, budget)
            head_blocks = self.kv.head_blocks(started.number)
            choice = self.kv.choice(started.number)
            held: list[int]
            if head_blocks is None:
                held = [*self.kv.blocks(started.number)]
            else:
                if choice is None:
                    count = min(count, self.kv.spec.block_size)
                added = self.kv.grow(started.number, started.computed + count)
                if added is None:  # the room that there was at its admission has gone
                    self._preempt(started, aside=False)
                    break
                held = [*added]
            resumed = started.parked and self.kv.resumed(started.number)
            new.append(_as_new(started, resumed, head_blocks, choice))
            started.parked = False
            self._planned.append(started)
            counts.append(count)
            blocks.append(held)
            budget -= count
            if compressing:
                self._compression.planned(started, started.computed + count)

        if self._config.prefetch:
            self._prefetch()
        return self._plan(self._planned, counts, blocks, new)

    def _plan(
        self,
        rows: list[Sequence],
        counts: list[int],
        blocks: list[list[int]],
        new: list[NewSequence],
    ) -> StepPlan:
        starts = np.array([s.computed for s in rows], dtype=np.int32)
        sizes = np.array(counts, dtype=np.int32)
        known = np.array([len(s.tokens) for s in rows], dtype=np.int32)
        plan = StepPlan(
            seqs=[s.number for s in rows],
            starts=starts,
            counts=sizes,
            sample=starts + sizes == known,
            blocks=blocks,
            new=new,
            forget=self._forget,
            park=self._park,
            compress=self._compression.orders,
        )
        self._forget, self._park = [], []
        return plan

    def _compress_first(self) -> None:
        """Compressions that earlier steps had no room for; and some before memory runs out.

        Who is being compressed computes nothing in the step.
        """
        compression = self._compression
        for sequence in [s for s in self.running if s.awaiting]:
            while sequence.running and not compression.order(sequence):
                victim = self.running[-1]
                if victim is not sequence and not compression.orders:
                    self._preempt(victim)
                    continue
                if len(self.running) == 1 and self._drop_holds(sequence):
                    continue
                if len(self.running) == 1:
                    compression.give_up(sequence)
                break
        compression.relieve(self.running)

    def _decodes_first(self) -> list[Sequence]:
        prompts = [s for s in self.running if len(s.tokens) - s.computed != 1]
        if not prompts:
            return self.running.copy()
        return [s for s in self.running if len(s.tokens) - s.computed == 1] + prompts

    def _share(self, sequence: Sequence, budget: int) -> int:
        """How many of its tokens the sequence may compute this step."""
        most = sequence.until
        if most == 1:
            return 1  # nobody asks without budget
        count = min(most, budget)
        if self.kv.meeting:
            count = min(count, self.kv.front(sequence.number, sequence.computed) or count)
        if not self._config.enable_chunked_prefill:
            return count if count == most else 0
        limit = self._config.long_prefill_token_threshold
        return min(count, limit) if limit else count

    def _grow(self, sequence: Sequence, tokens: int) -> Iterable[int] | None:
        """Room for the sequence's next tokens, preempting the last in order until there is some.

        A prompt's blocks were reserved at admission, so only decodes come here short; they are
        visited in order, so a victim has no row in the plan yet. None when it was itself the last.
        A sequence that computes again what it had computed behind its first compression may come
        here short after decodes: it waits rather than take from those that are in the plan.
        """
        while (added := self.kv.grow(sequence.number, tokens)) is None:
            if self.kv.spilling:
                return None  # blocks are about to be free
            victim = self.running[-1]
            if victim in self._planned or self._compression.ordered(victim):
                return None
            if len(self.running) == 1 and self._drop_holds(sequence):
                continue
            self._preempt(victim)
            if victim is sequence:
                return None
        return added

    def _preempt(self, sequence: Sequence, *, aside: bool = True) -> None:
        """Give the sequence's blocks back and queue it again.

        What it had computed is copied aside, where that is wanted and there is room; else it
        recomputes what is not cached. One that is about to be compressed could compute nothing
        when it comes back, so it starts again as well.
        """
        self.running.remove(sequence)
        sequence.running = False
        aside &= self._config.swap and not sequence.awaiting
        sequence.parked = aside and self.kv.spill(sequence.number, sequence.computed)
        if not sequence.parked:
            self.kv.release(sequence.number)
        (self._park if sequence.parked else self._forget).append(sequence.number)
        sequence.computed = 0
        sequence.preemptions += 1
        self._stats.preemptions += 1
        self._enqueue(sequence)

    def _next(self, budget: int, now: float, *, admitting: bool) -> Sequence | None:
        """The next sequence that starts in this step: it holds blocks for all of its tokens."""
        if self._arrived:
            sequence = self._arrived[0]
            if not self._config.enable_chunked_prefill and sequence.remaining > budget:
                return None
            self._arrived.pop(0)
            self._start(sequence, self.kv.cached(sequence.number), now)
            return sequence
        most = self._config.max_num_seqs
        while admitting and self.waiting and len(self.running) + len(self.loading) < most:
            chosen = self._admit_next(budget, now)
            if chosen is None or chosen.running:
                return chosen
        return None

    def _admit_next(self, budget: int, now: float) -> Sequence | None:
        """Give blocks to the next in order that can start now; None when none can.

        One that finds no room holds up those behind it: else large requests would wait for ever.
        """
        size = self._config.window_size
        for sequence in window.candidates(self.waiting, size, self._hits):
            if size > 1 and sequence.overtaken < size - 1 and self._is_deferred(sequence):
                continue
            if self.kv.seeks(sequence.number):
                continue  # for a moment: those behind it that are looked at may go first
            if self._admit(sequence, budget, now):
                return sequence
            idle = not (self.running or self.in_transfer)
            if idle and self._drop_holds(sequence) and self._admit(sequence, budget, now):
                return sequence
            return None
        return None

    def _prefetch(self) -> None:
        """Bring up what the rest of the window will need."""
        ahead = self.waiting[: self._config.prefetch]
        self.kv.keep_prefetched({s.number for s in ahead})
        for sequence in ahead:
            salt = sequence.request.cache_salt
            self.kv.prefetch(sequence.number, sequence.tokens, salt, self._readable(sequence))

    def _hits(self, sequence: Sequence) -> tuple[int, int]:
        device, everywhere = self.kv.probe(
            sequence.number,
            sequence.tokens,
            sequence.request.cache_salt,
            self._readable(sequence),
        )
        shared = self._compression.found(sequence)
        return max(device, shared), max(everywhere, shared)

    def _is_deferred(self, sequence: Sequence) -> bool:
        """Whether another sequence is computing what this one would compute first."""
        if self._compression.found(sequence):
            return False
        if self._compression.deferred(sequence, [*self.running, *self.loading.values()]):
            return True
        return bool(self._readable(sequence)) and self.kv.deferred(
            sequence.number, sequence.tokens, sequence.request.cache_salt
        )

    def _admit(self, sequence: Sequence, budget: int, now: float) -> bool:
        saved = self._admit_shared(sequence, budget)
        if saved is not None:
            window.overtake(self.waiting, sequence)
            self._dequeue(sequence)
            self._start(sequence, saved, now)
            return True
        if not self._config.enable_chunked_prefill and len(sequence.dense) > budget:
            return False
        cached = self.kv.admit(
            sequence.number,
            sequence.dense,
            salt=sequence.request.cache_salt,
            limit=self._readable(sequence),
            headroom=self._headroom(sequence) + self._behind(sequence),
            hints=sequence.request.hints,
            may_meet=self._is_alone(sequence),
        )
        if cached is None:
            return False
        window.overtake(self.waiting, sequence)
        self._dequeue(sequence)
        if self.kv.waits(sequence.number):
            self.loading[sequence.number] = sequence
        else:
            self._start(sequence, cached, now)
        return True

    def _admit_shared(self, sequence: Sequence, budget: int) -> int | None:
        """Let it begin with a compressed prefix that others made: the tokens that this saves."""
        if not self._compression.found(sequence) or sequence.shared is None:
            return None
        (first, _), *later = sequence.points
        end = later[0][0] if later else len(sequence.tokens)
        if not self._config.enable_chunked_prefill and end - first > budget:
            return None
        headroom = self._headroom(sequence)
        return self.kv.admit_shared(sequence.number, sequence.shared, end, headroom)

    def _is_alone(self, sequence: Sequence) -> bool:
        """Whether computing in parts, where it might load, takes nothing from anybody's prompt."""
        return (
            self._config.enable_chunked_prefill
            and not sequence.points
            and len(self.waiting) == 1
            and all(other.remaining == 1 for other in self.running)
        )

    def _headroom(self, sequence: Sequence) -> int:
        """Blocks that admitting the sequence must leave: each that runs may need one for its next
        token, and one of them at a time enough for its compressed form."""
        count = len(self.running) + len(self.loading)
        if count == 0:
            return 0
        return count + self._compression.headroom([sequence, *self.running])

    def _behind(self, sequence: Sequence) -> int:
        """Blocks for the rest of a prompt that is computed behind a compressed prefix."""
        if not (self.running or self.loading):
            return 0
        return self._compression.blocks_behind(sequence)

    def _start(self, sequence: Sequence, cached: int, now: float) -> None:
        insort(self.running, sequence, key=self._order)
        sequence.running = True
        sequence.computed = cached
        if not self.kv.compressed(sequence.number):
            sequence.applied = 0
        elif self.kv.choice(sequence.number) is not None:
            sequence.applied = 1
        if sequence.cached >= 0:
            return
        sequence.scheduled = now
        prompts.started(self._stats, sequence, cached, self.kv.sources(sequence.number))
        if sequence.index == 0 and self.prefix_metrics is not None:
            keys = self.kv.prompt_keys(sequence.number, sequence.prompt_len)
            found = cached // self.kv.spec.block_size
            told = self.prefix_metrics.admitted(sequence.request, cached, keys, found, now)
            sequence.told = told

    def _meet(self) -> None:
        """Sequences whose next blocks have been loaded behind them start again, further on."""
        for sequence in self.running[:] if self.kv.meeting else ():
            saved = self.kv.met(sequence.number, sequence.computed)
            if saved is None:
                continue
            self.running.remove(sequence)
            sequence.running = False
            self._forget.append(sequence.number)
            self._arrived.append(sequence)
            if sequence.preemptions == 0:
                prompts.saved(self._stats, sequence, saved)
                if sequence.told is not None and self.prefix_metrics is not None:
                    size, end = self.kv.spec.block_size, self.kv.cached(sequence.number)
                    keys = self.kv.prompt_keys(sequence.number, end)
                    first = (end - sum(saved.values())) // size
                    self.prefix_metrics.saved(sequence.told, keys[first:], size)

    def _take_arrivals(self) -> None:
        """Loads that ended: their sequences start, or queue again where one failed."""
        arrived, failed = self.kv.poll()
        for number in arrived:
            if number in self.loading:
                self._arrived.append(self.loading.pop(number))
        for number in failed:
            if number in self.loading:
                self._enqueue(self.loading.pop(number))

    def _readable(self, sequence: Sequence) -> int:
        """How many of its tokens the sequence may take from the cache."""
        if sequence.request.params.skip_reading_prefix_cache:
            return 0
        return min(len(sequence.dense) - 1, self._compression.readable(sequence))

    def _drop_holds(self, keep: Sequence) -> bool:
        """Nothing else runs, and there is too little room: take back what waiting forks hold."""
        holders = [s for s in self.waiting if s is not keep and self.kv.holds(s.number)]
        for sequence in holders:
            self.kv.release(sequence.number)
        return bool(holders)

    def recall(self, plan: StepPlan) -> None:
        """The plan was carried out in part or not at all, so nobody knows what the workers know.

        They shall forget everything, and all that runs starts again.
        """
        parked = [s.number for s in self._parked()]
        self._forget = plan.forget + parked + self._forget
        self._park = []
        self.requeue()
        self._planned = []

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Apply what a step did: tokens, publication, forks, stops; what users get of it."""
        outputs = self._rejected
        self._rejected = []
        counts, samples = plan.counts.tolist(), plan.sample.tolist()
        sampled = iter(range(len(result.tokens)))
        for row, sequence in enumerate(self._planned):
            before = sequence.computed
            sequence.computed += counts[row]
            self.kv.publish(sequence.number, sequence.tokens, sequence.computed)
            if sequence.counted < sequence.prompt_len:
                prompts.computed(self._stats, sequence)
            if sequence.forks and sequence.computed >= sequence.prompt_len:
                self._start_forks(sequence)
            output = SequenceOutput(sequence.request.request_id, sequence.index, [])
            if result.prompt_logprobs is not None and sequence.index == 0:
                self._tell_prompt_logprobs(sequence, output, before, result.prompt_logprobs)
            if samples[row]:
                self._append(sequence, output, result, next(sampled))
            if output.token_ids or output.prompt_logprobs or output.finish_reason:
                outputs.append(output)
        self._settle(plan, result)
        if self._planned:
            self._stats.step_tokens.append(plan.num_tokens)
        self._planned = []
        self.kv.write_back()
        if self.kv.events is not None:
            self.kv.events.flush()
        return outputs

    def _settle(self, plan: StepPlan, result: StepResult) -> None:
        """Swap the tables of those that were compressed, but for those that have ended by it."""
        if not plan.compress:
            return
        running = {s.number: s for s in self.running}
        for order, lengths in zip(plan.compress, result.kept, strict=True):
            if order.seq in running:
                self._stats.compressions += 1
                choice = result.choices.get(order.seq)
                gone = self._compression.settle(running[order.seq], order, lengths, choice)
                self._stats.dropped_kvs += gone

    def _append(
        self, sequence: Sequence, output: SequenceOutput, result: StepResult, at: int
    ) -> None:
        if result.failed is not None and sequence.number in result.failed:
            output.finish_reason, output.stop_reason = "error", result.failed[sequence.number]
            self._finish(sequence)
            return
        token = result.tokens[at]
        sequence.tokens.append(token)
        self._stats.generated_tokens += 1
        output.token_ids = [token]
        if result.logprobs is not None:
            logprobs = result.logprobs[at]
            output.logprobs = None if logprobs is None else [logprobs]
        output.num_cached_tokens = sequence.cached
        output.cached_by_source = sequence.cached_by_source
        output.queued, output.scheduled = sequence.queued, sequence.scheduled
        output.preemptions = sequence.preemptions
        end = stop.finish(sequence)
        if end is not None or sequence.request.params.stop:  # any output may meet a stop string
            output.compression = self._compression.stats(sequence)
        if end is not None:
            output.finish_reason, output.stop_reason = end
            self._finish(sequence)

    def _tell_prompt_logprobs(
        self,
        sequence: Sequence,
        output: SequenceOutput,
        before: int,
        told: dict[int, list[TokenLogprobs]],
    ) -> None:
        chunk = told.get(sequence.number)
        if chunk:
            output.prompt_logprobs = chunk[max(0, sequence.prompt_logprobs_sent - before) :]
            sequence.prompt_logprobs_sent = max(sequence.prompt_logprobs_sent, before + len(chunk))

    def _start_forks(self, parent: Sequence) -> None:
        """The prompt is computed: the request's other outputs share its full blocks."""
        for child in parent.forks:
            if self.kv.compressed(parent.number):  # it has no blocks that others could share
                self._enqueue(child)
                continue
            # Not the last token: computing it is what gives the child logits to sample from. And
            # each compresses for itself, so it computes what its metric must see as well.
            shared = min(len(child.dense) - 1, self._compression.readable(child))
            self.kv.fork(parent.number, child.number, shared)
            self._enqueue(child)
        parent.forks = []

    def _finish(self, sequence: Sequence) -> None:
        self._remove(sequence)
        left = self._by_request[sequence.request.request_id]
        left.remove(sequence)
        if not left:
            del self._by_request[sequence.request.request_id]

    # ---- looking at it ------------------------------------------------------------------------

    def take_stats(self) -> EngineStats:
        """Gauges now, and counts since the last call."""
        stats, self._stats = self._stats, EngineStats()
        stats.running, stats.waiting = len(self.running), len(self.waiting)
        stats.kv_usage = self.kv.usage
        self.kv.add_stats(stats)
        return stats

    def check(self) -> None:
        """AssertionError unless the scheduler's invariants, and the cache's, hold."""
        self.kv.check()
        assert self.waiting == sorted(self.waiting, key=self._order)
        assert self.running == sorted(self.running, key=self._order)
        first = [s for s in self.waiting if s.index == 0]
        assert self._queued_reqs == len(first)
        assert self._queued_tokens == sum(len(s.tokens) for s in first)
        assert len(self.running) <= self._config.max_num_seqs
        for sequence in self.running:
            assert self.kv.holds(sequence.number) and sequence.remaining >= 1
            assert sequence.computed <= self.kv.capacity(sequence.number)
            assert self.kv.compressed(sequence.number) == (sequence.applied > 0)
            assert 0 <= sequence.until <= sequence.remaining
        known = {s.number for group in self._by_request.values() for s in group}
        forks = {f.number for group in self._by_request.values() for s in group for f in s.forks}
        assert all(self.kv.waits(number) for number in self.loading)
        assert all(self.kv.holds(s.number) for s in self._arrived)
        queued = {s.number for s in [*self.waiting, *self.running, *self._arrived]}
        queued |= self.loading.keys()
        assert known == queued | forks, "every sequence is queued, running or waits to fork"


def _as_new(
    sequence: Sequence, resumed: bool, head_blocks: np.ndarray | None, choice: Choice | None
) -> NewSequence:
    request = sequence.request
    return NewSequence(
        seq=sequence.number,
        tokens=list(sequence.tokens),
        prompt_len=sequence.prompt_len,
        params=request.params,
        sampling_seed=sequence.sampling_seed,
        eos_token_ids=request.eos_token_ids,
        bad_words_token_ids=request.bad_words_token_ids,
        grammar=request.grammar,
        compression=sequence.compression,
        resumed=resumed,
        head_blocks=head_blocks,
        stages=[t for t, _ in sequence.points if t < sequence.prompt_len],
        choice=choice,
    )
