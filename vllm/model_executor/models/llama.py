"""Llama 2, 3, 3.1, 3.2 and 3.3, and what is built like them."""

from __future__ import annotations

from vllm.model_executor.layers.decoder import Decoder, Shape
from vllm.model_executor.settings import Settings


class Llama(Decoder):
    architectures = ("LlamaForCausalLM",)

    @staticmethod
    def shape(cfg: Settings) -> Shape:
        cfg.only("sliding_window", None)
        bias = cfg.flag("attention_bias")
        return Shape.read(cfg, qkv_bias=bias, out_bias=bias, mlp_bias=cfg.flag("mlp_bias"))
