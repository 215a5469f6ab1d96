"""What a model's forward pass is given besides its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vllm.kernels import DenseBatch, HeadBatch


@dataclass(slots=True)
class Capture:
    """The queries of some tokens, layer by layer, for those who compress by attention."""

    tokens: Tensor  # int64 [n]: which of the step's tokens
    queries: list[Tensor] = field(default_factory=list)  # [n, Q, D] each, after rotary

    def take(self, q: Tensor) -> None:
        self.queries.append(q[self.tokens])


@dataclass(slots=True)
class Forward:
    """One step, as the model sees it.

    Linear layers run over all T tokens together; only KV writes and attention look at the groups.
    The tokens of `dense`, the group of ordinary sequences, come first; those of `heads`, the group
    of compressed ones, behind them.
    """

    positions: Tensor  # int64 [T]: logical positions, what rope and position embeddings use
    kv: Tensor  # [N, L, H, 2, B, D]: the arena
    dense: DenseBatch
    heads: HeadBatch | None = None
    capture: Capture | None = None
