"""OPT (Zhang et al. 2022)."""

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

OFFSET = 2  # the first rows of the position table stand for padding


class OPT(Model):
    """Learned positions; norms first, but in the 350M model, whose embeddings are also narrower."""

    architectures = ("OPTForCausalLM",)

    def __init__(self, hf: dict[str, Any], ops: Ops, dtype: torch.dtype) -> None:
        super().__init__(hf, ops, dtype)
        cfg = Settings(hf)
        cfg.only("quantization_config", None)
        cfg.only("layer_norm_elementwise_affine", True)
        hidden, heads = cfg.count("hidden_size"), cfg.count("num_attention_heads")
        if hidden % heads:
            cfg.refuse("hidden_size", f"must be a multiple of num_attention_heads={heads}")
        vocab, width = cfg.count("vocab_size"), cfg.count("word_embed_proj_dim", hidden)
        inner, act = cfg.count("ffn_dim"), activation(cfg, "relu")
        norm_first = cfg.flag("do_layer_norm_before", True)
        bias = cfg.flag("enable_bias", True)

        self.embedding = parameter(vocab, width, dtype=dtype)
        rows = cfg.count("max_position_embeddings") + OFFSET
        self.positions = parameter(rows, hidden, dtype=dtype)
        narrow = width != hidden
        self.project_in = Linear(ops, width, hidden, False, dtype) if narrow else None
        self.project_out = Linear(ops, hidden, width, False, dtype) if narrow else None
        self.blocks = nn.ModuleList(
            ClassicBlock(ops, hidden, heads, inner, act, dtype, i, bias=bias, norm_first=norm_first)
            for i in range(cfg.count("num_hidden_layers"))
        )
        ends_normed = norm_first and not cfg.flag("_remove_final_layer_norm")
        self.norm = LayerNorm(hidden, 1e-5, dtype) if ends_normed else None
        tied = cfg.flag("tie_word_embeddings", True)
        self.head = self.embedding if tied else parameter(vocab, width, dtype=dtype)

    def forward(self, tokens: Tensor, step: Forward) -> Tensor:
        x = F.embedding(tokens, self.embedding)
        if self.project_in is not None:
            x = self.project_in(x)
        x = x + F.embedding(step.positions + OFFSET, self.positions)
        for block, kv in zip(self.blocks, step.kv.unbind(1), strict=True):
            x = block(x, kv, step)
        return x if self.norm is None else self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return super().logits(hidden)

    def rename(self, name: str) -> str:
        """Meta's own files lack the first part of the prefix."""
        return f"model.{name}" if name.startswith("decoder.") else name

    def targets(self) -> dict[str, Tensor]:
        found = {"embed_tokens.weight": self.embedding, "embed_positions.weight": self.positions}
        if self.norm is not None:
            found |= self.norm.named("final_layer_norm")
        if self.project_in is not None and self.project_out is not None:
            found |= self.project_in.rows(["project_in"], [])
            found |= self.project_out.rows(["project_out"], [])
        for i, block in enumerate(self.blocks):
            names = [f"self_attn.{x}_proj" for x in "qkv"]
            views = block.attention.qkv.rows(names, block.attention.head_rows())
            views |= block.attention.out.rows(["self_attn.out_proj"], [])
            views |= block.attention_norm.named("self_attn_layer_norm")
            views |= block.up.rows(["fc1"], []) | block.down.rows(["fc2"], [])
            views |= block.mlp_norm.named("final_layer_norm")
            found |= {f"layers.{i}.{name}": view for name, view in views.items()}
        found = {f"model.decoder.{name}": view for name, view in found.items()}
        return found if self.tied() else found | {"lm_head.weight": self.head}
