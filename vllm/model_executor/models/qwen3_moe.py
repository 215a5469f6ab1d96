"""Qwen 3 MoE (Yang et al. 2025): Qwen 3 with mixtures of experts in some or all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.layers.base import Layer
from vllm.model_executor.layers.decoder import Shape
from vllm.model_executor.layers.moe import Experts, read_top
from vllm.model_executor.models.qwen3 import Qwen3
from vllm.model_executor.settings import Settings


class Qwen3Moe(Qwen3):
    architectures = ("Qwen3MoeForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        # Which layers it means is told differently by different readers; no release asks for it.
        cfg.only("use_sliding_window", False)
        return Qwen3.shape(cfg)

    def mlp(self, cfg: Settings, shape: Shape, index: int, ops: Ops, dtype: torch.dtype) -> Layer:
        plain = cfg.get("mlp_only_layers", [])
        if not isinstance(plain, list) or not all(type(i) is int for i in plain):
            cfg.refuse("mlp_only_layers", "must be a list of layers")
        if index in plain or (index + 1) % cfg.count("decoder_sparse_step", 1):
            return super().mlp(cfg, shape, index, ops, dtype)
        # transformers 5 writes the second name
        count = cfg.count("num_experts" if cfg.get("num_experts") else "num_local_experts")
        top = read_top(cfg, count)
        inner, sums_to_one = cfg.count("moe_intermediate_size"), cfg.flag("norm_topk_prob")
        return Experts(ops, shape.hidden, inner, count, top, sums_to_one, dtype)

    def mlp_targets(self, mlp: Layer) -> dict[str, Tensor]:
        if not isinstance(mlp, Experts):
            return super().mlp_targets(mlp)
        views = mlp.targets("gate_proj", "up_proj", "down_proj")
        return {f"mlp.{name}": view for name, view in views.items()}
