"""Phi-3, 3.5 and 4 (Abdin et al. 2024): Llama with weights stored fused, LongRoPE, part rotary."""

from __future__ import annotations

from vllm.model_executor.layers.decoder import Decoder, Shape
from vllm.model_executor.settings import Settings


class Phi3(Decoder):
    architectures = ("Phi3ForCausalLM",)
    qkv_names = ("qkv_proj",)
    gate_up_names = ("gate_up_proj",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        cfg.only("attention_bias", False)
        window = cfg.count("sliding_window", 0, low=0)
        return Shape.read(cfg, eps=1e-5, partial_rotary=True, window=window)
