"""What if: N simulated engines behind a router, with or without a store that they share."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm.config import VllmConfig
from vllm.config.engine import TierConfig
from vllm.engine.capacity import Capacity
from vllm.simulator.executor import SimulatedExecutor
from vllm.simulator.run import Ask, Progress, Replica, Simulation, Told, drive, engine
from vllm.simulator.store import SharedStore

HASHED_TOKENS = 1024  # of a prompt's beginning: what `prefix` hashes, unless told otherwise
NO_TIERS = TierConfig(
    host_bytes=0,
    host_blocks=None,
    disk_dir=None,
    disk_bytes=0,
    asynchronous=True,
    min_load_tokens=None,
)

Route = Callable[["Cluster", Ask], int]


def round_robin(cluster: Cluster, ask: Ask) -> int:
    return cluster.routed % len(cluster.replicas)


def least_loaded(cluster: Cluster, ask: Ask) -> int:
    """The replica with the fewest requests; of several the one that got fewest so far."""
    return _first_least(
        (replica.requests, count)
        for replica, count in zip(cluster.replicas, cluster.counts, strict=True)
    )


def prefix(cluster: Cluster, ask: Ask) -> int:
    """By a hash of the prompt's beginning: equal beginnings go to one replica."""
    count = cluster.hashed_tokens
    beginning = np.array(ask.prompt[:count], dtype=np.int32).tobytes()
    if ask.keys:
        beginning = b"".join(ask.keys[: max(1, count // cluster.block_size)])
    digest = hashlib.sha256(beginning).digest()
    return int.from_bytes(digest[:8], "little") % len(cluster.replicas)


def cost(cluster: Cluster, ask: Ask) -> int:
    """Where the fewest tokens are in the way: the prompt's own that are not cached there, those
    that others wait for, and one a step for each that runs.
    """
    tokens = len(ask.prompt) - 1
    costs = (
        (tokens - replica.cached_tokens(ask) + replica.tokens_ahead, count)
        for replica, count in zip(cluster.replicas, cluster.counts, strict=True)
    )
    return _first_least(costs)


ROUTES: dict[str, Route] = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "prefix": prefix,
    "cost": cost,
}


def _first_least(costs: Any) -> int:
    return min(enumerate(costs), key=lambda pair: pair[1])[0]


class Cluster:
    """Equal engines, each with a clock of its own that `drive` keeps in step."""

    def __init__(
        self,
        config: VllmConfig,
        replicas: int,
        routing: str,
        store: SharedStore | None = None,
        *,
        hashed_tokens: int = HASHED_TOKENS,
    ) -> None:
        """Raises ValueError for an unknown routing, no replicas, or what `Simulation` refuses."""
        if routing not in ROUTES:
            raise ValueError(f"routing must be one of {', '.join(ROUTES)}, not {routing!r}")
        if replicas < 1:
            raise ValueError(f"replicas must be at least 1, not {replicas}")
        self._route = ROUTES[routing]
        self.routing, self.store, self.hashed_tokens = routing, store, hashed_tokens
        self._sharing = [] if store is None else _that_share(config, replicas, store)
        plain = [engine(config, number) for number in range(replicas)] if store is None else []
        self.replicas: list[Replica] = [*self._sharing, *plain]
        self.counts = [0] * replicas
        self.block_size = config.cache.block_size

    @property
    def routed(self) -> int:
        return sum(self.counts)

    def route(self, ask: Ask) -> int:
        chosen = self._route(self, ask)
        self.counts[chosen] += 1
        return chosen

    def run(self, asks: Sequence[Ask], *, progress: Progress | None = None) -> Outcome:
        done = drive(self.replicas, asks, self.route, progress=progress)
        for replica in self.replicas:
            replica.check()
        busy = [replica.busy_seconds for replica in self.replicas]
        loaded = stored = 0
        for replica in self._sharing:
            tiers = replica.core.scheduler.kv.tiers
            for told in tiers.stats() if tiers is not None else ():
                if told.tier == "shared":
                    loaded, stored = loaded + told.bytes_loaded, stored + told.bytes_stored
        return Outcome(self.routing, self.store is not None, done, busy, loaded, stored)


def _that_share(config: VllmConfig, replicas: int, store: SharedStore) -> list[Simulation]:
    def make(config: VllmConfig, capacity: Capacity) -> SimulatedExecutor:
        return SimulatedExecutor(config, capacity, store)

    config = _with_tiers(config)
    return [Simulation(config, number, make) for number in range(replicas)]


def _with_tiers(config: VllmConfig) -> VllmConfig:
    """Room for a store below the device. Raises ValueError where it would have to hold more."""
    if config.scheduler.swap and config.cache.tiers is None:
        raise ValueError(
            "preemption_mode swap needs a host tier: a shared store takes no sequences"
        )
    if not config.cache.enable_prefix_caching:
        raise ValueError("a shared store needs enable_prefix_caching")
    cache = dataclasses.replace(config.cache, tiers=config.cache.tiers or NO_TIERS)
    return dataclasses.replace(config, cache=cache)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run's requests."""

    routing: str
    shared_store: bool
    done: list[Told]
    busy: list[float]  # seconds of steps, by replica
    bytes_loaded: int  # from the shared store
    bytes_stored: int

    def row(self) -> dict[str, Any]:
        """Hit rates by token; times in seconds; Jain's index of the replicas' loads and TTFTs."""
        tokens = sum(len(t.ask.prompt) for t in self.done)
        ttfts = np.array([t.ttft for t in self.done])
        p50, p90, p99 = np.percentile(ttfts, (50, 90, 99))
        by_replica = [
            float(np.mean(own))
            for replica in range(len(self.busy))
            if (own := [t.ttft for t in self.done if t.replica == replica])
        ]
        return {
            "routing": self.routing,
            "shared_store": self.shared_store,
            "replicas": len(self.busy),
            "requests": len(self.done),
            "token_hit_rate": sum(t.cached_tokens for t in self.done) / tokens,
            "store_hit_rate": sum(t.sources.get("shared", 0) for t in self.done) / tokens,
            "mean_ttft": float(ttfts.mean()),
            "p50_ttft": float(p50),
            "p90_ttft": float(p90),
            "p99_ttft": float(p99),
            "duration": max(t.finished for t in self.done),
            "fairness_load": jain(self.busy),
            "fairness_ttft": jain(by_replica),
            "store_gib_loaded": self.bytes_loaded / 2**30,
            "store_gib_stored": self.bytes_stored / 2**30,
        }


def jain(values: Sequence[float]) -> float:
    """1 where all are equal, 1/n where one has everything. Jain et al., 1984."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
