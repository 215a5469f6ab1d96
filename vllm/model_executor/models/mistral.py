"""Mistral 7B and what is built like it (Jiang et al. 2023): Llama with a sliding window."""

from __future__ import annotations

from vllm.model_executor.layers.decoder import Decoder, Shape
from vllm.model_executor.settings import Settings


class Mistral(Decoder):
    architectures = ("MistralForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        # Only here a missing window means a window: null is what turns it off.
        window = 0 if cfg.null("sliding_window") else cfg.count("sliding_window", 4096)
        return Shape.read(cfg, window=window)
