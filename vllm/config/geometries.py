"""Shapes of well-known models, for runs that need a model's sizes and not its weights.

The numbers are those of each model's published config.json.
"""

from __future__ import annotations

from typing import Any


def _llama_like(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate: int,
    vocab: int,
    length: int,
    *,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


GEOMETRIES: dict[str, dict[str, Any]] = {
    "gpt2": _llama_like(12, 768, 12, 12, 64, 3072, 50257, 1024, tied=True),
    "llama-2-7b": _llama_like(32, 4096, 32, 32, 128, 11008, 32000, 4096),
    "llama-3.2-1b": _llama_like(16, 2048, 32, 8, 64, 8192, 128256, 131072, tied=True),
    "llama-3-8b": _llama_like(32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "llama-3-70b": _llama_like(80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "mistral-7b": _llama_like(32, 4096, 32, 8, 128, 14336, 32768, 32768),
    "qwen2.5-7b": _llama_like(28, 3584, 28, 4, 128, 18944, 152064, 32768),
    "qwen2.5-32b": _llama_like(64, 5120, 40, 8, 128, 27648, 152064, 32768),
    "qwen3-8b": _llama_like(36, 4096, 32, 8, 128, 12288, 151936, 40960),
    "qwen3-32b": _llama_like(64, 5120, 64, 8, 128, 25600, 151936, 40960),
}
