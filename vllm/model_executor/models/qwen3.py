"""Qwen 3 (Yang et al. 2025): Llama with a norm on each query and key head."""

from __future__ import annotations

from vllm.model_executor.layers.decoder import Decoder, Shape, upper_window
from vllm.model_executor.settings import Settings


class Qwen3(Decoder):
    architectures = ("Qwen3ForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        bias = cfg.flag("attention_bias")
        return Shape.read(
            cfg,
            qkv_bias=bias,
            out_bias=bias,
            head_norm=True,
            **upper_window(cfg),
        )
