"""Keys: the names of full blocks, chained so that a name says all that came before it.

    root = H(fingerprint, salt)      key of block i = H(key of block i-1, tokens of block i)

One function makes keys, for every tier. Two blocks with one key hold the same KVs.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NewType, cast

Key = NewType("Key", bytes)  # 32 bytes


class LossyLineageError(RuntimeError):
    """A compressed sequence was asked for a key; what it computes is wrong for everybody else."""


@lru_cache(maxsize=1024)
def root(fingerprint: bytes, salt: str | None = None) -> Key:
    """Where a sequence's chain starts. The salt keeps tenants apart; none is not the empty salt."""
    digest = hashlib.sha256(b"vllm-kv-root" + len(fingerprint).to_bytes(8, "little") + fingerprint)
    if salt is not None:
        encoded = salt.encode("utf-8", "surrogatepass")  # JSON can hold what UTF-8 cannot
        digest.update(b"salt" + len(encoded).to_bytes(8, "little") + encoded)
    return Key(digest.digest())


def chain(parent: Key, tokens: Sequence[int]) -> Key:
    """The key of the block that holds `tokens` behind `parent`."""
    return Key(hashlib.sha256(parent + array("i", tokens).tobytes()).digest())


def compressed(root: Key, tokens: Sequence[int], shape: bytes) -> Key:
    """The lossy key of a whole prefix: `shape` says how it was compressed. No block ever has it."""
    digest = hashlib.sha256(b"vllm-kv-compressed" + root)
    digest.update(len(shape).to_bytes(8, "little") + shape + array("i", tokens).tobytes())
    return Key(digest.digest())


class Lineage:
    """The running keys of one sequence: `exact` until its first compression, then lossy for good.

    Invariant: key i names the tokens [0, (i+1) * block_size), and keys are only ever appended.
    """

    __slots__ = ("_block_size", "_keys", "_lossy", "root")

    def __init__(self, root: Key, block_size: int) -> None:
        self.root = root
        self._block_size = block_size
        self._keys: list[Key] = []
        self._lossy = False

    @property
    def lossy(self) -> bool:
        return self._lossy

    def __len__(self) -> int:
        """How many blocks have a key by now."""
        return len(self._keys)

    def begin(self, keys: Iterable[bytes]) -> None:
        """The first blocks have these keys, whatever their tokens are. Before any has a key."""
        assert not self._keys, "keys are only ever appended"
        self._keys = cast("list[Key]", list(keys))

    def extend(self, tokens: Sequence[int], blocks: int) -> None:
        """Make sure that the first `blocks` blocks of the sequence's `tokens` have keys."""
        self._refuse_lossy()
        size = self._block_size
        while len(self._keys) < blocks:
            i = len(self._keys)
            parent = self._keys[-1] if self._keys else self.root
            self._keys.append(chain(parent, tokens[i * size : (i + 1) * size]))

    def key(self, block: int) -> Key:
        self._refuse_lossy()
        return self._keys[block]

    def keys(self) -> Sequence[Key]:
        self._refuse_lossy()
        return self._keys

    def fork(self, blocks: int) -> Lineage:
        """The lineage of a sequence that shares the first `blocks` blocks of this one."""
        self._refuse_lossy()
        child = Lineage(self.root, self._block_size)
        child._keys = self._keys[:blocks]
        return child

    def lose(self) -> None:
        """From now on this sequence publishes nothing: rule R3 of the caching contract."""
        self._lossy = True

    def _refuse_lossy(self) -> None:
        if self._lossy:
            raise LossyLineageError("a compressed sequence has no keys")
