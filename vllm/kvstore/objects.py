"""A cache over a store of whole values: one value a chunk of tokens, named by content.

A value is a header and the chunk's tensors one behind the other:

    header    magic, version, key, space, payload length, CRC-32 of the payload, CRC-32 of the
              header so far

A reader takes it only if all of that is what it asked for; anything else counts as not being there
and is deleted. Keys are chained SHA-256 over the space (what shapes the bytes) and the tokens.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import struct
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.kvstore.config import Layout, positive
from vllm.kvstore.native import library
from vllm.kvstore.values import Values, open_values

logger = logging.getLogger(__name__)

MAGIC, VERSION = b"VLLMKVO\0", 1
HEADER = struct.Struct("<8sI32s32sQI")
THREADS = 8


class ObjectCacheConfig:
    """Values at `url`: redis://host:port/db, s3://bucket/prefix, or another URL that fsspec knows.

    `chunk_size` tokens a value. What is stored stays until the store lets it go: bound a Redis with
    `maxmemory` and `allkeys-lru`, a bucket with a lifecycle rule.
    """

    def __init__(self, url: str, chunk_size: int = 16) -> None:
        self.url = url
        self.chunk_size = positive("chunk_size", chunk_size)

    def open(self, layout: Layout, capacity: int) -> Any:
        return ObjectCache(open_values(self.url), layout, self.chunk_size)


class ObjectCache:
    """What `KVCache` drives. `put`, `get` and `contains` raise OSError when the store is away; to
    `update` and `query` it is a shorter match.
    """

    def __init__(self, values: Values, layout: Layout, chunk: int) -> None:
        self._values, self._layout, self._chunk = values, layout, chunk
        self._space = layout.digest(f"objects/{chunk}")
        self._payload = chunk * layout.layers * 2 * layout.tensor_bytes
        self._pool = ThreadPoolExecutor(layout.threads or THREADS, "kv-objects")
        self._lock = threading.Lock()
        self._counts = {"hits": 0, "misses": 0, "damaged": 0}
        self._closed = False

    # ---- by tokens ----------------------------------------------------------------------------

    def update(self, prefix: Any, tokens: Any, tensors: Any) -> int:
        where, parent, keys = self._arguments(prefix, tokens, tensors)
        if parent is not None and not self._quietly(lambda: self.contains([parent])[0]):
            return 0

        def store(i: int) -> bool:
            blob = bytearray(self._payload)
            self._copy(where, i, blob, store=True)
            return self._quietly(lambda: self.put(keys[i], np.frombuffer(blob, np.uint8)))

        return self._leading(store, len(keys))

    def query(self, prefix: Any, tokens: Any, tensors: Any) -> int:
        where, _, keys = self._arguments(prefix, tokens, tensors)

        def bring(i: int) -> bool:
            blob = bytearray(self._payload)
            found = self._quietly(lambda: self.get(keys[i], np.frombuffer(blob, np.uint8)))
            if found:
                self._copy(where, i, blob, store=False)
            return found

        return self._leading(bring, len(keys))

    fill = query

    def locate(self, prefix: Any, tokens: Any, addresses: Any) -> tuple[int, Any]:
        raise library().KVStoreValueError("a cache of objects has nothing in place")

    def _leading(self, work: Any, count: int) -> int:
        """How many tokens the leading run of chunks has for which `work` succeeds."""
        done = list(self._pool.map(work, range(count)))
        run = done.index(False) if False in done else count
        return run * self._chunk

    def _arguments(
        self, prefix: Any, tokens: Any, tensors: Any
    ) -> tuple[npt.NDArray[np.uint64], bytes | None, list[bytes]]:
        """(addresses [tokens, layers, 2], the prefix's last key, the keys of whole chunks)."""
        self._check_open()
        head, body = _int32(prefix if prefix is not None else ()), _int32(tokens)
        if len(head) % self._chunk:
            raise library().KVStoreValueError(
                f"prefix has {len(head)} tokens, no multiple of the chunk of {self._chunk}"
            )
        keys = self._keys(self._space, head)
        parent = keys[-1] if keys else None
        return self._addresses(tensors, len(body)), parent, self._keys(parent or self._space, body)

    def _keys(self, key: bytes, tokens: npt.NDArray[np.int32]) -> list[bytes]:
        keys = []
        for at in range(0, len(tokens) - self._chunk + 1, self._chunk):
            key = hashlib.sha256(key + tokens[at : at + self._chunk].tobytes()).digest()
            keys.append(key)
        return keys

    def _addresses(self, tensors: Any, tokens: int) -> npt.NDArray[np.uint64]:
        layers, refuse = self._layout.layers, library().KVStoreValueError
        if isinstance(tensors, np.ndarray):
            if tensors.shape != (tokens, layers, 2):
                raise refuse("the addresses are not [tokens, layers, 2]")
            return tensors
        if len(tensors) != tokens:
            raise refuse(f"{tokens} tokens, but tensors of {len(tensors)}")
        where = np.zeros((tokens, layers, 2), dtype=np.uint64)
        for i, of_token in enumerate(tensors):
            if len(of_token) != layers:
                raise refuse(f"token {i} has {len(of_token)} layers, not {layers}")
            for j, pair in enumerate(of_token):
                for k, tensor in enumerate(pair):
                    if tensor.length != self._layout.tensor_bytes or not tensor.data:
                        raise refuse(
                            f"the {'KV'[k]} of token {i}, layer {j} is not of tensor_bytes"
                        )
                    where[i, j, k] = tensor.data
        return where

    def _copy(
        self, where: npt.NDArray[np.uint64], chunk: int, blob: bytearray, *, store: bool
    ) -> None:
        """Between the chunk's tensors and a blob."""
        size = self._layout.tensor_bytes
        base = ctypes.addressof(ctypes.c_char.from_buffer(blob))
        part = where[chunk * self._chunk : (chunk + 1) * self._chunk].reshape(-1)
        for i, address in enumerate(part.tolist()):
            pair = (base + i * size, address) if store else (address, base + i * size)
            ctypes.memmove(*pair, size)

    def _quietly(self, work: Any) -> bool:
        try:
            return bool(work())
        except OSError as error:
            logger.warning("The store of objects fails: %s", error)
            return False

    # ---- by key -------------------------------------------------------------------------------

    def put(self, key: bytes, blob: npt.NDArray[np.uint8]) -> bool:
        self._check(key, blob)
        payload = blob.tobytes()
        self._values.put(self._name(key), self._header(key, payload) + payload)
        return True

    def get(self, key: bytes, blob: npt.NDArray[np.uint8]) -> bool:
        self._check(key, blob)
        value = self._values.get(self._name(key))
        payload = None if value is None else self._open(key, value)
        if value is not None and payload is None:
            self._values.remove(self._name(key))
        with self._lock:
            self._counts["misses" if payload is None else "hits"] += self._chunk
            self._counts["damaged"] += value is not None and payload is None
        if payload is None:
            return False
        blob[:] = np.frombuffer(payload, dtype=np.uint8)
        return True

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Behind the first that is not there, none is looked for."""
        self._check_open()
        return self._values.there([self._name(key) for key in keys])

    def remove(self, key: bytes) -> None:
        self._check_open()
        self._values.remove(self._name(key))

    def _check(self, key: bytes, blob: npt.NDArray[np.uint8]) -> None:
        self._check_open()
        if len(key) != 32:
            raise library().KVStoreValueError("a key is 32 bytes")
        if blob.nbytes != self._payload:
            raise library().KVStoreValueError(
                f"the blob has {blob.nbytes} bytes, not {self._payload}"
            )

    def _name(self, key: bytes) -> str:
        return f"{self._space.hex()[:16]}/{key.hex()}"

    def _header(self, key: bytes, payload: bytes | memoryview) -> bytes:
        head = HEADER.pack(MAGIC, VERSION, key, self._space, len(payload), zlib.crc32(payload))
        return head + zlib.crc32(head).to_bytes(4, "little")

    def _open(self, key: bytes, value: bytes) -> memoryview | None:
        """The payload of a value that is what the key names, whole."""
        payload = memoryview(value)[HEADER.size + 4 :]
        if len(payload) != self._payload or not value.startswith(self._header(key, payload)):
            return None
        return payload

    # ---- the rest -----------------------------------------------------------------------------

    def gc(self, ttl: float) -> int:
        raise library().KVStoreValueError("a store of objects collects by rules of its own")

    def clear(self) -> None:
        self._check_open()
        self._values.clear(self._space.hex()[:16])

    def stat(self) -> dict[str, int]:
        self._check_open()
        with self._lock:
            return dict(self._counts)

    def attached(self) -> bool:
        return not self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._values.close()

    def _check_open(self) -> None:
        if self._closed:
            raise library().KVStoreError("the cache was closed")


def _int32(tokens: Any) -> npt.NDArray[np.int32]:
    """Raises TypeError for what is no list of 32-bit integers."""
    array = np.asarray(tokens)
    if array.size == 0:
        return np.zeros(0, dtype=np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError("tokens are a list of ints")
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise TypeError("a token is no 32-bit integer")
    return array.astype(np.int32)
