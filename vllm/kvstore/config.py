"""Where a cache keeps its tokens: in the shared memory of a daemon, or in files under a folder.

Both take the arguments of the original store, in its first and in its later spelling. A spelling
that is given twice, with two values, is an error; so is a value that would have no meaning here.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from vllm.kvstore.native import library

if TYPE_CHECKING:
    from vllm.kvstore.hosts import HostsConfig

_OBJECT = "llm_cache_object"
SYNC = {"none": 0, "data": 1, "all": 2}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What shapes a cache's bytes: caches that differ in any of it see nothing of each other.

    A token has `layers` pairs (K, V) of `tensor_bytes` each. `space` names the model and whatever
    else its KVs depend on.
    """

    tensor_bytes: int
    layers: int
    rank: int = 0
    world_size: int = 1
    space: str = ""
    threads: int = 0

    def arguments(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def digest(self, kind: str) -> bytes:
        """32 bytes that name all that shapes the bytes; `kind` says how tokens are cut.

        Each field stands behind its length.
        """
        sha = hashlib.sha256()
        numbers = (self.layers, self.tensor_bytes, self.rank, self.world_size)
        for field in ("vllm-kvstore-1", kind, self.space, repr(numbers)):
            encoded = field.encode()
            sha.update(len(encoded).to_bytes(8, "little") + encoded)
        return sha.digest()


class CacheConfig(Protocol):
    """What `KVCache` needs of a configuration."""

    chunk_size: int

    def open(self, layout: Layout, capacity: int) -> Any:
        """The native cache; `capacity` in tokens."""
        ...


def one_of(name: str, value: Any, other_name: str, other: Any, default: Any) -> Any:
    """One argument with two spellings. Raises ValueError when both are given and differ."""
    if value is not None and other is not None and value != other:
        raise ValueError(
            f"{name} and {other_name} are two names for one argument: {value}, {other}"
        )
    return default if value is None and other is None else (other if value is None else value)


def positive(name: str, value: Any, kind: type = int) -> Any:
    """The value as a number above 0. Raises ValueError, TypeError."""
    if type(value) not in (int, kind):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not value > 0:
        raise ValueError(f"{name} must be above 0, not {value}")
    return value


class FilesystemType(enum.Enum):
    LOCAL = "local"  # any POSIX filesystem, distributed ones too
    VINEYARD = "vineyard"


class FileCacheConfig:
    """One file a chunk of `chunk_size` tokens under `root`, named by content.

    `hash_chunk_size` (or `split_number`) hex digits name a file's folder, 1 to 4. Every
    `gc_interval` (or `client_gc_interval`) seconds this client deletes what it wrote and nobody
    used for `ttl` seconds (0: it does not); with `enable_global_gc` it does so for all files under
    the root, every `global_gc_interval` seconds by `global_ttl`. `quota` bounds the bytes under the
    root (0: nothing does); what was used longest ago goes first. `sync` is what is on the disk when
    a call returns: "none" (a crash may lose it), "data", or "all", the file's name too. `direct`
    uses direct I/O where a probe says that it works.
    """

    def __init__(
        self,
        chunk_size: int = 16,
        hash_chunk_size: int | None = None,
        root: str | os.PathLike[str] = "",
        filesystem_type: FilesystemType = FilesystemType.LOCAL,
        gc_interval: float | None = None,
        ttl: float = 1800,
        enable_global_gc: bool = False,
        global_gc_interval: float = 10800,
        global_ttl: float = 10800,
        socket: str = "",
        rpc_endpoint: str = "",
        rdma_endpoint: str = "",
        *,
        split_number: int | None = None,
        client_gc_interval: float | None = None,
        quota: int = 0,
        sync: str = "none",
        direct: bool = True,
    ) -> None:
        self.chunk_size = positive("chunk_size", chunk_size)
        split = one_of("hash_chunk_size", hash_chunk_size, "split_number", split_number, 2)
        self.hash_chunk_size = positive("hash_chunk_size", split)
        if self.hash_chunk_size > 4:
            raise ValueError(f"hash_chunk_size must be from 1 to 4, not {split}")
        self.root = os.fspath(root)
        if not self.root:
            raise ValueError("root is empty: name the folder that keeps the files")
        if filesystem_type is not FilesystemType.LOCAL:
            raise ValueError("filesystem_type: only LOCAL is here; use SharedMemoryCacheConfig")
        for name, value in (
            ("socket", socket),
            ("rpc_endpoint", rpc_endpoint),
            ("rdma_endpoint", rdma_endpoint),
        ):
            if value:
                raise ValueError(f"{name} has no meaning with filesystem_type LOCAL")
        self.filesystem_type = filesystem_type
        interval = one_of(
            "gc_interval", gc_interval, "client_gc_interval", client_gc_interval, 1800
        )
        self.gc_interval = positive("gc_interval", interval, float) if interval else 0
        self.ttl = positive("ttl", ttl, float)
        self.enable_global_gc = bool(enable_global_gc)
        self.global_gc_interval = positive("global_gc_interval", global_gc_interval, float)
        self.global_ttl = positive("global_ttl", global_ttl, float)
        self.quota = positive("quota", quota) if quota else 0
        if sync not in SYNC:
            raise ValueError(f"sync is one of {', '.join(SYNC)}, not {sync!r}")
        self.sync = sync
        self.direct = bool(direct)

    @property
    def split_number(self) -> int:
        return int(self.hash_chunk_size)

    @property
    def client_gc_interval(self) -> float:
        return float(self.gc_interval)

    def open(self, layout: Layout, capacity: int) -> Any:
        """A cache of files. `capacity` is that of shared memory; files are bounded by `quota`."""
        return library().Cache.files(
            **layout.arguments(),
            root=self.root,
            chunk_tokens=self.chunk_size,
            split=self.hash_chunk_size,
            quota_bytes=self.quota,
            ttl=self.ttl,
            gc_interval=self.gc_interval,
            global_ttl=self.global_ttl,
            global_gc_interval=self.global_gc_interval if self.enable_global_gc else 0,
            sync=SYNC[self.sync],
            direct=self.direct,
        )


class SharedMemoryCacheConfig:
    """The shared memory of the daemon at `socket` (`vllm kvstore serve`), token by token.

    `llm_cache_object_name` tells caches apart that share a daemon. `sync_interval` is how many
    seconds may pass before a daemon that was away is noticed to be back; what one client stores the
    others see at once. `block_size` is in how many tokens hosts exchange what they have; what is
    found here ends at any token. There is no lock and no object of reference counts: their names,
    `llm_cache_sync_lock` and `llm_ref_cnt_object_name`, are checked and stand for nothing.

    With `verify` a checksum of each token is recorded and checked whenever it is found; such caches
    see nothing of those without. With `lazy` the daemon need not be there yet. With `hosts` what is
    not here is looked for in the shared memory of other hosts.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str],
        block_size: int = 5,
        sync_interval: float = 3,
        llm_cache_sync_lock: str = "llmCacheSyncLock",
        llm_cache_object_name: str = _OBJECT,
        llm_ref_cnt_object_name: str = "llm_refcnt_object",
        *,
        verify: bool = False,
        lazy: bool = False,
        hosts: HostsConfig | None = None,
    ) -> None:
        self.socket = os.fspath(socket)
        if not self.socket:
            raise ValueError("socket is empty: name the daemon's")
        self.block_size = positive("block_size", block_size)
        self.chunk_size = self.block_size
        self.sync_interval = positive("sync_interval", sync_interval, float)
        for name, value in (
            ("llm_cache_sync_lock", llm_cache_sync_lock),
            ("llm_cache_object_name", llm_cache_object_name),
            ("llm_ref_cnt_object_name", llm_ref_cnt_object_name),
        ):
            if not isinstance(value, str) or not value.isprintable() or not value:
                raise ValueError(f"{name} is a printable name, not {value!r}")
        self.llm_cache_sync_lock = llm_cache_sync_lock
        self.llm_cache_object_name = llm_cache_object_name
        self.llm_ref_cnt_object_name = llm_ref_cnt_object_name
        self.verify = bool(verify)
        self.lazy = bool(lazy)
        self.hosts = hosts

    def open(self, layout: Layout, capacity: int) -> Any:
        """A client of the daemon; its space holds up to `capacity` tokens."""
        if self.llm_cache_object_name != _OBJECT:  # not printable, so no name contains it
            layout = dataclasses.replace(
                layout, space=f"{self.llm_cache_object_name}\x1f{layout.space}"
            )
        local = library().Cache.shared(
            **layout.arguments(),
            socket=self.socket,
            capacity=capacity,
            checksums=self.verify,
            lazy=self.lazy,
            retry=float(self.sync_interval),
        )
        if self.hosts is None:
            return local
        return self.hosts.open(local, layout, capacity, self.socket, self.block_size, self.verify)


VineyardCacheConfig = SharedMemoryCacheConfig  # its name in the original


_PREFIX = "VINEYARD_LLM_CACHE_"


def from_environment(environ: Mapping[str, str]) -> CacheConfig | None:
    """The configuration that the original's variables describe; files win over shared memory."""

    def given(fields: dict[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
        out = {}
        for field, (variable, read) in fields.items():
            if _PREFIX + variable in environ:
                try:
                    out[field] = read(environ[_PREFIX + variable])
                except ValueError as error:
                    raise ValueError(f"{_PREFIX}{variable}: {error}") from None
        return out

    if _PREFIX + "FILESYSTEM" in environ:
        return FileCacheConfig(
            **given(
                {
                    "chunk_size": ("CHUNK_SIZE", int),
                    "hash_chunk_size": ("HASH_CHUNK_SIZE", int),
                    "root": ("ROOT", str),
                }
            )
        )
    if _PREFIX + "SHARED_MEMORY" in environ:
        if _PREFIX + "SOCKET" not in environ:
            raise ValueError(f"{_PREFIX}SOCKET is not set: the daemon's socket")
        return SharedMemoryCacheConfig(
            **given(
                {
                    "socket": ("SOCKET", str),
                    "block_size": ("BLOCK_SIZE", int),
                    "sync_interval": ("SYNC_INTERVAL", float),
                }
            )
        )
    return None
