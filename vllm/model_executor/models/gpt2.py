"""GPT-2 (Radford et al. 2019)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vllm.kernels import Ops
from vllm.model_executor.forward import Forward
from vllm.model_executor.layers.base import Linear, parameter
from vllm.model_executor.layers.classic import ClassicBlock, LayerNorm, activation
from vllm.model_executor.model import Model
from vllm.model_executor.settings import Settings


class GPT2(Model):
    """Learned positions, norms first; the checkpoint keeps its linear weights transposed."""

    architectures = ("GPT2LMHeadModel",)
    ignored = (".attn.bias", ".attn.masked_bias")  # causal masks of old checkpoints

    def __init__(self, hf: dict[str, Any], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(hf, ops, dtype)
        cfg = Settings(hf)
        cfg.only("quantization_config", None)
        cfg.only("add_cross_attention", False)
        hidden, heads = cfg.count("n_embd"), cfg.count("n_head")
        if hidden % heads:
            cfg.refuse("n_embd", f"must be a multiple of n_head={heads}")
        vocab, eps = cfg.count("vocab_size"), cfg.number("layer_norm_epsilon", 1e-5)
        inner, act = cfg.count("n_inner", 4 * hidden), activation(cfg, "gelu_new")
        scale = (hidden // heads) ** -0.5 if cfg.flag("scale_attn_weights", True) else 1.0
        by_depth = cfg.flag("scale_attn_by_inverse_layer_idx")

        self.embedding = parameter(vocab, hidden, dtype=dtype)
        self.positions = parameter(cfg.count("n_positions"), hidden, dtype=dtype)
        self.blocks = nn.ModuleList(
            ClassicBlock(
                ops,
                hidden,
                heads,
                inner,
                act,
                dtype,
                i,
                eps=eps,
                scale=scale / (i + 1) if by_depth else scale,
            )
            for i in range(cfg.count("n_layer"))
        )
        self.norm = LayerNorm(hidden, eps, dtype)
        tied = cfg.flag("tie_word_embeddings", True)
        self.head = self.embedding if tied else parameter(vocab, hidden, dtype=dtype)

    def forward(self, tokens: Tensor, step: Forward) -> Tensor:
        x = F.embedding(tokens, self.embedding) + F.embedding(step.positions, self.positions)
        for block, kv in zip(self.blocks, step.kv.unbind(1), strict=True):
            x = block(x, kv, step)
        return self.norm(x)

    def rename(self, name: str) -> str:
        """OpenAI's own files lack the prefix."""
        return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"

    def targets(self) -> dict[str, Tensor]:
        found = {"wte.weight": self.embedding, "wpe.weight": self.positions}
        found |= self.norm.named("ln_f")
        for i, block in enumerate(self.blocks):
            views = block.attention_norm.named("ln_1") | block.mlp_norm.named("ln_2")
            views |= transposed("attn.c_attn", block.attention.qkv)
            views |= transposed("attn.c_proj", block.attention.out)
            views |= transposed("mlp.c_fc", block.up) | transposed("mlp.c_proj", block.down)
            found |= {f"h.{i}.{name}": view for name, view in views.items()}
        found = {f"transformer.{name}": view for name, view in found.items()}
        return found if self.tied() else found | {"lm_head.weight": self.head}


def transposed(name: str, linear: Linear) -> dict[str, Tensor]:
    """What a Conv1D of a checkpoint fills: its weight is [inputs, outputs]."""
    return {f"{name}.weight": linear.weight.t(), f"{name}.bias": linear.bias}
