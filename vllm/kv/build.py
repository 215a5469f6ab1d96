"""Puts the tiers that the configuration asks for under a manager."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from vllm.config.engine import TierConfig
from vllm.core.plan import BlockIO
from vllm.kv.cost import LoadCost
from vllm.kv.evict import make
from vllm.kv.hierarchy import Hierarchy
from vllm.kv.manager import KVManager
from vllm.kv.mover import Mover
from vllm.kv.seek import Seeker
from vllm.kv.shelf import Level, Shelf
from vllm.kv.tiers.disk import DiskTier
from vllm.kv.tiers.host import HostTier
from vllm.kv.tiers.shared import SharedTier

logger = logging.getLogger(__name__)

LOOK_AHEAD = 512
KNOWN = 1 << 16  # blocks of a shared store that are remembered to be there


def attach_tiers(kv: KVManager, config: TierConfig, io: BlockIO, fingerprint: bytes) -> None:
    """Make the tiers that are configured.

    Raises OSError or MemoryError when a tier's memory or folder cannot be had.
    """
    block_bytes = kv.spec.block_bytes
    levels: list[Level] = []
    blocks = config.host_blocks or config.host_bytes // block_bytes
    if blocks:
        levels.append(Level(HostTier(blocks, block_bytes), Shelf(blocks, make(kv.policy), kv.uses)))
        logger.info("Host tier: %d blocks, %.2f GiB", blocks, blocks * block_bytes / 2**30)
    if config.disk_dir is not None:
        levels.append(_disk(kv, Path(config.disk_dir), config.disk_bytes, fingerprint))
    seeker = None
    if config.shared is not None:
        level = _shared(kv, config.shared, config.shared_bytes, fingerprint)
        seeker = Seeker(level.tier, asynchronous=config.asynchronous)
        levels.append(level)
    kv.attach(
        Hierarchy(
            levels,
            Mover([level.tier for level in levels], asynchronous=config.asynchronous),
            io,
            kv.pool,
            kv.index,
            LoadCost(block_bytes, kv.spec.block_size, config.min_load_tokens),
            window=_window(kv.num_blocks, levels),
            seeker=seeker,
        )
    )


def _window(device_blocks: int, levels: list[Level]) -> int:
    """How many blocks that are next in line are kept ready to go.

    Admissions take a whole prompt's blocks at once, so it is thousands of tokens; no more than half
    a tier, or copies would push each other out; and few enough to look through at every step.
    """
    return min(LOOK_AHEAD, *(-(-n // 2) for n in (device_blocks, *map(_capacity, levels))))


def _capacity(level: Level) -> int:
    return level.shelf.capacity


def _disk(kv: KVManager, root: Path, quota: int, fingerprint: bytes) -> Level:
    tier = DiskTier(root, kv.spec.block_bytes, fingerprint)
    shelf = Shelf(quota // tier.file_bytes, make(kv.policy), kv.uses)
    found = [key for key, _ in sorted(tier.scan(), key=lambda item: item[1])]
    for key in shelf.adopt(found):
        tier.delete(key)
    logger.info(
        "Disk tier: %s, %d of %d blocks there already, direct I/O %s",
        root,
        len(shelf),
        shelf.capacity,
        "on" if tier.direct else "off",
    )
    return Level(tier, shelf)


def _shared(kv: KVManager, url: str, quota: int, fingerprint: bytes) -> Level:
    tier = SharedTier(url, kv.spec.block_bytes, fingerprint, quota)
    logger.info("Shared tier: %s", re.sub("//.*@", "//", url.partition("?")[0]))  # no password
    return Level(tier, Shelf(KNOWN, make(kv.policy), kv.uses), shared=True)
