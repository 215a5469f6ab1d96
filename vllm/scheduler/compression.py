"""When sequences are compressed, and to how much.

A sequence's compressions are points of its own history, (tokens, budget): it is compressed when so
many of its tokens are computed, and computes nothing more until that is done. So what it computes
depends neither on its company nor on when there was room; and one that must start again from its
prompt is compressed at the same points again.

    | prefix, exact | point | tokens behind kept KVs | point | ...
    0               computed == points[0]            computed == points[1]

Three things bend that: the limit on new tokens is the whole batch's, an engine about to run out of
memory compresses before it preempts, and a sequence for whose compressed form there is no room
though it runs alone goes on uncompressed.
"""

from __future__ import annotations

import numpy as np

from vllm.config.compression import CompressionSettings
from vllm.core.compression import CompressionParams, CompressionStats
from vllm.core.plan import Choice, Compress
from vllm.core.request import EngineRequest
from vllm.kv.manager import KVManager
from vllm.scheduler.sequence import Sequence
from vllm.scheduler.sizes import Sizes


class Compression:
    """The scheduler's side: decides, reserves, and takes note of what was done."""

    def __init__(
        self, settings: CompressionSettings | None, kv: KVManager, chunk: int | None = None
    ) -> None:
        """settings: None for an engine that compresses nothing. chunk: tokens of a prompt that one
        step computes at most; None: prompts are not cut."""
        self.enabled = settings is not None
        self._settings = settings or CompressionSettings()
        self._kv = kv
        self._sizes = Sizes(self._settings, kv.spec, kv.num_blocks, chunk)
        self._orders: list[Compress] = []  # of the step that is being planned
        self._spent = 0  # KVs that these compress
        self._generated = 0  # tokens since the limit on new tokens was last reached
        self._limit_reached = False  # in this step: whoever is over budget is compressed

    # ---- what the scheduler asks --------------------------------------------------------------

    def prepare(self, sequence: Sequence) -> None:
        """A sequence has come: the prefix that it is to share is the first to be compressed.

        Of a prompt that is longer than the memory, each stage is, and nothing is shared.
        """
        params = sequence.compression
        if params is None:
            return
        ends = self._sizes.stages(params, sequence.prompt_len)
        if ends:
            sequence.points = [(end, self._sizes.budget(params, end)) for end in ends]
            return
        if params.shared_prefix_tokens is None:
            return
        tokens = params.shared_prefix_tokens
        if tokens * self._kv.heads <= self._sizes.goal(params, tokens):
            return  # all of it stays: what the ordinary cache has of it is as good
        sequence.points.append((tokens, self._sizes.budget(params, tokens)))
        salt = sequence.request.cache_salt
        sequence.shared = self._kv.shared_key(sequence.tokens[:tokens], salt, params.shape(tokens))

    def longest(self, request: EngineRequest, most: int) -> int:
        """To how many tokens, at most `most`, a request's sequences can come in this memory.

        No more than its prompt: it cannot be run.
        """
        whole = self._kv.num_blocks * self._kv.spec.block_size
        params, prompt = request.compression, len(request.prompt_token_ids)
        if most <= whole:
            return most
        if params is None or params.asks_for_nothing or self._sizes.stages(params, prompt) is None:
            return whole
        return self._sizes.longest(params, prompt, most)

    def blocks_behind(self, sequence: Sequence) -> int:
        """Blocks for what is computed of a prompt behind its first compression, at the peak."""
        params, first = sequence.compression, sequence.prefix
        if params is None or first is None:
            return 0
        if self._sizes.too_long(sequence.prompt_len):
            return self._kv.spec.blocks_at_most(self._sizes.bound(params, sequence.prompt_len))
        return self._kv.blocks_for(sequence.prompt_len - first)

    def readable(self, sequence: Sequence) -> int:
        """How many of its tokens may come from the cache: rule R2 of the caching contract."""
        params = sequence.compression
        if params is None:
            return len(sequence.dense)
        if params.window is None:
            return 0
        if params.window == 0:
            return len(sequence.dense)
        return max(0, (sequence.prefix or sequence.prompt_len) - params.window)

    def found(self, sequence: Sequence) -> int:
        """How many tokens a compressed prefix that is there saves it when it is admitted."""
        key = sequence.shared
        if key is None or sequence.request.params.skip_reading_prefix_cache:
            return 0
        return self._kv.shared_tokens(key)

    def deferred(self, sequence: Sequence, others: list[Sequence]) -> bool:
        """Whether one of these is about to make the compressed prefix that it would begin with."""
        params, key = sequence.compression, sequence.shared
        if params is None or key is None or sequence.request.params.skip_reading_prefix_cache:
            return False
        tokens, budget = sequence.points[0]
        if not self._kv.could_share(self._sizes.bound(params, tokens, budget)):
            return False
        return any(other.shared == key and other.applied == 0 for other in others)

    def headroom(self, sequences: list[Sequence]) -> int:
        """Blocks that must stay free so that these can be compressed, one after the other."""
        most = 0
        for sequence in sequences:
            params = sequence.compression
            if params is None or self._kv.compressed(sequence.number):
                continue
            tokens = sequence.prompt_len
            if tokens * self._kv.heads > self._sizes.goal(params, tokens):
                most = max(most, self._sizes.bound(params, tokens))
        return self._kv.blocks_to_reserve(most) if most else 0

    # ---- a step -------------------------------------------------------------------------------

    def begin(self) -> None:
        self._orders, self._spent = [], 0
        limit = self._settings.new_token_limit
        self._limit_reached = limit is not None and self._generated >= limit
        if self._limit_reached:
            self._generated = 0

    @property
    def orders(self) -> list[Compress]:
        return self._orders

    def ordered(self, sequence: Sequence) -> bool:
        """Whether the step compresses it: its blocks are read and written."""
        return any(order.seq == sequence.number for order in self._orders)

    def planned(self, sequence: Sequence, tokens: int) -> None:
        """The step computes the sequence up to `tokens`: order a compression there if one is due.

        One that cannot be had now is tried again: the sequence is `awaiting` it.
        """
        sampled = tokens == sequence.length
        self._generated += sampled
        ends = sampled and sequence.output_len + 1 >= sequence.request.max_tokens
        if sequence.compression is None or ends:
            return
        if sequence.applied == len(sequence.points):
            budget = self._due(sequence, sequence.compression, tokens)
            if budget is None:
                return
            sequence.points.append((tokens, budget))
        if sequence.points[sequence.applied][0] == tokens:
            self.order(sequence)

    def order(self, sequence: Sequence) -> bool:
        """Order the compression at the sequence's next point. False: not in this step."""
        params = sequence.compression
        assert params is not None
        tokens, budget = sequence.points[sequence.applied]
        kvs = self._kv.kept(sequence.number, tokens)
        if self._orders and self._spent + kvs > self._settings.max_kvs:
            return False
        bound = min(kvs, self._sizes.bound(params, tokens, budget))
        head_blocks = self._kv.reserve(sequence.number, bound)
        if head_blocks is None:
            return False
        self._spent += kvs
        shared = sequence.applied == 0 and sequence.shared is not None
        self._orders.append(Compress(sequence.number, tokens, budget, head_blocks, shared))
        return True

    def give_up(self, sequence: Sequence) -> None:
        """There is no room for the compressed form, and nobody else to make room.

        A prompt that is longer than the memory waits: others hold some without running.
        """
        if self._sizes.too_long(sequence.prompt_len):
            return
        del sequence.points[sequence.applied :]
        if not sequence.points:
            sequence.shared = None

    def relieve(self, running: list[Sequence]) -> None:
        """Before anybody is preempted: compress those who have grown since they last were.

        Those who give most back come first, as long as there is room for their compressed form.
        """
        room = self._kv.available - len(running)  # each may need a block for its next token
        able = (s for s in running if s.remaining == 1 and s.compression is not None)
        held = (self._kv.kept(s.number, s.computed) for s in able)
        if room >= self._kv.blocks_to_reserve(max(held, default=0)):
            return  # there is room whoever comes first: nobody's gain matters
        gains = [(self._gain(s), s) for s in running]
        for gain, sequence in sorted((g for g in gains if g[0] > 0), key=lambda g: -g[0]):
            params, tokens = sequence.compression, sequence.computed
            assert params is not None
            kvs = min(self._kv.kept(sequence.number, tokens), self._sizes.bound(params, tokens))
            if room >= self._kv.blocks_to_reserve(kvs):
                return
            sequence.points.append((tokens, self._sizes.budget(params, tokens)))
            if self.order(sequence):
                room += gain
            else:
                sequence.points.pop()

    def settle(
        self, sequence: Sequence, order: Compress, lengths: np.ndarray, choice: Choice | None
    ) -> int:
        """The order has been carried out: returns how many KVs have gone.

        choice: what was chosen, of an order that shares.
        """
        before = self._kv.kept(sequence.number, order.tokens)
        self._kv.compact(sequence.number, lengths, order.tokens)
        sequence.applied += 1
        if choice is not None and sequence.shared is not None:
            self._kv.share(sequence.number, sequence.shared, choice)
        return before - self._kv.kept(sequence.number, order.tokens)

    def stats(self, sequence: Sequence) -> CompressionStats | None:
        """What compression has done to the sequence; None in an engine that does not compress."""
        if not self.enabled:
            return None
        computed = sequence.computed
        return CompressionStats(
            logical=computed * self._kv.heads,
            kept=self._kv.kept(sequence.number, computed),
            times=sequence.applied,
            head_lengths=self._kv.head_lengths(sequence.number, computed),
        )

    # ---- rules --------------------------------------------------------------------------------

    def _due(self, sequence: Sequence, params: CompressionParams, tokens: int) -> int | None:
        """The budget when a compression is due at `tokens` tokens."""
        if tokens < sequence.prompt_len or self._was_last(sequence, params):
            return None
        least = 0
        if tokens > sequence.prompt_len:
            since = tokens - (sequence.points[-1][0] if sequence.points else sequence.prompt_len)
            if since < self._settings.interval and not self._limit_reached:
                return None
            # A block a head is the least that gives memory back.
            least = self._kv.spec.block_size * self._kv.heads - 1
        kvs = self._kv.kept(sequence.number, tokens)
        return (
            self._sizes.budget(params, tokens)
            if kvs > self._sizes.goal(params, tokens) + least
            else None
        )

    @staticmethod
    def _was_last(sequence: Sequence, params: CompressionParams) -> bool:
        """Whether the sequence is not compressed again behind its points; a prefix's is none."""
        points = sequence.points
        return params.compress_once and bool(points) and points[-1][0] >= sequence.prompt_len

    def _gain(self, sequence: Sequence) -> int:
        """Whole blocks that a compression between steps would give back."""
        params = sequence.compression
        if params is None or sequence.computed < sequence.prompt_len or sequence.remaining != 1:
            return 0
        if sequence.applied < len(sequence.points) or self._was_last(sequence, params):
            return 0
        tokens = sequence.computed
        if sequence.points and tokens - sequence.points[-1][0] < self._kv.spec.block_size:
            return 0  # it has grown by less than a block since
        over = self._kv.kept(sequence.number, tokens) - self._sizes.goal(params, tokens)
        return over // (self._kv.heads * self._kv.spec.block_size)
