"""The block of models older than LLaMA: LayerNorm, full attention, a feed-forward layer, biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.forward import Forward
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.base import Layer, Linear, parameter
from vllm.model_executor.settings import Settings

tanh_gelu = partial(F.gelu, approximate="tanh")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": tanh_gelu,
    "gelu_fast": tanh_gelu,
    "gelu_pytorch_tanh": tanh_gelu,
    "silu": F.silu,
}


def activation(cfg: Settings, default: str) -> Callable[[Tensor], Tensor]:
    """The function that `activation_function` names; ValueError when it is not known."""
    name = cfg.get("activation_function", default)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        cfg.refuse("activation_function", f"is not implemented; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class LayerNorm(Layer):
    """Mean and variance normalised (Ba et al. 2016), with weight and bias [E]. x [T, E]."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(size, dtype=dtype)
        self.bias = parameter(size, dtype=dtype)
        self.shape, self.eps = (size,), eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.layer_norm(x, self.shape, self.weight, self.bias, self.eps)

    def named(self, name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": self.weight, f"{name}.bias": self.bias}


class ClassicBlock(Layer):
    """Attention, then a feed-forward layer; norms before each (GPT-2) or after (GPT, BERT)."""

    def __init__(
        self,
        ops: Ops,
        hidden: int,
        heads: int,
        inner: int,
        act: Callable[[Tensor], Tensor],
        dtype: torch.dtype,
        index: int,
        *,
        eps: float = 1e-5,
        bias: bool = True,
        norm_first: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        self.norm_first, self.act = norm_first, act
        self.attention = Attention(
            ops,
            hidden,
            heads,
            heads,
            hidden // heads,
            dtype,
            index,
            qkv_bias=bias,
            out_bias=bias,
            scale=scale,
        )
        self.attention_norm = LayerNorm(hidden, eps, dtype)
        self.mlp_norm = LayerNorm(hidden, eps, dtype)
        self.up = Linear(ops, hidden, inner, bias, dtype)
        self.down = Linear(ops, inner, hidden, bias, dtype)

    def forward(self, x: Tensor, kv: Tensor, step: Forward) -> Tensor:
        """x [T, E] -> [T, E], the residual included."""
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), kv, step, None)
            return x + self.down(self.act(self.up(self.mlp_norm(x))))
        x = self.attention_norm(x + self.attention(x, kv, step, None))
        return self.mlp_norm(x + self.down(self.act(self.up(x))))
