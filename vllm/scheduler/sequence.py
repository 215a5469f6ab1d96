"""One output of one request, while it is in the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.core.compression import CompressionParams
from vllm.core.request import EngineRequest
from vllm.kv.lineage import Key
from vllm.observe.prefix_metrics import RequestRow


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens and progress; its KVs belong to `kv.manager`, under its number.

        | computed | this step's part | not computed yet |
        0                                                len(tokens)

    A running sequence decodes when exactly its last token is not computed.
    """

    number: int
    request: EngineRequest
    index: int  # which of the request's n outputs
    sampling_seed: int
    tokens: list[int]  # prompt and output
    longest: int  # tokens at which it ends in any case
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
    prompt_len: int = field(init=False)
    compression: CompressionParams | None = field(init=False)  # None: it is never compressed

    def __post_init__(self) -> None:
        self.prompt_len = len(self.request.prompt_token_ids)
        params = self.request.compression
        self.compression = None if params is None or params.asks_for_nothing else params

    @property
    def remaining(self) -> int:
        """Known tokens whose KVs are not computed."""
        return len(self.tokens) - self.computed

    @property
    def dense(self) -> list[int]:
        """The tokens that are computed before the first compression, all of them without one."""
        return self.tokens[: self.points[0][0]] if self.points else self.tokens

    @property
    def until(self) -> int:
        """How many tokens it may compute before it is to be compressed."""
        if self.applied < len(self.points):
            return self.points[self.applied][0] - self.computed
        return self.remaining

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
        return len(self.tokens) - self.prompt_len
