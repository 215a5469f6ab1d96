"""What a step shall do and what it did: plain ints and numpy, no tensors.

plan = scheduler.schedule(now)
result = executor.execute(plan)
outputs = scheduler.update(plan, result)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vllm.core.clock import Clock
from vllm.core.compression import CompressionParams
from vllm.core.request import TokenLogprobs
from vllm.sampling_params import SamplingParams


@dataclass(slots=True)
class Choice:
    """What a compression left of a sequence's first `tokens` tokens, beside the KVs themselves."""

    tokens: int
    positions: np.ndarray  # int32 [L, H, K]: of the KVs that each head holds, in order; -1 padding
    running: np.ndarray | None  # float32 [L, H, K]: what the metric has observed of them so far

    @property
    def lengths(self) -> np.ndarray:
        """KVs that each head holds, int32 [L, H]."""
        made: np.ndarray = (self.positions >= 0).sum(-1, dtype=np.int32)
        return made


@dataclass(slots=True)
class NewSequence:
    """A sequence that the workers do not know, or have forgotten since its preemption."""

    seq: int
    tokens: list[int]  # prompt and what has been generated; nobody may change it
    prompt_len: int
    params: SamplingParams
    sampling_seed: int  # the random numbers of position p are a function of (sampling_seed, p)
    eos_token_ids: list[int] = field(default_factory=list)
    bad_words_token_ids: list[list[int]] = field(default_factory=list)
    grammar: str | None = None
    compression: CompressionParams | None = None  # None: it is never compressed
    resumed: bool = False  # it was parked, and what it had computed is there again
    head_blocks: np.ndarray | None = None  # int32: all that it has, if it was compressed
    stages: list[int] = field(
        default_factory=list
    )  # it is compressed there, before its prompt ends
    choice: Choice | None = None  # it begins behind a compressed prefix, which `head_blocks` hold


@dataclass(slots=True)
class Compress:
    """Compress a sequence when the step's tokens are computed: score, choose, copy out.

    What stays is copied into `head_blocks` (see `kv.table.HeadTable`), in the order of layers and
    heads, each head from a head block of its own on. From then on the sequence's rows name head
    blocks. The workers report how many KVs each head has kept; the rest of `head_blocks` is not
    theirs any more. Where `shared`, they report the whole choice.
    """

    seq: int
    tokens: int  # whose KVs the sequence has by then
    budget: int  # KVs over all layers and heads
    head_blocks: np.ndarray  # int32: enough for whatever is chosen
    shared: bool = False


@dataclass(slots=True)
class Coasting:
    """Sequences without rows that decode one token in each step, as `Foresight` allows."""

    sequences: int
    kv_tokens: int  # keys that they read in the first step; in each later one `sequences` more
    most: int  # so many steps may be made one after the other; more than one: there are no rows


@dataclass(slots=True)
class StepPlan:
    """One step. Row i: sequence `seqs[i]` computes `counts[i]` tokens from position `starts[i]`.

    Decodes come first. Where `sample[i]`, the row's last token is the sequence's last known one and
    the step samples the next. `blocks[i]` are blocks added to the sequence's table since its last
    step. The workers forget `forget`, and park `park`, before they look at `new`: of what is parked
    they keep all that they know beside the KVs, until it resumes or is forgotten.
    """

    seqs: list[int]
    starts: np.ndarray  # int32 [S]
    counts: np.ndarray  # int32 [S]
    sample: np.ndarray  # bool [S]
    blocks: list[list[int]]
    new: list[NewSequence]
    forget: list[int]
    park: list[int] = field(default_factory=list)
    compress: list[Compress] = field(default_factory=list)  # also of sequences without a row
    coasting: Coasting | None = None  # beside the rows

    @property
    def num_tokens(self) -> int:
        coasting = 0 if self.coasting is None else self.coasting.sequences
        return int(self.counts.sum()) + coasting

    @property
    def num_sequences(self) -> int:
        """Sequences that compute something."""
        return len(self.seqs) + (0 if self.coasting is None else self.coasting.sequences)


@dataclass(slots=True)
class StepResult:
    """What a step sampled. `tokens[j]` belongs to the j-th row whose `sample` is set."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None] | None = None  # as tokens
    prompt_logprobs: dict[int, list[TokenLogprobs]] | None = None  # sequence -> this chunk's
    failed: dict[int, str] | None = None  # sequence that sampled in vain -> why; its token is not
    kept: list[np.ndarray] = field(default_factory=list)  # as `compress`: KVs, int32 [L, H]
    choices: dict[int, Choice] = field(default_factory=dict)  # sequence -> of orders that share
    steps: int = 1  # that were made: more than one only of those that coast
    last: float | None = None  # when the last of several began


class BlockIO(Protocol):
    """The bytes of device blocks, for the tiers."""

    def view(self, block: int) -> memoryview:
        """All bytes of one block, writable, in the arena itself."""
        ...


class Foresight(Protocol):
    """An executor that knows what it will sample; see `scheduler.coast`.

    It reads no blocks: plans do not tell those that sequences without rows are given.
    """

    def certain(self, seq: int) -> int:
        """How many of the sequence's next tokens do not fail; none but the last may end it."""
        ...

    def foretell(self, seq: int, count: int) -> array[int]:
        """Its next tokens, which are sampled by that."""
        ...


class Executor(Protocol):
    """Runs plans: in this process, in others, or in the simulator."""

    clock: Clock

    @property
    def blocks(self) -> BlockIO: ...

    def execute(self, plan: StepPlan) -> StepResult: ...

    def give_back(self, part: str) -> None:
        """Free the memory of `weights` or `kv_cache`; the content is lost. Again is no error."""
        ...

    def take_again(self, part: str) -> None:
        """Have that memory: weights as they were, KVs undefined. No error if it is there."""
        ...

    def start_profile(self) -> str:
        """The folder that the profile will be in. Raises VLLMValidationError."""
        ...

    def stop_profile(self) -> str:
        """The file that was written. Raises VLLMValidationError."""
        ...

    def collective_rpc(
        self, method: str | Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Call a worker's method by name, or a function with the worker, on every rank.

        Returns what each returned. Raises VLLMValidationError for a name that is not offered.
        """
        ...

    def shutdown(self) -> None: ...
