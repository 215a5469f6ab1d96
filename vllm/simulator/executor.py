"""The executor without a model: tokens after a modelled time."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.config.engine import SimulatorConfig, TierConfig
from vllm.config.model import ModelConfig, read_json
from vllm.core.clock import Clock, monotonic
from vllm.core.errors import VLLMValidationError
from vllm.core.plan import BlockIO, NewSequence, StepPlan, StepResult
from vllm.core.request import TokenLogprobs
from vllm.core.splitmix import mixed, stream
from vllm.engine.capacity import Capacity
from vllm.kv.cost import LoadCost
from vllm.kv.evict import make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.manager import KVManager
from vllm.kv.shelf import Level, Shelf
from vllm.simulator.clock import VirtualClock
from vllm.simulator.latency import Step, parse
from vllm.simulator.store import SharedStore
from vllm.simulator.tiers import ModelledMover, ModelledTier, sleeper

logger = logging.getLogger(__name__)

AHEAD = 1024  # tokens that are drawn at once
LOOK_AHEAD = 512  # blocks that are copied down ahead of their eviction, at most


class _OnePage:
    """Block bytes that nobody reads: all blocks are one page."""

    def __init__(self, block_bytes: int) -> None:
        self.page = memoryview(bytearray(block_bytes))

    def view(self, block: int) -> memoryview:
        return self.page


class SimulatedExecutor:
    """Implements `core.plan.Executor`.

    echo: the prompt's tokens, then the end. random: any tokens, up to max_tokens. trace: any
    tokens, as many as the trace's line for the k-th request says, then the end.
    """

    def __init__(
        self, config: VllmConfig, capacity: Capacity, store: SharedStore | None = None
    ) -> None:
        """store: the last tier, that other engines have too.

        Raises ValueError for a latency model or a trace that cannot be read, or compression.
        """
        if config.compression is not None:
            raise ValueError("enable_kvc: the simulator has no KVs that could be compressed")
        assert config.simulator is not None
        self._config: SimulatorConfig = config.simulator
        self._capacity = capacity
        self._store = store
        self._vocab = spoken(config.model)
        self._latency = parse(self._config.latency, config.model)
        virtual = self._config.clock == "virtual"
        self.clock: Clock = VirtualClock() if virtual else monotonic
        self._sleep: Callable[[float], None] = sleeper(self.clock)
        self.blocks: BlockIO = _OnePage(capacity.spec.block_bytes)
        self.busy_seconds = 0.0
        self._lengths = read_lengths(self._config.trace) if self._config.trace else []
        self._failures = self._config.failures
        self._seed = config.model.seed
        self._steps = 0
        self._rows: dict[int, _Row] = {}
        self.horizon = 0.0  # until then steps of nothing but those that coast are made at once

    def execute(self, plan: StepPlan) -> StepResult:
        for seq in plan.forget:
            self._rows.pop(seq, None)
        for new in plan.new:
            self._rows[new.seq] = _Row(new, made=len(new.tokens) - new.prompt_len)
        if not plan.num_sequences:
            return StepResult(tokens=[])
        step = Step.of(plan)
        self._pass(step)
        if plan.coasting is not None and not plan.seqs:
            return self._more(step, plan.coasting.most)
        tokens, logprobs, told, failed = [], [], {}, {}
        for i, (seq, sampled) in enumerate(zip(plan.seqs, plan.sample.tolist(), strict=True)):
            row = self._rows[seq]
            if row.params.prompt_logprobs is not None:
                told[seq] = _prompt_part(row.new, int(plan.starts[i]), int(plan.counts[i]))
            if sampled:
                if row.made < 2 and self._fails(seq, row.made):
                    failed[seq] = "a failure that was asked for"
                token = self._next(row)
                row.made += 1
                tokens.append(token)
                if row.params.logprobs is not None:
                    logprobs.append((len(tokens) - 1, _certain(token)))
        return StepResult(
            tokens, _aligned(logprobs, len(tokens)) or None, told or None, failed or None
        )

    def _pass(self, step: Step) -> None:
        seconds = self._latency(step) + self._stall()
        self.busy_seconds += seconds
        self._sleep(seconds)

    def _more(self, step: Step, most: int) -> StepResult:
        """Steps of sequences that coast, behind the first, at most so many, as time allows."""
        made, last = 1, None
        crash = self._failures.crash - 1  # a step that is to fail is made alone
        while made < most and self.clock() < self.horizon and self._steps != crash:
            read, last = step.kv_tokens + made * step.sequences, self.clock()
            self._pass(Step(0, step.sequences, read, read))
            made += 1
        return StepResult(tokens=[], steps=made, last=last)

    def certain(self, seq: int) -> int:
        """As `core.plan.Foresight`."""
        row = self._rows[seq]
        new, made = row.new, row.made
        if made < 2 and (self._failures.request or self._failures.stream):
            return 0
        if self._config.mode == "random":
            return sys.maxsize
        if self._config.mode == "trace":
            return max(0, self._length(new) - made) + 1
        rest = itertools.islice(new.tokens, made, new.prompt_len)
        return next(
            (i for i, token in enumerate(rest, 1) if token in row.never), new.prompt_len - made
        )

    def foretell(self, seq: int, count: int) -> array[int]:
        """As `core.plan.Foresight`."""
        row = self._rows[seq]
        made = row.made
        row.made += count
        if self._config.mode == "echo":
            return array("i", row.new.tokens[made : made + count])
        if row.made > row.begun + len(row.ahead):
            row.begun, left = made, row.params.max_tokens or 0
            more = max(count, min(left - made, AHEAD))
            row.ahead = array("i", stream(row.stream, made, more, self._vocab).tobytes())
        told = row.ahead[made - row.begun : row.made - row.begun]
        if row.never:
            told = array("i", (self._allowed(token, row) for token in told))
        if self._config.mode == "trace" and row.made > self._length(row.new):
            told[-1] = _end(row.new)
        return told

    def _stall(self) -> float:
        """Seconds that this step takes longer. Raises RuntimeError when it is the last one."""
        self._steps += 1
        if self._steps == self._failures.crash:
            raise RuntimeError(f"the crash at step {self._steps} that was asked for")
        share = self._failures.stall
        stalls = share > 0 and self._draw("stall", self._steps) < share
        return self._failures.seconds if stalls else 0.0

    def _fails(self, seq: int, made: int) -> bool:
        what, share = "request", self._failures.request
        if made > 0:
            what, share = "stream", self._failures.stream
        return share > 0 and self._draw(what, seq) < share

    def _draw(self, what: str, number: int) -> float:
        """Between 0 and 1, the same for the same seed whenever it is asked."""
        return mixed(mixed(self._seed + (sum(what.encode()) << 32)) ^ number) / 2**64

    def _next(self, row: _Row) -> int:
        new, made = row.new, row.made
        if row.params.reference_token_ids is not None:
            return row.params.reference_token_ids[made]
        if self._config.mode == "echo":
            return new.tokens[made] if made < new.prompt_len else _end(new)
        if self._config.mode == "trace" and made >= self._length(new):
            return _end(new)
        return self._allowed(mixed(row.stream ^ made) % self._vocab, row)

    def _length(self, new: NewSequence) -> int:
        """The output's, from the trace's line for it: the scheduler counts arrivals from 1."""
        return self._lengths[(new.seq - 1) % len(self._lengths)]

    def _allowed(self, token: int, row: _Row) -> int:
        while token in row.never:
            token = (token + 1) % self._vocab
        return token

    def attach_tiers(self, kv: KVManager, config: TierConfig, fingerprint: bytes) -> None:
        """Tiers of the sizes that are configured, at the bandwidths of the simulator's own."""
        spec, assumed = kv.spec, self._config
        page = self.blocks.view(0)
        sizes = {
            "host": config.host_blocks or config.host_bytes // spec.block_bytes,
            "disk": config.disk_bytes // spec.block_bytes if config.disk_dir is not None else 0,
        }
        levels = []
        for name, blocks in sizes.items():
            if blocks:
                failure, seed = assumed.failures.tier, self._seed
                tier = ModelledTier(name, page, failure=failure, seed=seed)
                levels.append(Level(tier, Shelf(blocks, make(kv.policy), kv.uses)))
        bandwidths = {"host": assumed.host_bandwidth, "disk": assumed.disk_bandwidth}
        if self._store is not None:
            levels.append(self._store.level(kv, page))
            sizes["shared"], bandwidths["shared"] = self._store.blocks, self._store.bandwidth
        mover = ModelledMover(
            [level.tier for level in levels],  # type: ignore[misc]
            bandwidths,
            spec.block_bytes,
            self.clock,
            self._sleep,
        )
        window = min(
            LOOK_AHEAD, *(-(-n // 2) for n in (kv.num_blocks, *filter(None, sizes.values())))
        )
        cost = LoadCost(spec.block_bytes, spec.block_size, config.min_load_tokens)
        kv.attach(Hierarchy(levels, mover, self.blocks, kv.pool, kv.index, cost, window=window))

    def give_back(self, part: str) -> None:
        """There is no memory to speak of."""

    def take_again(self, part: str) -> None:
        """There is no memory to speak of."""

    def start_profile(self) -> str:
        raise VLLMValidationError("a simulated engine has no steps to profile")

    def stop_profile(self) -> str:
        raise VLLMValidationError("a simulated engine has no steps to profile")

    def collective_rpc(
        self, method: str | Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        raise VLLMValidationError("a simulated engine has no workers to call")

    def shutdown(self) -> None:
        """Nothing runs here."""


def spoken(model: ModelConfig) -> int:
    """Ids below this are the model's and, as far as its folder says, the tokenizer's too."""
    path = model.tokenizer_folder / "config.json"
    known = read_json(path).get("vocab_size") if path.is_file() else None
    return min(model.vocab_size, known) if isinstance(known, int) else model.vocab_size


class _Row:
    """A sequence of the plans, and how much it has said."""

    __slots__ = ("ahead", "begun", "made", "never", "new", "params", "stream")

    def __init__(self, new: NewSequence, made: int) -> None:
        self.new, self.params, self.made = new, new.params, made
        self.never = {*new.eos_token_ids, *(new.params.stop_token_ids or ())}  # by chance
        self.stream = mixed(new.sampling_seed)
        self.ahead, self.begun = array("i"), 0  # tokens from that one on, but for `never`


def _end(new: NewSequence) -> int:
    return new.eos_token_ids[0] if new.eos_token_ids else 0


def _prompt_part(new: NewSequence, start: int, count: int) -> list[TokenLogprobs]:
    last = min(start + count, new.prompt_len - 1)
    return [_certain(new.tokens[i + 1]) for i in range(start, last)]


def _aligned(given: list[tuple[int, TokenLogprobs]], count: int) -> list[TokenLogprobs | None]:
    """One a token, None for those that nobody asked for; empty when nobody asked for any."""
    if not given:
        return []
    told = dict(given)
    return [told.get(i) for i in range(count)]


def _certain(token: int) -> TokenLogprobs:
    return TokenLogprobs([token], [0.0], 1)


def read_lengths(path: str) -> list[int]:
    """Output lengths, a line each, of a JSONL trace with `output_length`. Raises ValueError."""
    lengths: list[int] = []
    try:
        open_it = gzip.open if path.endswith(".gz") else open
        with open_it(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    length = json.loads(line).get("output_length")
                    if not isinstance(length, int) or length < 1:
                        raise ValueError(f"trace {path}, line {number}: no output_length above 0")
                    lengths.append(length)
    except (OSError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read the trace {path}: {error}") from error
    if not lengths:
        raise ValueError(f"the trace {path} is empty")
    return lengths
