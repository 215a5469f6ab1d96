"""The shape of the KV cache, and the fingerprint that all of its keys start from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

FORMAT_VERSION = 1
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class KVSpec:
    """One block holds `block_size` tokens of all layers and heads: [L, H, 2, B, D] of `dtype`."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str

    @property
    def block_bytes(self) -> int:
        return self.heads * 2 * self.head_dim * self.block_size * ITEM_BYTES[self.dtype]

    @property
    def heads(self) -> int:
        """Head blocks a block: layers times KV heads."""
        return self.num_layers * self.num_kv_heads

    def head_blocks_at_most(self, kvs: int) -> int:
        """What `kvs` KVs over all layers and heads take, however they are spread."""
        return -(-kvs // self.block_size) + self.heads

    def blocks_at_most(self, kvs: int) -> int:
        """The same in whole blocks that nobody shares."""
        return -(-self.head_blocks_at_most(kvs) // self.heads)


def fingerprint(
    spec: KVSpec, weights: bytes, *, adapter: str = "", rank: int = 0, world_size: int = 1
) -> bytes:
    """32 bytes that differ wherever KV bytes would: rule R1 of the caching contract.

    `weights` identifies the model: its files and its config.json, rope included. Every field is
    tagged and length-prefixed, so that no two field lists read as the same bytes.
    """
    digest = hashlib.sha256(b"vllm-kv-fingerprint")
    fields = {
        "format": FORMAT_VERSION,
        "layers": spec.num_layers,
        "heads": spec.num_kv_heads,
        "dim": spec.head_dim,
        "block": spec.block_size,
        "dtype": spec.dtype,
        "weights": weights.hex(),
        "adapter": adapter,
        "rank": rank,
        "world": world_size,
    }
    for name, value in fields.items():
        for part in (name, str(value)):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()
