"""One output of one request, while it is in the engine."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from vllm.core.compression import CompressionParams
from vllm.core.request import EngineRequest
from vllm.kv.lineage import Key
from vllm.observe.prefix_metrics import RequestRow
from vllm.scheduler.order import Place
from vllm.scheduler.tokens import Tokens


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens and progress; its KVs belong to `kv.manager`, under its number.

        | computed | this step's part | not computed yet |
        0                                                length

    A running sequence decodes when exactly its last token is not computed.
    """

    number: int
    request: EngineRequest
    index: int  # which of the request's n outputs
    sampling_seed: int
    longest: int  # tokens at which it ends in any case
    place: Place  # in the queues; see `order`
    computed: int = 0
    cached: int = -1  # prompt tokens that the prefix cache saved at first admission; -1: not yet
    cached_by_source: dict[str, int] = field(default_factory=dict)
    counted: int = 0  # prompt tokens that the statistics know of, cached or computed
    queued: float = 0.0  # seconds of the core's clock
    scheduled: float = 0.0
    preemptions: int = 0
    running: bool = False
    overtaken: int = 0  # by how many younger ones, while waiting; see `window`
    prompt_logprobs_sent: int = 0  # a preempted prompt is computed again, but told once
    points: list[tuple[int, int]] = field(default_factory=list)  # see `scheduler.compression`
    applied: int = 0  # points at which the KVs that it holds, or has aside, were compressed
    shared: Key | None = None  # of the compressed prefix that it begins with, or makes
    parked: bool = False  # preempted, and what it had computed is aside
    forks: list[Sequence] = field(default_factory=list)  # start when this one's prompt is computed
    told: RequestRow | None = None  # what the prefix metrics have of it
    tokens: Tokens = field(init=False)  # prompt and output
    prompt_len: int = field(init=False)
    length: int = field(init=False)  # len(tokens)
    compression: CompressionParams | None = field(init=False)  # None: it is never compressed
    quiet: bool = field(init=False)  # of its decodes nobody wants to know more than tokens

    def __post_init__(self) -> None:
        self.tokens = Tokens(self.request.prompt_token_ids)
        self.length = self.prompt_len = len(self.request.prompt_token_ids)
        params = self.request.compression
        self.compression = None if params is None or params.asks_for_nothing else params
        asked = self.request.params
        self.quiet = not (asked.stop or asked.reference_token_ids) and asked.logprobs is None

    @property
    def remaining(self) -> int:
        """Known tokens whose KVs are not computed."""
        return self.length - self.computed

    @property
    def dense(self) -> Tokens | list[int]:
        """The tokens that are computed before the first compression, all of them without one."""
        return self.tokens[: self.points[0][0]] if self.points else self.tokens

    @property
    def until(self) -> int:
        """How many tokens it may compute before it is to be compressed."""
        if self.applied < len(self.points):
            return self.points[self.applied][0] - self.computed
        return self.length - self.computed

    @property
    def awaiting(self) -> bool:
        """Whether it is to be compressed before it computes anything more."""
        return self.until == 0

    @property
    def prefix(self) -> int | None:
        """How many tokens of its prompt are compressed before the rest is computed."""
        first = self.points[0][0] if self.points else self.prompt_len
        return first if first < self.prompt_len else None

    @property
    def output_len(self) -> int:
        return self.length - self.prompt_len

    def say(self, tokens: Collection[int]) -> None:
        """The next tokens of its output."""
        self.tokens.output.extend(tokens)
        self.length += len(tokens)
