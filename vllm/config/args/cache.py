"""The flags of the KV cache on the device, and of what it tells of its blocks."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from vllm.config.engine import CacheConfig, EventsConfig, TierConfig
from vllm.config.flags import at_least, flag

DEFAULT_KV_GIB = 4
# What kv.evict has; a test holds the two together.
EVICTION_POLICIES = tuple(
    "lru fifo lfu s3fifo s3fifo-main workload session ttl quota arc clock gdsf lhd lirs sieve slru "
    "w-tinylfu 2q allow".split()
)


@dataclass(kw_only=True)
class CacheArgs:
    gpu_memory_utilization: float = flag(
        0.92, "Cache", "Share of the GPU's memory to use (no effect on CPU)."
    )
    block_size: int = flag(16, "Cache", "Tokens a block.")
    kv_cache_memory_bytes: int | None = flag(
        None, "Cache", "Bytes of KV cache; 2G means 2 GiB.", size=True
    )
    num_gpu_blocks_override: int | None = flag(
        None, "Cache", "Blocks of KV cache, whatever the memory.", size=True
    )
    enable_prefix_caching: bool = flag(True, "Cache", "Reuse the KVs of prefixes computed before.")
    kv_eviction_policy: str = flag(
        "lru",
        "Cache",
        f"Which cached blocks go first, in every tier: {', '.join(EVICTION_POLICIES)}. Some take "
        "settings: allow:WORKLOAD,... ttl:WORKLOAD=SECONDS,... quota:WORKLOAD=SHARE,...",
    )
    kv_events_config: dict[str, Any] = flag(
        None,
        "Cache",
        "JSON object: enable_kv_cache_events, publisher (zmq or null), endpoint, replay_endpoint, "
        "buffer_steps, hwm, max_queue_size, topic.",
    )

    def make_cache(
        self, tiers: TierConfig | None, *, simulated: bool, metrics_sample: float
    ) -> CacheConfig:
        """Raises ValueError naming the argument at fault."""
        at_least(self, 1, "block_size", "num_gpu_blocks_override", "kv_cache_memory_bytes")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(
                f"gpu_memory_utilization must be in (0, 1], not {self.gpu_memory_utilization}"
            )
        policy = self.kv_eviction_policy
        if policy.partition(":")[0] not in EVICTION_POLICIES:
            raise ValueError(
                f"kv_eviction_policy must be one of {', '.join(EVICTION_POLICIES)}, not {policy!r}"
            )
        memory = self.kv_cache_memory_bytes
        return CacheConfig(
            block_size=self.block_size,
            memory_bytes=_default_bytes(simulated) if memory is None else memory,
            num_blocks=self.num_gpu_blocks_override,
            enable_prefix_caching=self.enable_prefix_caching,
            eviction_policy=policy,
            tiers=tiers,
            metrics_sample=metrics_sample,
            events=_events(self.kv_events_config or {}),
        )


def _default_bytes(simulated: bool) -> int:
    """What the environment says; else 4 GiB, or 40% of the memory that is free now if less.

    A simulated engine needs no memory, and its results must not depend on the machine.
    """
    asked = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if asked:
        try:
            return int(float(asked) * 2**30)
        except (ValueError, OverflowError):
            raise ValueError(
                f"VLLM_CPU_KVCACHE_SPACE must be a number of GiB, not {asked!r}"
            ) from None
    most = DEFAULT_KV_GIB << 30
    if simulated:
        return most
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return most
    return min(most, int(free * 0.4))


def _events(given: dict[str, Any]) -> EventsConfig | None:
    """None unless they are enabled. Raises ValueError naming the field at fault."""
    known = {f.name for f in fields(EventsConfig)}
    unknown = set(given) - known - {"enable_kv_cache_events", "publisher"}
    if unknown:
        raise ValueError(f"kv_events_config has no field {sorted(unknown)[0]!r}")
    publisher = given.get("publisher", "zmq")
    if publisher not in ("zmq", "null"):
        raise ValueError(f"kv_events_config.publisher must be zmq or null, not {publisher!r}")
    enabled = given.get("enable_kv_cache_events", False)
    if not isinstance(enabled, bool):
        raise ValueError(f"kv_events_config.enable_kv_cache_events cannot be {enabled!r}")
    values = {name: value for name, value in given.items() if name in known}
    for name, value in values.items():
        number = name in ("buffer_steps", "hwm", "max_queue_size")
        good = type(value) is int and value >= 1 if number else isinstance(value, str)
        if not (good or (name == "replay_endpoint" and value is None)):
            raise ValueError(f"kv_events_config.{name} cannot be {value!r}")
    return EventsConfig(**values) if enabled and publisher == "zmq" else None
