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


def _experts(shape: dict[str, Any], experts: int, active: int) -> dict[str, Any]:
    """A mixture: `intermediate_size` is one expert's."""
    return shape | {"num_local_experts": experts, "num_experts_per_tok": active}


GEOMETRIES: dict[str, dict[str, Any]] = {
    "gpt2": _llama_like(12, 768, 12, 12, 64, 3072, 50257, 1024, tied=True)
    | {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"},
    "llama-2-7b": _llama_like(32, 4096, 32, 32, 128, 11008, 32000, 4096),
    "llama-2-13b": _llama_like(40, 5120, 40, 40, 128, 13824, 32000, 4096),
    "llama-2-70b": _llama_like(80, 8192, 64, 8, 128, 28672, 32000, 4096),
    "llama-3-8b": _llama_like(32, 4096, 32, 8, 128, 14336, 128256, 8192),
    "llama-3-70b": _llama_like(80, 8192, 64, 8, 128, 28672, 128256, 8192),
    "llama-3.1-8b": _llama_like(32, 4096, 32, 8, 128, 14336, 128256, 131072),
    "llama-3.1-70b": _llama_like(80, 8192, 64, 8, 128, 28672, 128256, 131072),
    "llama-3.1-405b": _llama_like(126, 16384, 128, 8, 128, 53248, 128256, 131072),
    "llama-3.2-1b": _llama_like(16, 2048, 32, 8, 64, 8192, 128256, 131072, tied=True),
    "llama-3.2-3b": _llama_like(28, 3072, 24, 8, 128, 8192, 128256, 131072, tied=True),
    "mistral-7b": _llama_like(32, 4096, 32, 8, 128, 14336, 32768, 32768),
    "mixtral-8x7b": _experts(_llama_like(32, 4096, 32, 8, 128, 14336, 32000, 32768), 8, 2),
    "phi-4": _llama_like(40, 5120, 40, 10, 128, 17920, 100352, 16384),
    "qwen2.5-0.5b": _llama_like(24, 896, 14, 2, 64, 4864, 151936, 32768, tied=True),
    "qwen2.5-1.5b": _llama_like(28, 1536, 12, 2, 128, 8960, 151936, 32768, tied=True),
    "qwen2.5-7b": _llama_like(28, 3584, 28, 4, 128, 18944, 152064, 32768),
    "qwen2.5-14b": _llama_like(48, 5120, 40, 8, 128, 13824, 152064, 32768),
    "qwen2.5-32b": _llama_like(64, 5120, 40, 8, 128, 27648, 152064, 32768),
    "qwen2.5-72b": _llama_like(80, 8192, 64, 8, 128, 29568, 152064, 32768),
    "qwen3-0.6b": _llama_like(28, 1024, 16, 8, 128, 3072, 151936, 40960, tied=True),
    "qwen3-1.7b": _llama_like(28, 2048, 16, 8, 128, 6144, 151936, 40960, tied=True),
    "qwen3-4b": _llama_like(36, 2560, 32, 8, 128, 9728, 151936, 40960, tied=True),
    "qwen3-8b": _llama_like(36, 4096, 32, 8, 128, 12288, 151936, 40960),
    "qwen3-14b": _llama_like(40, 5120, 40, 8, 128, 17408, 151936, 40960),
    "qwen3-32b": _llama_like(64, 5120, 64, 8, 128, 25600, 151936, 40960),
    "qwen3-30b-a3b": _experts(_llama_like(48, 2048, 32, 4, 128, 768, 151936, 40960), 128, 8),
    "qwen3-235b-a22b": _experts(_llama_like(94, 4096, 64, 4, 128, 1536, 151936, 40960), 128, 8),
}


def geometry(name: str) -> dict[str, Any]:
    """By its name in any case. Raises ValueError for a model that is not known here."""
    found = GEOMETRIES.get(name.lower())
    if found is None:
        raise ValueError(f"simulator_model must be one of {', '.join(GEOMETRIES)}, not {name!r}")
    return found
