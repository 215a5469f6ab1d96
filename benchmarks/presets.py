"""Servers by name: the eight of MT-APC's own study, and compression.

A name says which of five switches are on: prefix caching, tiers, asynchronous swapping,
prefix-aware scheduling, prefetching. All have 512 blocks on the device and, with tiers, 512 on the
host, blocks of 16 tokens, a scheduler's window of 10, and preemption by recomputing.
"""

from __future__ import annotations

from typing import Any

SWITCHES = (
    "enable_prefix_caching",
    "enable_multi_tier_prefix_caching",
    "enable_async_swapping",
    "enable_prefix_aware_scheduling",
    "enable_async_prefetching",
)
BITS = {
    "no-apc": "00000",
    "apc": "10000",
    "mt-apc": "11111",
    "mt-apc-only-mt": "11000",
    "mt-apc-only-async": "11100",
    "mt-apc-only-sched": "11010",
    "mt-apc-no-prefetch": "11110",
    "mt-apc-no-sched": "11101",
}
COMMON: dict[str, Any] = {
    "block_size": 16,
    "num_gpu_blocks_override": 512,
    "preemption_mode": "recompute",
}


def _preset(bits: str) -> dict[str, Any]:
    switches = dict(zip(SWITCHES, (bit == "1" for bit in bits), strict=True))
    more: dict[str, Any] = {}
    if switches["enable_multi_tier_prefix_caching"]:
        more["num_cpu_blocks_override"] = 512
    if switches["enable_prefix_aware_scheduling"]:
        more["scheduler_window_size"] = 10
    return COMMON | switches | more


def _kept(share: float) -> dict[str, Any]:
    """Compression of every request to this share of its KVs; 1: ready to, and nothing is."""
    return {"enable_kvc": True, "target_compression_rate": share}


PRESETS: dict[str, dict[str, Any]] = {name: _preset(bits) for name, bits in BITS.items()}
"""Keywords of `EngineArgs` by server name."""
PRESETS |= {
    "kvc-off": PRESETS["apc"] | _kept(1.0),
    "kvc-2x": PRESETS["apc"] | _kept(1 / 2),
    "kvc-8x": PRESETS["apc"] | _kept(1 / 8),
    "mt-apc-kvc-8x": PRESETS["mt-apc"] | _kept(1 / 8),
}


def flags(engine: dict[str, Any]) -> list[str]:
    """The same as words for `vllm serve`."""
    words = []
    for name, value in engine.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def compresses(engine: dict[str, Any]) -> bool:
    """Whether a server's answers may differ from the others': it keeps a part of the KVs."""
    less = engine.get("target_compression_rate", 1.0) < 1 or engine.get("max_cache_tokens")
    return bool(engine.get("enable_kvc") or engine.get("enable_kvcompress")) and bool(less)
