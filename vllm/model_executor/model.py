"""What the engine knows of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.forward import Forward
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.base import Layer
from vllm.model_executor.layers.rope import Rotate, rotation

LOADABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Model(Layer):
    """A causal language model over the arena. A family is a subclass in `models/`.

    Construction reads config.json and reserves memory; it raises ValueError for a config that asks
    for what is not implemented. `load` fills that memory. Call under `torch.inference_mode`.
    It sets `embedding`, `blocks` and `head`, the output layer's weight.
    """

    architectures: ClassVar[tuple[str, ...]] = ()  # in config.json
    ignored: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq",)  # ends of names, no weights

    def __init__(self, hf: dict[str, Any], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, tokens: Tensor, step: Forward) -> Tensor:
        """tokens int64 [T] -> hidden [T, E], after the final norm. Writes the step's KVs."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [S, E] -> float32 [S, V]."""
        return self.ops.linear(hidden, self.head, None).float()

    def attentions(self) -> list[Attention]:
        """The attention of each layer, in order."""
        return [block.attention for block in self.blocks]

    def rotate(self) -> Rotate | None:
        """How positions turn queries and keys; None: not at all."""
        cos_sin = getattr(self, "cos_sin", None)
        return None if cos_sin is None else rotation(cos_sin)

    def targets(self) -> dict[str, Tensor]:
        """Every tensor that a checkpoint must have, as the view of a parameter that it fills."""
        raise NotImplementedError

    def tied(self) -> bool:
        """Whether the output layer is the input embedding."""
        return self.head is self.embedding

    def rename(self, name: str) -> str:
        """The name in `targets` of a checkpoint's tensor: older files spell some differently."""
        return name

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Fill the parameters, converting to their dtype.

        Raises ValueError naming the tensors that are missing, unexpected, of another shape, or
        quantised.
        """
        missing = self.targets()
        unexpected = []
        for given, tensor in weights:
            name = self.rename(given)
            view = missing.pop(name, None)
            if view is None:
                spare = name == "lm_head.weight" and self.tied()
                if not spare and not name.endswith(self.ignored):
                    unexpected.append(given)
                continue
            if tensor.shape != view.shape:
                raise ValueError(
                    f"weight {given} has shape {list(tensor.shape)}, config.json says "
                    f"{list(view.shape)}"
                )
            if tensor.dtype not in LOADABLE:
                raise ValueError(f"weight {given} is {tensor.dtype}: quantised weights are refused")
            view.copy_(tensor)
        if unexpected or missing:
            faults = {"unexpected": unexpected, "missing": list(missing)}
            raise ValueError("; ".join(f"{k} weights: {_some(v)}" for k, v in faults.items() if v))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more
