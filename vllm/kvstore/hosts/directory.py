"""Who is there and who has what, in Redis. It may be wrong or gone: it only says where to ask.

    NAME:host:ID    HOST:PORT, ends a few seconds after the host's last sign of life
    NAME:hosts      the set of IDs
    NAME:at:KEY     the IDs of the hosts that have a block; ends after `ttl`

An ID is random and as old as its daemon's arena, so what a daemon had before a restart is nobody's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from vllm.kvstore.hosts.ring import Ring

T = TypeVar("T")
ALIVE = 6.0  # seconds that a sign of life lasts
LOOK = 1.0  # seconds between looks at who is there
MAX_KEYS = 4096  # of one question


class Directory:
    """A client of a Redis. What fails is as if nothing stood there; then it rests a while."""

    def __init__(self, url: str, *, name: str = "kvs", ttl: float = 3600, retry: float = 3) -> None:
        try:
            from redis import Redis
            from redis.exceptions import RedisError
        except ImportError:
            raise ValueError(
                "directory: several hosts need the package redis (pip install vllm[shared])"
            ) from None
        self._errors: tuple[type[Exception], ...] = (RedisError, OSError, UnicodeDecodeError)
        try:
            self._redis: Any = Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)
        except ValueError as error:
            raise ValueError(f"directory: {error}") from None
        self._name = name.encode()
        self._ttl = max(int(ttl), 1)
        self._retry = retry
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._looked = 0.0
        self._hosts: dict[str, str] = {}
        self._ring = Ring([])

    def sign_of_life(self, ident: str, address: str) -> None:
        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.set(self._key(b"host:" + ident.encode()), address, px=int(ALIVE * 1000))
                pipe.sadd(self._key(b"hosts"), ident)
                pipe.execute()

        self._try(write, None)

    def leave(self, ident: str) -> None:
        def write() -> None:
            self._redis.delete(self._key(b"host:" + ident.encode()))
            self._redis.srem(self._key(b"hosts"), ident)

        self._try(write, None)

    def hosts(self) -> tuple[dict[str, str], Ring]:
        """Address by ID of the hosts that live, and their ring; as of a second ago at most."""
        with self._lock:
            if time.monotonic() - self._looked < LOOK:
                return self._hosts, self._ring

        def read() -> dict[str, str]:
            idents = sorted(self._redis.smembers(self._key(b"hosts")))
            if not idents:
                return {}
            found = self._redis.mget([self._key(b"host:" + ident) for ident in idents])
            gone = [ident for ident, at in zip(idents, found, strict=True) if at is None]
            if gone:
                self._redis.srem(self._key(b"hosts"), *gone)
            return {
                ident.decode(): at.decode()
                for ident, at in zip(idents, found, strict=True)
                if at is not None
            }

        nobody: dict[str, str] = {}
        hosts = self._try(read, nobody)
        with self._lock:
            self._looked = time.monotonic()
            if hosts != self._hosts:
                self._hosts, self._ring = hosts, Ring(hosts)
            return self._hosts, self._ring

    def add(self, keys: Sequence[bytes], idents: Iterable[str]) -> None:
        """These hosts have these blocks."""
        members = list(idents)
        if not keys or not members:
            return

        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys[:MAX_KEYS]:
                    pipe.sadd(self._key(b"at:" + key), *members)
                    pipe.expire(self._key(b"at:" + key), self._ttl)
                pipe.execute()

        self._try(write, None)

    def discard(self, keys: Sequence[bytes], ident: str) -> None:
        """This host has them no more."""

        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys[:MAX_KEYS]:
                    pipe.srem(self._key(b"at:" + key), ident)
                pipe.execute()

        if keys:
            self._try(write, None)

    def where(self, keys: Sequence[bytes]) -> list[set[str]]:
        """For each key the IDs of the hosts that are said to have it; one round trip."""

        def read() -> list[set[str]]:
            with self._redis.pipeline(transaction=False) as pipe:
                for key in keys[:MAX_KEYS]:
                    pipe.smembers(self._key(b"at:" + key))
                return [{ident.decode() for ident in found} for found in pipe.execute()]

        if not keys:
            return []
        nowhere: list[set[str]] = []
        found = self._try(read, nowhere)
        return found + [set() for _ in range(len(keys) - len(found))]

    def close(self) -> None:
        with contextlib.suppress(*self._errors):
            self._redis.close()

    def _key(self, rest: bytes) -> bytes:
        return self._name + b":" + rest

    def _try(self, body: Callable[[], T], otherwise: T) -> T:
        if time.monotonic() < self._not_before:
            return otherwise
        try:
            return body()
        except self._errors:
            self._not_before = time.monotonic() + self._retry
            return otherwise
