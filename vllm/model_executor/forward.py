"""What a model's forward pass is given besides its tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vllm.kernels import DenseBatch


@dataclass(slots=True)
class Forward:
    """One step, as the model sees it.

    Linear layers run over all T tokens together; only `write_kv` and `attention` look at the
    groups. `dense` is the group of ordinary sequences; compressed ones get a group of their own.
    """

    positions: Tensor  # int64 [T]: logical positions, what rope and position embeddings use
    kv: Tensor  # [N, L, H, 2, B, D]: the arena
    dense: DenseBatch
