"""The flags of the tiers below the device: host memory, disk, a shared store."""

from __future__ import annotations

from dataclasses import dataclass

from vllm.config.engine import TierConfig
from vllm.config.flags import at_least, flag

DEFAULT_SHARED_BYTES = 16 << 30


@dataclass(kw_only=True)
class TierArgs:
    enable_multi_tier_prefix_caching: bool = flag(
        False, "Tiers", "Keep what the device evicts in slower tiers, and load it from there."
    )
    swap_space: float = flag(4.0, "Tiers", "GiB of the host tier.")
    num_cpu_blocks_override: int | None = flag(
        None, "Tiers", "Blocks of the host tier, whatever swap_space says.", size=True
    )
    kv_offloading_size: float | None = flag(
        None, "Tiers", "GiB of the host tier; turns multi-tier prefix caching on (vLLM's name)."
    )
    disk_cache_dir: str | None = flag(None, "Tiers", "Folder of the disk tier; none: no such tier.")
    disk_cache_size: int = flag(16 << 30, "Tiers", "Bytes of the disk tier.", size=True)
    shared_cache: str | None = flag(
        None,
        "Tiers",
        "URL of a store that other engines use as well: shm:///path.sock (vllm kvstore serve), "
        "file:///folder, redis://host:port/db, s3://bucket/prefix. A tier by itself.",
    )
    shared_cache_size: int | None = flag(
        None,
        "Tiers",
        "Bytes of all files of a file:// shared_cache, whoever wrote them; default 16 GiB.",
        size=True,
    )
    enable_async_swapping: bool = flag(
        True, "Tiers", "Move blocks between tiers while steps run, rather than between them."
    )
    min_load_tokens: int | None = flag(
        None,
        "Tiers",
        "Load cached runs of at least so many tokens, compute shorter ones; default: by cost.",
        size=True,
    )

    def make_tiers(self, *, prefix_caching: bool, simulated: bool) -> TierConfig | None:
        """None without tiers. Raises ValueError for flags that cannot go together."""
        at_least(self, 1, "num_cpu_blocks_override", "disk_cache_size", "shared_cache_size")
        at_least(self, 0, "swap_space", "kv_offloading_size", "min_load_tokens")
        self._check_shared(simulated)
        asked = self.enable_multi_tier_prefix_caching or self.kv_offloading_size is not None
        if not asked:
            self._refuse_without_tiers()
            if self.shared_cache is None:
                return None
        if not prefix_caching:
            raise ValueError(
                "multi-tier prefix caching needs prefix caching; drop --no-enable-prefix-caching"
            )
        size = self.swap_space if self.kv_offloading_size is None else self.kv_offloading_size
        if not asked:  # a shared cache alone
            size = 0
        if not (size or self.num_cpu_blocks_override or self.disk_cache_dir or self.shared_cache):
            raise ValueError(
                "multi-tier prefix caching has no tier: give swap_space or disk_cache_dir"
            )
        return TierConfig(
            host_bytes=int(size * 2**30),
            host_blocks=self.num_cpu_blocks_override,
            disk_dir=self.disk_cache_dir,
            disk_bytes=self.disk_cache_size,
            asynchronous=self.enable_async_swapping,
            min_load_tokens=self.min_load_tokens,
            shared=self.shared_cache,
            shared_bytes=self.shared_cache_size
            or (DEFAULT_SHARED_BYTES if self.shared_cache else 0),
        )

    def _check_shared(self, simulated: bool) -> None:
        scheme = (self.shared_cache or "").partition("://")[0]
        if self.shared_cache_size is not None and scheme != "file":
            raise ValueError("shared_cache_size is for a shared_cache of files, file:///folder")
        if self.shared_cache is not None and simulated:
            raise ValueError("shared_cache: a simulated engine has no shared tier")

    def _refuse_without_tiers(self) -> None:
        names = ["disk_cache_dir", "num_cpu_blocks_override"]
        if self.shared_cache is None:
            names.append("min_load_tokens")
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} needs enable_multi_tier_prefix_caching")
