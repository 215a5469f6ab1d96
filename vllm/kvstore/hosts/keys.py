"""What hosts call the blocks that they tell each other of."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from vllm.kvstore.config import Layout


class Keys:
    """Names of blocks: SHA-256, from the layout's digest chained over blocks of tokens."""

    def __init__(self, layout: Layout, verify: bool, block: int) -> None:
        self._block = block
        self._root = layout.digest(f"hosts/{block}/{'checked' if verify else 'trusted'}")

    def of(self, tokens: npt.NDArray[np.int32]) -> list[bytes]:
        """One of each whole block."""
        out, key = [], self._root
        for at in range(0, len(tokens) - self._block + 1, self._block):
            key = hashlib.sha256(key + tokens[at : at + self._block].tobytes()).digest()
            out.append(key)
        return out

    def of_blob(self, key: bytes) -> bytes:
        return hashlib.sha256(self._root + b"blob" + key).digest()
