"""The shared KV store: KV tensors of tokens, kept for other requests, processes and hosts.

Works without the engine and without torch. See docs/kvstore.md.
"""

from __future__ import annotations

from typing import Any

from vllm.kvstore.api import KVCache
from vllm.kvstore.config import (
    FileCacheConfig,
    FilesystemType,
    SharedMemoryCacheConfig,
    VineyardCacheConfig,
)
from vllm.kvstore.native import library
from vllm.kvstore.objects import ObjectCacheConfig
from vllm.kvstore.views import numpy_view, torch_view

__all__ = [
    "FileCacheConfig",
    "FilesystemType",
    "HostsConfig",
    "KVCache",
    "KVStoreError",
    "KVStoreValueError",
    "KVTensor",
    "ObjectCacheConfig",
    "SharedMemoryCacheConfig",
    "VineyardCacheConfig",
    "numpy_view",
    "torch_view",
]

_NATIVE = {"KVStoreError", "KVStoreValueError", "KVTensor"}


def __getattr__(name: str) -> Any:
    if name == "HostsConfig":
        from vllm.kvstore.hosts import HostsConfig

        return HostsConfig
    if name in _NATIVE:
        return getattr(library(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
