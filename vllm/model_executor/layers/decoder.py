"""The decoder that Llama-shaped families share; what differs is declared in a `Shape`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm.kernels import Ops
from vllm.model_executor.forward import Forward
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.base import Layer, parameter
from vllm.model_executor.layers.mlp import GatedMLP
from vllm.model_executor.layers.rope import rope_table
from vllm.model_executor.model import Model
from vllm.model_executor.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Sizes and switches of a Llama-shaped decoder."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    tied: bool
    cos_sin: Tensor  # float32 [max_position, R]
    windows: tuple[int, ...]  # one a layer, 0: sees everything
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False  # RMS norm of each query and key head

    @classmethod
    def read(
        cls,
        cfg: Settings,
        *,
        eps: float = 1e-6,
        theta: float = 10000.0,
        partial_rotary: bool = False,
        window: int = 0,
        first_windowed: int = 0,
        **switches: Any,
    ) -> Shape:
        """The fields that all families spell alike. eps, theta: the family's defaults.

        window: KVs seen by the layers from `first_windowed` on, unless `layer_types` says which.
        """
        cfg.only("hidden_act", "silu", "swish")
        for field in ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping"):
            cfg.only(field, None)
        layers, heads = cfg.count("num_hidden_layers"), cfg.count("num_attention_heads")
        kv_heads = cfg.count("num_key_value_heads", heads)
        hidden = cfg.count("hidden_size")
        head_dim = cfg.count("head_dim", hidden // heads)
        if cfg.get("head_dim") is None and hidden % heads:
            cfg.refuse("hidden_size", f"must be a multiple of num_attention_heads={heads}")
        if heads % kv_heads:
            cfg.refuse("num_key_value_heads", f"must divide num_attention_heads={heads}")
        kinds = cfg.get("layer_types")
        if kinds is None:
            windows = tuple(window if i >= first_windowed else 0 for i in range(layers))
        else:
            known = ["full_attention", *(["sliding_attention"] if window else [])]
            listed = isinstance(kinds, list) and len(kinds) == layers
            if not listed or not all(kind in known for kind in kinds):
                cfg.refuse("layer_types", f"must be {layers} of {', '.join(known)}")
            windows = tuple(0 if kind == "full_attention" else window for kind in kinds)
        return cls(
            layers=layers,
            hidden=hidden,
            inner=cfg.count("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=cfg.count("vocab_size"),
            eps=cfg.number("rms_norm_eps", eps),
            tied=cfg.flag("tie_word_embeddings"),
            cos_sin=rope_table(cfg, head_dim, theta, partial_rotary),
            windows=windows,
            **switches,
        )


def upper_window(cfg: Settings) -> dict[str, Any]:
    """Qwen's sliding window, for `Shape.read`: from layer `max_window_layers` on, if it is used."""
    if not cfg.flag("use_sliding_window") or cfg.get("sliding_window", 0) == 0:
        return {}
    window = cfg.count("sliding_window")
    return {"window": window, "first_windowed": cfg.count("max_window_layers", 28, low=0)}


class Block(Layer):
    """Attention, then a feed-forward layer, each after a norm that also adds the residual."""

    def __init__(self, shape: Shape, mlp: Layer, ops: Ops, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        self.add_norm, self.eps = ops.add_rms_norm, shape.eps
        self.norm_before = parameter(shape.hidden, dtype=dtype)
        self.norm_between = parameter(shape.hidden, dtype=dtype)
        self.mlp = mlp
        self.attention = Attention(
            ops,
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            dtype,
            index,
            qkv_bias=shape.qkv_bias,
            out_bias=shape.out_bias,
            window=shape.windows[index],
            norm_eps=shape.eps if shape.head_norm else None,
        )

    def forward(
        self, x: Tensor, residual: Tensor, kv: Tensor, step: Forward, cos_sin: Tensor
    ) -> Tensor:
        """x, residual [T, E]; adds to the residual in place and returns what is still to add."""
        x = self.add_norm(x, residual, self.norm_before, self.eps)
        x = self.attention(x, kv, step, cos_sin)
        x = self.add_norm(x, residual, self.norm_between, self.eps)
        return self.mlp(x)


class Decoder(Model):
    """Token embedding, blocks, RMS norm, output layer (Touvron et al. 2023, LLaMA).

    A family gives `shape`; where it differs, the names of its weights and its feed-forward layer.
    """

    qkv_names: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj")
    gate_up_names: ClassVar[tuple[str, ...]] = ("gate_proj", "up_proj")

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        """Read and check the config. Raises ValueError for what is not implemented."""
        raise NotImplementedError

    def __init__(self, hf: dict[str, Any], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(hf, ops, dtype)
        cfg = Settings(hf)
        shape = self.shape(cfg)
        self.eps = shape.eps
        self.register_buffer("cos_sin", shape.cos_sin, persistent=False)
        self.embedding = parameter(shape.vocab, shape.hidden, dtype=dtype)
        self.blocks = nn.ModuleList(
            Block(shape, self.mlp(cfg, shape, i, ops, dtype), ops, dtype, i)
            for i in range(shape.layers)
        )
        self.norm = parameter(shape.hidden, dtype=dtype)
        self.head = (
            self.embedding if shape.tied else parameter(shape.vocab, shape.hidden, dtype=dtype)
        )

    def mlp(self, cfg: Settings, shape: Shape, index: int, ops: Ops, dtype: torch.dtype) -> Layer:
        """The feed-forward layer of block `index`."""
        return GatedMLP(ops, shape.hidden, shape.inner, shape.mlp_bias, dtype)

    def forward(self, tokens: Tensor, step: Forward) -> Tensor:
        x = F.embedding(tokens, self.embedding)
        residual = torch.zeros_like(x)
        cos_sin = self.cos_sin
        for block, kv in zip(self.blocks, step.kv.unbind(1), strict=True):
            x = block(x, residual, kv, step, cos_sin)
        return self.ops.add_rms_norm(x, residual, self.norm, self.eps)

    def targets(self) -> dict[str, Tensor]:
        found = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.norm}
        if not self.tied():
            found["lm_head.weight"] = self.head
        for i, block in enumerate(self.blocks):
            views = {
                "input_layernorm.weight": block.norm_before,
                "post_attention_layernorm.weight": block.norm_between,
                **self.mlp_targets(block.mlp),
            }
            attention = block.attention
            inner = attention.qkv.rows(self.qkv_names, attention.head_rows())
            inner |= attention.out.rows(["o_proj"], [])
            if attention.norm_eps is not None:
                inner |= {
                    "q_norm.weight": attention.q_norm,
                    "k_norm.weight": attention.k_norm,
                }
            views |= {f"self_attn.{name}": view for name, view in inner.items()}
            found |= {f"model.layers.{i}.{name}": view for name, view in views.items()}
        return found

    def mlp_targets(self, mlp: Layer) -> dict[str, Tensor]:
        """What one block's feed-forward layer loads, by name inside the block."""
        inner = mlp.down.weight.shape[1]
        views = mlp.gate_up.rows(self.gate_up_names, [inner, inner])
        views |= mlp.down.rows(["down_proj"], [])
        return {f"mlp.{name}": view for name, view in views.items()}
