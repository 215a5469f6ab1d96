"""The shared tier: a store that other engines write to as well, on this host or elsewhere.

    shm:///run/kv.sock       the daemon of `vllm kvstore serve` on this machine
    file:///mnt/kv           chunk files under a folder of any filesystem
    redis://host:6379/0      values of a Redis server
    s3://bucket/prefix       objects, of S3 or whatever else fsspec knows

With shm:// other hosts may be asked, too: `?directory=redis://10.0.0.1:6379/0&secret=/etc/kv.secret`,
and of `replicas`, `timeout` and `ttl` what `HostsConfig` takes.

A blob is named by its block's key, whose chain starts from the fingerprint of model, layout and
tensor-parallel rank, so engines of different models share a store and see nothing of each other.
What is read is verified (key, fingerprint, length, checksum) by the store's own library.

The store bounds itself and decides what goes: this tier deletes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from vllm.kv.lineage import Key
from vllm.kvstore import (
    FileCacheConfig,
    HostsConfig,
    KVCache,
    KVStoreError,
    ObjectCacheConfig,
    SharedMemoryCacheConfig,
)
from vllm.kvstore.config import CacheConfig

HOSTS: dict[str, Callable[[str], Any]] = {
    "directory": str,
    "secret": str,
    "replicas": int,
    "timeout": float,
    "ttl": float,
}
FOREVER = 1 << 40  # blocks; a daemon's own size is what bounds it


class SharedTier:
    """Blobs of `block_bytes` at `url`, for caches of this `fingerprint` only."""

    name = "shared"
    in_memory = False

    def __init__(self, url: str, block_bytes: int, fingerprint: bytes, quota: int) -> None:
        """quota: bytes of all files under a `file://` root.

        Raises ValueError for a URL that names no store, OSError when the store refuses. A store
        that is only away is no error: it is found when it comes.
        """
        self.damaged = 0
        try:
            self._cache = KVCache(
                _config(url, quota),
                tensor_nbytes=block_bytes // 2,
                cache_capacity=FOREVER,
                namespace=fingerprint.hex(),
                threads=1,  # the mover's do one blob each
            )
        except KVStoreError as error:
            if isinstance(error, ValueError):
                raise
            raise OSError(str(error)) from error
        except ValueError as error:
            raise ValueError(f"shared_cache: {error}") from error

    def contains(self, keys: list[Key]) -> list[bool]:
        return self._cache.contains(keys)

    def read(self, key: Key, buffer: memoryview) -> bool:
        found = self._cache.get(key, np.frombuffer(buffer, dtype=np.uint8))
        if not found:
            self.damaged = self._cache.stat()["damaged"]
        return found

    def write(self, key: Key, buffer: memoryview) -> None:
        if not self._cache.put(key, np.frombuffer(buffer, dtype=np.uint8)):
            raise OSError("the store did not take it")

    def delete(self, key: Key) -> None:
        """Others may want it: what is not needed goes when the store needs room."""

    def close(self) -> None:
        self._cache.close()


def _config(url: str, quota: int) -> CacheConfig:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme in ("shm", "file"):
        asked = parts.query if parts.scheme == "file" else ""
        if parts.netloc or asked or parts.fragment or not path.strip("/"):
            raise ValueError(
                f"shared_cache: {parts.scheme}:// takes three slashes and a path, like "
                f"{parts.scheme}:///var/cache/kv, not {url!r}"
            )
        if parts.scheme == "shm":
            hosts = _hosts(parts.query) if parts.query else None
            return SharedMemoryCacheConfig(
                path, verify=True, lazy=True, sync_interval=1, hosts=hosts
            )
        return FileCacheConfig(chunk_size=1, root=path, quota=quota, gc_interval=0, ttl=math.inf)
    return ObjectCacheConfig(url, chunk_size=1)


def _hosts(query: str) -> HostsConfig:
    """What stands behind the `?` of a `shm://` URL. Raises ValueError, which names the field."""
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in HOSTS or name in given:
            fate = "stands there twice" if name in given else f"is none of {', '.join(HOSTS)}"
            raise ValueError(f"{name!r} behind shm:// {fate}")
        try:
            given[name] = HOSTS[name](text)
        except ValueError:
            raise ValueError(f"{name} is a number, not {text!r}") from None
    missing = {"directory", "secret"} - given.keys()
    if missing:
        raise ValueError(f"shm:// with other hosts needs {' and '.join(sorted(missing))}")
    return HostsConfig(**given)
