"""Mixtral (Jiang et al. 2024): Mistral whose feed-forward layers are mixtures of experts."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.kernels import Ops
from vllm.model_executor.layers.base import Layer
from vllm.model_executor.layers.decoder import Decoder, Shape
from vllm.model_executor.layers.moe import Experts, read_top
from vllm.model_executor.settings import Settings


class Mixtral(Decoder):
    architectures = ("MixtralForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        window = cfg.count("sliding_window", 0, low=0)
        return Shape.read(cfg, eps=1e-5, theta=1e6, window=window)

    def mlp(self, cfg: Settings, shape: Shape, index: int, ops: Ops, dtype: torch.dtype) -> Layer:
        count = cfg.count("num_local_experts", 8)
        top = read_top(cfg, count, 2)
        return Experts(ops, shape.hidden, shape.inner, count, top, True, dtype)

    def mlp_targets(self, mlp: Layer) -> dict[str, Tensor]:
        views = mlp.targets("w1", "w3", "w2")
        return {f"block_sparse_moe.{name}": view for name, view in views.items()}
