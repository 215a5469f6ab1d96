"""Keys by a name, and a cache that asks a policy whom to evict."""

from __future__ import annotations

from vllm.kv.evict.policy import EvictionPolicy, Use
from vllm.kv.lineage import Key


def key(name: object) -> Key:
    return Key(str(name).encode().ljust(32, b"."))


def name(told: Key) -> str:
    return told.rstrip(b".").decode()


class Cache:
    """Of `size` blocks, on demand: a block that comes pushes the policy's first victim out."""

    def __init__(self, policy: EvictionPolicy, size: int) -> None:
        self.policy, self.size, self.time = policy, size, 0.0
        self.gone: list[str] = []

    def access(self, wanted: object, **use: object) -> bool:
        told, self.time = key(wanted), self.time + 1
        hit = told in self.policy
        if hit:
            self.policy.remove(told)
        elif len(self.policy) >= self.size:
            victim = next(self.policy.victims(self.time))
            self.policy.evict(victim)
            self.gone.append(name(victim))
        self.policy.insert(told, Use(self.time, **use))  # type: ignore[arg-type]
        self.policy.check()
        return hit
