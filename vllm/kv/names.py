"""The keys of sequences that are not admitted yet, and blocks that are about to be published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm.kv.lineage import Key, Lineage, root


class Names:
    """The lineages of sequences that wait: what is hashed at one try is kept for the next."""

    def __init__(self, fingerprint: bytes, block_size: int) -> None:
        self._fingerprint, self._block_size = fingerprint, block_size
        self._lineages: dict[int, Lineage] = {}

    def __len__(self) -> int:
        return len(self._lineages)

    def __contains__(self, seq: object) -> bool:
        return seq in self._lineages

    def root(self, salt: str | None) -> Key:
        return root(self._fingerprint, salt)

    def new(self, salt: str | None) -> Lineage:
        return Lineage(self.root(salt), self._block_size)

    def of(self, seq: int, salt: str | None) -> Lineage:
        lineage = self._lineages.get(seq)
        if lineage is None:
            lineage = self._lineages[seq] = self.new(salt)
        return lineage

    def keys(self, seq: int, tokens: Sequence[int], salt: str | None, limit: int) -> Sequence[Key]:
        """Those of the sequence's full blocks among its first `limit` tokens."""
        lineage, blocks = self.of(seq, salt), limit // self._block_size
        lineage.extend(tokens, blocks)
        return lineage.keys()[:blocks]

    def introduce(self, seq: int, salt: str | None, keys: Iterable[bytes]) -> None:
        """A sequence comes whose first blocks have these keys."""
        lineage = self._lineages[seq] = self.new(salt)
        lineage.begin(keys)

    def drop(self, seq: int) -> None:
        """It is admitted, or gone."""
        self._lineages.pop(seq, None)


class Expected:
    """Prompt blocks that a sequence is about to publish, by the first that said so."""

    def __init__(self) -> None:
        self._by_key: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def add(self, keys: Iterable[Key], seq: int) -> None:
        for key in keys:
            self._by_key.setdefault(key, seq)

    def published(self, keys: Iterable[Key]) -> None:
        for key in keys:
            self._by_key.pop(key, None)

    def drop(self, keys: Iterable[Key], seq: int) -> None:
        """The sequence will not compute these, whoever else does."""
        for key in keys:
            if self._by_key.get(key) == seq:
                del self._by_key[key]

    def sequences(self) -> set[int]:
        return set(self._by_key.values())
