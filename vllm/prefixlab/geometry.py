"""What a model's shape says of its KVs and its prefill: bytes a token, FLOPs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.config.geometries import GEOMETRIES
from vllm.config.model import read_json

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Geometry:
    """`latent` is the width of a token's latent KV a layer, of models that keep that alone."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    parameters: float  # that a token passes through
    dtype_bytes: int = 2
    latent: int = 0

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV a token, over all layers."""
        width = self.latent or 2 * self.kv_heads * self.head_dim
        return self.layers * width * self.dtype_bytes

    def flops(
        self, first: npt.NDArray[np.float64], tokens: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float64]:
        """FLOPs of prefilling `tokens` tokens at positions `first` and up, elementwise.

        Two a parameter and token, and four a layer, head dimension and pair of positions.
        """
        count = tokens.astype(np.float64)
        pairs = count * first + count * (count + 1) / 2
        cost: npt.NDArray[np.float64] = (
            2.0 * self.parameters * count + 4.0 * self.layers * self.heads * self.head_dim * pairs
        )
        return cost

    def gib(self, blocks: int, block_size: int) -> float:
        return blocks * block_size * self.kv_bytes / 2**30


def geometry(name: str) -> Geometry:
    """A model by its name, its folder or its config.json. Raises ValueError for others."""
    if name.lower() in GEOMETRIES:
        return _of(name.lower(), GEOMETRIES[name.lower()])
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        known = ", ".join(GEOMETRIES)
        raise ValueError(
            f"model: {name!r} is neither a folder with a config.json nor one of {known}"
        )
    return _of(path.parent.name or name, read_json(path))


def _of(name: str, config: dict[str, Any]) -> Geometry:
    def number(*fields: str, default: int | None = None) -> int:
        for field in fields:
            value = config.get(field)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ValueError(f"model: {field} of {name} must be a positive integer")
                return value
        if default is None:
            raise ValueError(f"model: {name} lacks {' or '.join(fields)}")
        return default

    heads, hidden = number("num_attention_heads", "n_head"), number("hidden_size", "n_embd")
    layers = number("num_hidden_layers", "n_layer")
    kv_heads = number("num_key_value_heads", default=heads)
    head_dim = number("head_dim", default=max(1, hidden // heads))
    inner = number("intermediate_size", "n_inner", default=4 * hidden)
    # Of a mixture's experts, those that a token passes through.
    experts = number("num_experts_per_tok", default=1)
    if experts > 1:
        inner = number("moe_intermediate_size", default=inner) * experts
    layer = 2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * inner
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    if dtype not in BYTES:
        raise ValueError(f"model: dtype {json.dumps(dtype)} of {name} is not one of {list(BYTES)}")
    latent = config.get("kv_lora_rank")
    return Geometry(
        name=name,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        parameters=float(layers * layer + hidden * number("vocab_size")),
        dtype_bytes=BYTES[dtype],
        latent=number("kv_lora_rank") + number("qk_rope_head_dim") if latent else 0,
    )
