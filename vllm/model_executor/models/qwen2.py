"""Qwen 1.5, 2 and 2.5 (Yang et al. 2024): Llama with biases on q, k and v."""

from __future__ import annotations

from vllm.model_executor.layers.decoder import Decoder, Shape, upper_window
from vllm.model_executor.settings import Settings


class Qwen2(Decoder):
    architectures = ("Qwen2ForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        return Shape.read(cfg, qkv_bias=True, **upper_window(cfg))
