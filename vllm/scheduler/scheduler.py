"""Continuous batching with chunked prefill under one token budget.

    plan = scheduler.schedule(now)
    result = executor.execute(plan)
    outputs = scheduler.update(plan, result)

Each step gives every sequence a number of tokens to compute; there are no prefill and decode
phases. Decodes come first, so that a long prompt never delays the tokens of those who stream; what
is left of the budget goes to prompts, oldest first. Cached tokens are not computed and not charged.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm.config import SchedulerConfig
from vllm.config.compression import CompressionSettings
from vllm.core.plan import Foresight, StepPlan, StepResult
from vllm.core.request import EngineRequest, EngineStats, SequenceOutput, TokenLogprobs
from vllm.kv.manager import KVManager
from vllm.observe.prefix_metrics import PrefixMetrics
from vllm.scheduler import prompts, stop, window
from vllm.scheduler.admission import Admission
from vllm.scheduler.coast import Coast, Point
from vllm.scheduler.compression import Compression
from vllm.scheduler.draft import Draft, as_new
from vllm.scheduler.order import ORDERS
from vllm.scheduler.queue import Queue, place, put
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
        self._queue = Queue(config)
        self.running: list[Sequence] = []
        self._config = config
        chunk = config.max_num_batched_tokens if config.enable_chunked_prefill else None
        self._compression = Compression(compression, kv, chunk)
        self._admission = Admission(config, kv, self._compression)
        self._order = ORDERS[config.policy]
        self._max_model_len = max_model_len
        self._seed = seed
        self._numbers = 0
        self.loading: dict[int, Sequence] = {}  # admitted, with blocks on their way from a tier
        self._arrived: list[Sequence] = []  # loaded, and not in a plan yet
        self._by_request: dict[str, list[Sequence]] = {}  # those of the request's n that are left
        self.paused = False  # nothing is planned until it is false again
        self._untold: list[SequenceOutput] = []  # of requests that were rejected, or that coasted
        self._forget: list[int] = []  # what the workers shall forget at the next step
        self._park: list[int] = []  # and what they shall park
        self._draft = Draft(0)  # of the step that is being planned or executed
        self._decodes: list[Sequence] = []  # that it has rows for, or will
        self._coast: Coast | None = None
        self._stats = EngineStats()
        self.prefix_metrics: PrefixMetrics | None = None

    @property
    def waiting(self) -> list[Sequence]:
        return self._queue.sequences

    def foresee(self, foresight: Foresight) -> None:
        """Let decodes coast: nobody needs each token as it comes. Before the first request."""
        if (
            self._compression.enabled
            or self._config.max_num_seqs > self._config.max_num_batched_tokens
        ):
            return  # a decode's next step might compress it, or find no budget left
        self._coast = Coast(foresight, self.kv.spec.block_size)

    # ---- requests -----------------------------------------------------------------------------

    def add(self, request: EngineRequest, now: float) -> None:
        """Queue a request, or reject it when the queue is at its limits."""
        longest = self._compression.longest(request, self._max_model_len)
        refusal = self._refusal(request, longest)
        if refusal:
            reason, detail = refusal
            self._untold.append(
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
                    longest=longest,
                    place=self._order(request, self._numbers),
                    queued=now,
                )
            )
        for sequence in sequences:
            self._compression.prepare(sequence)
        first, *forks = sequences
        first.forks = forks
        self._by_request[request.request_id] = sequences
        self._enqueue(first)
        self._admission.seek(first)

    def _refusal(self, request: EngineRequest, longest: int) -> tuple[str, str] | None:
        if request.request_id in self._by_request:
            return "invalid", f"a request with the id {request.request_id} is in the engine already"
        tokens = len(request.prompt_token_ids)
        if tokens >= longest:
            return "invalid", (
                f"the prompt has {tokens} tokens, and the KV cache has room for {longest} of such "
                "a request; max_cache_tokens or target_compression_rate would let it keep fewer KVs"
            )
        full = self._queue.full(tokens)
        return None if full is None else ("rejected", full)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests, wherever they are; their blocks are free at once. Unknown ids are fine.

        Called between steps only, so no step is writing to the blocks.
        """
        self._wake_all()
        gone = dict.fromkeys(request_ids)
        self._untold = [output for output in self._untold if output.request_id not in gone]
        for request_id in gone:
            for sequence in self._by_request.pop(request_id, ()):
                self._remove(sequence)

    def end(self, outputs: Iterable[tuple[str, int]]) -> None:
        """Finish single outputs, (request id, index), of requests; unknown ones are fine."""
        self._wake_all()
        for request_id, index in outputs:
            for sequence in self._by_request.get(request_id, ()):
                if sequence.index == index:
                    self._finish(sequence)
                    break

    def _enqueue(self, sequence: Sequence) -> None:
        self._queue.add(sequence)
        request = sequence.request
        if request.block_keys and not self.kv.holds(sequence.number):
            self.kv.introduce(sequence.number, request.cache_salt, request.block_keys)

    def _remove(self, sequence: Sequence) -> None:
        if sequence.running:
            self.running.remove(sequence)
            sequence.running = False
            self._forget.append(sequence.number)
        elif sequence in self._arrived:
            self._arrived.remove(sequence)
        elif self.loading.pop(sequence.number, None) is None and sequence in self.waiting:
            self._queue.remove(sequence)
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
            return bool(self._untold)
        return bool(
            self.running or self.waiting or self.in_transfer or self._untold or self.coasting
        )

    def requeue(self) -> None:
        """Queue again all that runs or loads, and take back what the waiting hold: no KV is held.

        Called between steps only. What was computed is computed again, or found in the cache.
        """
        self._wake_all()
        for sequence in reversed(self.running[:]):
            self._preempt(sequence, aside=False)
        for sequence in [*self._arrived, *self.loading.values()]:
            self.kv.release(sequence.number)
            self._enqueue(sequence)
        self._arrived, self.loading = [], {}
        for sequence in self.waiting:
            self.kv.release(sequence.number)

    @property
    def coasting(self) -> int:
        """Sequences that decode beside those in `running`."""
        return 0 if self._coast is None else len(self._coast)

    def _wake(self, points: list[Point]) -> list[Sequence]:
        for point in points:
            put(self.running, point.sequence)
            if point.said:
                request, index = point.sequence.request, point.sequence.index
                self._untold.append(SequenceOutput(request.request_id, index, point.said))
        return [point.sequence for point in points]

    def _wake_all(self) -> list[Sequence]:
        return [] if self._coast is None else self._wake(self._coast.wake())

    def _grow_coasting(self) -> None:
        """Blocks for those that coast; if there may be too few, they have rows like the others."""
        growing = [] if self._coast is None else self._coast.grow()
        if not growing or self._coast is None:
            return
        if self.kv.available < len(growing) + len(self.running):
            self._wake(self._coast.wake(growing))
            return
        for sequence in growing:
            added = self.kv.grow(sequence.number, sequence.computed + 1)
            assert added is not None

    def _parked(self) -> list[Sequence]:
        return [s for s in [*self.waiting, *self._arrived, *self.loading.values()] if s.parked]

    # ---- a step -------------------------------------------------------------------------------

    def schedule(self, now: float) -> StepPlan:
        """The next step. An empty plan means that there is nothing to run."""
        draft = self._draft = Draft(self._config.max_num_batched_tokens)
        self._compression.begin()
        self.kv.uses.now = now
        if self.paused:
            return self._plan(None)
        preemptions = self._stats.preemptions
        self._take_arrivals()
        self._meet()
        if self._compression.enabled:
            self._compress_first()
        self._grow_coasting()

        draft.budget -= self.coasting
        self._decodes, others = self._decodes_first()
        decodes = len(self._decodes)
        for sequence in self._decodes:
            self._go_on(sequence)
        draft.decodes = len(draft.sequences)
        if len(self._decodes) > decodes:
            draft.sort_decodes()
        for sequence in others:
            self._go_on(sequence)

        # After a preemption there is no room; admitting would only push the same one out again.
        admitting = self._stats.preemptions == preemptions or not self.running
        while draft.budget:
            started = self._next(draft.budget, now, admitting=admitting)
            if started is None or not self._begin(started):
                break
        if self._config.prefetch:
            self._admission.prefetch(self.waiting)
        return self._plan(self._coast)

    def _go_on(self, sequence: Sequence) -> None:
        """A row for one that runs, as far as there are budget and room."""
        budget = self._draft.budget
        if budget == 0 or not sequence.running:  # preempted by one before it
            return
        count = self._share(sequence, budget)
        if count == 0:
            return
        added = self._grow(sequence, sequence.computed + count)
        if added is None:
            return
        self._draft.add(sequence, count, added)
        if self._compression.enabled:
            self._compression.planned(sequence, sequence.computed + count)

    def _begin(self, sequence: Sequence) -> bool:
        """A row for one that starts. False when there is no room any more."""
        number = sequence.number
        count = self._share(sequence, self._draft.budget)
        head_blocks = self.kv.head_blocks(number)
        choice = self.kv.choice(number)
        held: list[int]
        if head_blocks is None:
            held = [*self.kv.blocks(number)]
        else:
            if choice is None:
                count = min(count, self.kv.spec.block_size)
            added = self.kv.grow(number, sequence.computed + count)
            if added is None:  # the room that there was at its admission has gone
                self._preempt(sequence, aside=False)
                return False
            held = added
        resumed = sequence.parked and self.kv.resumed(number)
        self._draft.start(sequence, as_new(sequence, resumed, head_blocks, choice), count, held)
        sequence.parked = False
        if self._compression.enabled:
            self._compression.planned(sequence, sequence.computed + count)
        return True

    def _plan(self, coast: Coast | None) -> StepPlan:
        coasting = None
        if coast is not None:
            # Nothing but what coasts can change anything, and nobody waits to be told.
            others = self._draft.sequences or self._untold or self.in_transfer
            alone = not (others or self.kv.tiers)
            coasting = coast.plan(alone=alone)
        plan = self._draft.plan(self._forget, self._park, self._compression.orders, coasting)
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

    def _decodes_first(self) -> tuple[list[Sequence], list[Sequence]]:
        """Who runs, by whether the next token is all that it computes."""
        prompts = [s for s in self.running if s.length - s.computed != 1]
        if not prompts:
            return self.running.copy(), prompts
        return [s for s in self.running if s.length - s.computed == 1], prompts

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

    def _grow(self, sequence: Sequence, tokens: int) -> list[int] | None:
        """Room for the sequence's next tokens, preempting the last in order until there is some.

        A prompt's blocks were reserved at admission, so only decodes come here short; they are
        visited in order, so a victim has no row in the plan yet. None when it was itself the last.
        A sequence that computes again what it had computed behind its first compression may come
        here short after decodes: it waits rather than take from those that are in the plan.
        """
        while (added := self.kv.grow(sequence.number, tokens)) is None:
            if self.kv.spilling:
                return None  # blocks are about to be free
            if self.coasting:
                self._draft.budget += self.coasting
                self._decodes += self._wake_all()
            victim = self.running[-1]
            if victim in self._draft.sequences or self._compression.ordered(victim):
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
        while admitting and self.waiting and self._started < most:
            chosen = self._admit_next(budget, now)
            if chosen is None or chosen.running:
                return chosen
        return None

    @property
    def _started(self) -> int:
        """Sequences that run or load."""
        return len(self.running) + len(self.loading) + self.coasting

    def _admit_next(self, budget: int, now: float) -> Sequence | None:
        """Give blocks to the next in order that can start now; None when none can.

        One that finds no room holds up those behind it: else large requests would wait for ever.
        """
        for sequence in self._admission.candidates(
            self.waiting, lambda: [*self.running, *self.loading.values()]
        ):
            if self._admit(sequence, budget, now):
                return sequence
            idle = not (self.running or self.coasting or self.in_transfer)
            if idle and self._drop_holds(sequence) and self._admit(sequence, budget, now):
                return sequence
            return None
        return None

    def _admit(self, sequence: Sequence, budget: int, now: float) -> bool:
        alone = len(self.waiting) == 1
        cached = self._admission.admit(sequence, budget, self.running, self._started, alone=alone)
        if cached is None:
            return False
        window.overtake(self.waiting, sequence)
        self._queue.remove(sequence)
        if self.kv.waits(sequence.number):
            self.loading[sequence.number] = sequence
        else:
            self._start(sequence, cached, now)
        return True

    def _start(self, sequence: Sequence, cached: int, now: float) -> None:
        put(self.running, sequence)
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
        self._draft = Draft(0)

    def update(self, plan: StepPlan, result: StepResult) -> list[SequenceOutput]:
        """Apply what a step did: tokens, publication, forks, stops; what users get of it."""
        outputs = self._untold
        self._untold = []
        points = self._coasted(plan, result)
        counts, samples = plan.counts.tolist(), plan.sample.tolist()
        sampled = iter(range(len(result.tokens)))
        for row, sequence in enumerate(self._draft.sequences):
            while points and (
                row >= self._draft.decodes or points[0].sequence.place < sequence.place
            ):
                outputs.append(self._come_to(points.pop(0)))
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
        outputs += [self._come_to(point) for point in points]
        self._settle(plan, result)
        if plan.num_sequences:
            coasting = 0 if plan.coasting is None else plan.coasting.sequences
            self._stats.step_tokens += [sum(counts) + coasting] * result.steps
        self._let_coast()
        self._draft = Draft(0)
        self.kv.write_back()
        if self.kv.events is not None:
            self.kv.events.flush()
        return outputs

    def _coasted(self, plan: StepPlan, result: StepResult) -> list[Point]:
        """Those that coast are further; who has come to a point, in order."""
        if self._coast is None or plan.coasting is None:
            return []
        if result.last is not None:
            self.kv.uses.now = result.last
        self._stats.generated_tokens += result.steps * len(self._coast)
        return self._coast.done(result.steps)

    def _come_to(self, point: Point) -> SequenceOutput:
        sequence = point.sequence
        self.kv.publish(sequence.number, sequence.tokens, sequence.computed)
        output = SequenceOutput(sequence.request.request_id, sequence.index, point.said)
        if point.awake:
            put(self.running, sequence)
            self._tell(sequence, output)
        return output

    def _let_coast(self) -> None:
        if self._coast is None or self.kv.meeting:
            return
        for sequence in self._draft.sequences:
            if sequence.running and self._coast.takes(sequence):
                self.running.remove(sequence)

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
        output.token_ids = [result.tokens[at]]
        sequence.say(output.token_ids)
        self._stats.generated_tokens += 1
        if result.logprobs is not None:
            logprobs = result.logprobs[at]
            output.logprobs = None if logprobs is None else [logprobs]
        self._tell(sequence, output)

    def _tell(self, sequence: Sequence, output: SequenceOutput) -> None:
        """What comes with its latest tokens, and whether they are the last."""
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
        stats.running, stats.waiting = len(self.running) + self.coasting, len(self.waiting)
        stats.kv_usage = self.kv.usage
        self.kv.add_stats(stats)
        return stats

    def check(self) -> None:
        """AssertionError unless the scheduler's invariants, and the cache's, hold."""
        self.kv.check()
        self._queue.check()
        assert self.running == sorted(self.running, key=place)
        assert len(self.running) + self.coasting <= self._config.max_num_seqs
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
        if self._coast is not None:
            self._coast.check()
            queued |= self._coast.numbers()
        assert known == queued | forks, "every sequence is queued, running or waits to fork"
