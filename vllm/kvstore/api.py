"""`KVCache`: store and find the KV tensors of tokens.

    with KVCache(FileCacheConfig(root="/var/cache/kv"), tensor_nbytes=1024, layer=2) as cache:
        cache.update(None, tokens, tensors)          # tensors[token][layer] = (K, V), KVTensors
        matched = cache.query(None, tokens, found)   # found likewise, filled

Tensors may be an array too, `[tokens, layers, 2, ...]`, NumPy's or torch's: then what is found is
copied into it. `find` shows what is in shared memory in place. What follows from tokens is stored
and found by them; blobs that have names of their own, by 32 bytes, with `put` and `get`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.kvstore.config import CacheConfig, Layout, from_environment, one_of, positive
from vllm.kvstore.views import Match, addresses

Tokens = Sequence[int] | npt.NDArray[np.int32]


class KVCache:
    """A cache of `layer` pairs (K, V) of `tensor_nbytes` (or `tensor_bytes`) for each token.

    `cache_capacity` is in tokens and bounds what shared memory keeps of this cache; files are
    bounded by their quota. `rank` and `world_size` (both or none) and `namespace`, which names the
    model and whatever else its KVs depend on, are part of every key: caches that differ in any of
    these, or in the shape of a token, see nothing of each other. `threads` copy or do I/O (0: as
    many as is sensible). Without a configuration the original's environment variables are asked.

    All methods may be called from several threads at once. After `close()` they raise KVStoreError.
    Raises ValueError (an argument, named), KVStoreError (the folder or daemon refuses).
    """

    def __init__(
        self,
        cache_config: CacheConfig | None = None,
        tensor_nbytes: int | None = None,
        cache_capacity: int = 1024,
        layer: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
        *,
        tensor_bytes: int | None = None,
        namespace: str = "",
        threads: int = 0,
    ) -> None:
        config = cache_config or from_environment(os.environ)
        if config is None or not callable(getattr(config, "open", None)):
            raise ValueError(f"cache_config is no configuration of a store: {cache_config!r}")
        nbytes = one_of("tensor_nbytes", tensor_nbytes, "tensor_bytes", tensor_bytes, 1024)
        self.tensor_nbytes: int = positive("tensor_nbytes", nbytes)
        self.cache_capacity: int = positive("cache_capacity", cache_capacity)
        self.layer: int = positive("layer", layer)
        if (rank is None) != (world_size is None):
            raise ValueError("rank and world_size go together")
        self.cache_config = config
        self.chunk_size = config.chunk_size
        layout = Layout(
            tensor_bytes=self.tensor_nbytes,
            layers=self.layer,
            rank=rank or 0,
            world_size=1 if world_size is None else positive("world_size", world_size),
            space=namespace,
            threads=threads,
        )
        self._cache = config.open(layout, self.cache_capacity)

    @property
    def tensor_bytes(self) -> int:
        return self.tensor_nbytes

    @property
    def kv_cache_manager(self) -> KVCache:
        """This: by `kv_cache_manager.close()` programs written for the original close theirs."""
        return self

    def update(
        self,
        *given: Any,
        prefix: Tokens | None = None,
        tokens: Tokens | None = None,
        kv_cache_list: Any = None,
        kv_state_list: Any = None,
    ) -> int:
        """`update(tokens, list)` or `update(prefix, tokens, list)`.

        How many leading tokens of `tokens` are stored now, by this call or before it. A prefix that
        is not stored itself stores nothing.
        """
        prefix, tokens, tensors = _arguments(given, prefix, tokens, kv_cache_list, kv_state_list)
        stored: int = self._cache.update(prefix, tokens, self._tensors(tensors))
        return stored

    def query(
        self,
        *given: Any,
        prefix: Tokens | None = None,
        tokens: Tokens | None = None,
        kv_cache_list: Any = None,
        kv_state_list: Any = None,
    ) -> int:
        """`query(tokens, list)` or `query(prefix, tokens, list)`.

        How many leading tokens of `tokens` were found. Tensors that have memory are filled; with
        shared memory, those without, `KVTensor(0, 0)`, are pointed to where it lies, and that stays
        as it is for as long as they, or views of them, live. What lies behind the match is
        unspecified.
        """
        prefix, tokens, tensors = _arguments(given, prefix, tokens, kv_cache_list, kv_state_list)
        find = self._cache.fill if hasattr(tensors, "shape") else self._cache.query
        matched: int = find(prefix, tokens, self._tensors(tensors))
        return matched

    def batched_update(self, tokens: Tokens, kv_cache_list: Any) -> int:
        """As `update`, which is batched itself."""
        return self.update(tokens, kv_cache_list)

    def batched_query(self, tokens: Tokens, kv_cache_list: Any) -> int:
        """As `query`, which is batched itself."""
        return self.query(tokens, kv_cache_list)

    def find(self, tokens: Tokens, prefix: Tokens | None = None) -> Match:
        """The longest run of `tokens` (behind `prefix`) in shared memory, in place.

        Raises ValueError for a cache of files, which has nothing in place.
        """
        where = np.empty(len(tokens), dtype=np.uint64)
        count, lease = self._cache.locate(prefix, tokens, where)
        return Match(count, where, lease, (self.layer, self.tensor_nbytes))

    def put(self, key: bytes, blob: npt.NDArray[np.uint8]) -> bool:
        """Store `2 * layer * tensor_nbytes` bytes under the 32 bytes of a key; whether they are."""
        stored: bool = self._cache.put(key, blob)
        return stored

    def get(self, key: bytes, blob: npt.NDArray[np.uint8]) -> bool:
        """Copy what is stored under a key; False leaves `blob` unspecified."""
        found: bool = self._cache.get(key, blob)
        return found

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of the keys are stored."""
        there: list[bool] = self._cache.contains(list(keys))
        return there

    def remove(self, key: bytes) -> None:
        """Forget what is stored under a key."""
        self._cache.remove(key)

    @property
    def attached(self) -> bool:
        """Whether the daemon is there; an open cache of files or objects always is."""
        there: bool = self._cache.attached()
        return there

    def clear(self) -> None:
        """Forget everything that caches of this kind hold."""
        self._cache.clear()

    def stat(self) -> dict[str, int]:
        """Bytes, entries, hits and so on, as the store counts them."""
        counts: dict[str, int] = self._cache.stat()
        return counts

    def close(self) -> None:
        """End its threads and connection. What was found in place stays good while it is held."""
        self._cache.close()

    def __enter__(self) -> KVCache:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _tensors(self, tensors: Any) -> Any:
        if not hasattr(tensors, "shape"):
            return tensors
        return addresses(tensors, self.layer, self.tensor_nbytes)


def _arguments(
    given: tuple[Any, ...], prefix: Any, tokens: Any, first: Any, later: Any
) -> tuple[Any, Any, Any]:
    """(prefix, tokens, tensors) of two or three positions, or of keywords."""
    tensors = one_of("kv_cache_list", first, "kv_state_list", later, None)
    named = [value for value in (prefix, tokens, tensors) if value is not None]
    if len(given) == 3 and not named:
        prefix, tokens, tensors = given
    elif len(given) == 2 and tokens is None and tensors is None:
        tokens, tensors = given
    elif given:
        raise TypeError("either (tokens, list) or (prefix, tokens, list)")
    if tokens is None or tensors is None:
        raise TypeError("tokens and kv_cache_list are needed")
    return (None if prefix is None or len(prefix) == 0 else prefix), tokens, tensors
