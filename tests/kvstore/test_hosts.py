"""Several hosts: their directory in Redis, reads over TCP, replicas."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kvstore import stores
from tests.kvstore.client import LAYERS, NBYTES, contents
from tests.kvstore.daemon import InThread, until
from tests.kvstore.stores import Redis
from vllm.kvstore import HostsConfig, KVCache, SharedMemoryCacheConfig
from vllm.kvstore.hosts.directory import Directory
from vllm.kvstore.hosts.peer import Peer
from vllm.kvstore.hosts.ring import Ring
from vllm.kvstore.hosts.talk import HEAD, MAGIC, Line, PeerError, read_secret

BLOCK = 4
TOKENS = list(range(22))  # five whole blocks
KEY = bytes(range(32))


def test_the_ring_is_even_and_moves_little() -> None:
    names = [f"host{i}" for i in range(8)]
    keys = [os.urandom(8) for _ in range(4000)]
    before, after = Ring(names), Ring(names[:-1])
    loads = dict.fromkeys(names, 0)
    moved = 0
    for key in keys:
        first, second = before.owners(key, 2)
        assert first != second
        loads[first] += 1
        if first == names[-1]:
            assert after.owners(key, 1) == [second]  # the next one has it already
        else:
            moved += after.owners(key, 1) != [first]
    assert moved == 0
    assert max(loads.values()) < 2 * min(loads.values()) + 100
    assert Ring([]).owners(b"x", 3) == []
    assert Ring(["one"]).owners(b"x", 3) == ["one"]


@pytest.fixture
def redis() -> Iterator[Redis]:
    one = Redis()
    yield one
    one.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    return stores.secret(tmp_path)


class Host:
    """A daemon, its server for others, and a cache over them."""

    def __init__(self, folder: Path, url: str, secret: Path, **more: Any) -> None:
        self.daemon = InThread(folder / "run" / "kv.sock", 1 << 20)
        self.peer = Peer(
            str(self.daemon.socket), "127.0.0.1:0", Directory(url), read_secret(secret)
        )
        self.hosts = HostsConfig(url, secret, timeout=0.5, **more)
        self.cache = self.open()

    def open(self, **more: Any) -> KVCache:
        config = SharedMemoryCacheConfig(self.daemon.socket, block_size=BLOCK, hosts=self.hosts)
        return KVCache(config, NBYTES, 1000, LAYERS, **more)

    def find(self, tokens: list[int]) -> int:
        with self.cache.find(tokens) as match:
            for i in range(match.count):
                assert np.array_equal(match.numpy(i, np.uint8, [NBYTES]), contents(tokens)[i])
            return match.count

    def close(self) -> None:
        self.cache.close()
        self.peer.close()
        self.daemon.check()
        self.daemon.stop()


@contextlib.contextmanager
def hosts(folder: Path, count: int, url: str, secret: Path, **more: Any) -> Iterator[list[Host]]:
    made = []
    try:
        for i in range(count):
            (folder / str(i)).mkdir()
            made.append(Host(folder / str(i), url, secret, **more))
        until(lambda: len(made[0].cache._cache._directory.hosts()[0]) == count)
        for host in made:  # all know all
            host.cache._cache._directory._looked = 0.0
        yield made
    finally:
        for host in made:
            host.close()


def test_what_one_host_stored_another_finds(tmp_path: Path, redis: Redis, secret: Path) -> None:
    with hosts(tmp_path, 2, redis.url, secret, replicas=1) as (one, other):
        assert one.cache.update(TOKENS, contents(TOKENS)) == 22
        one.cache._cache.flush()
        assert other.daemon.stat()["entries"] == 0  # nothing went there by itself
        assert other.find(TOKENS) == 20  # whole blocks
        assert other.cache.stat()["remote_hits"] == 20
        assert other.find(TOKENS) == 20  # now its own
        assert other.cache.stat()["remote_hits"] == 20
        assert other.find([*TOKENS[:9], 99]) == 9
        more = [*TOKENS[:8], *range(100, 108)]
        assert other.cache.update(more[:8], more[8:], contents(more)[8:]) == 8
        other.cache._cache.flush()
        assert one.find(more) == 16
        with one.open(namespace="another") as apart:
            assert apart.find(TOKENS).count == 0


def test_blobs_by_key(tmp_path: Path, redis: Redis, secret: Path) -> None:
    blob = np.arange(LAYERS * 2 * NBYTES, dtype=np.uint64).astype(np.uint8)
    with hosts(tmp_path, 2, redis.url, secret, replicas=1) as (one, other):
        assert one.cache.put(KEY, blob)
        one.cache._cache.flush()
        assert other.cache.contains([KEY, bytes(32)]) == [True, False]
        found = np.zeros_like(blob)
        assert other.cache.get(KEY, found)
        assert np.array_equal(found, blob)
        assert not other.cache.get(bytes(32), found)
        other.cache.remove(KEY)
        one.cache.remove(KEY)
        one.cache._cache._directory.add([one.cache._cache._keys.of_blob(KEY)], [one.peer.ident])
        assert not other.cache.get(KEY, found)  # the directory was wrong
        assert other.cache.contains([KEY]) == [False]  # and says so no more


def test_replicas_outlive_their_host(tmp_path: Path, redis: Redis, secret: Path) -> None:
    with hosts(tmp_path, 3, redis.url, secret, replicas=2) as all_hosts:
        one = all_hosts[0]
        paths = [[1000 * i + j for j in range(12)] for i in range(12)]
        for path in paths:
            assert one.cache.update(path, contents(path)) == 12
        one.cache._cache.flush()
        copies = [host.daemon.stat()["entries"] for host in all_hosts]
        assert copies[0] == 12 * 12
        assert sum(copies[1:]) == 12 * 12  # one more each
        assert all(copies[1:])  # the ring spread them
        one.peer.close()
        one.daemon.stop()
        all_hosts.remove(one)
        for host in all_hosts:
            host.cache._cache._directory._looked = 0.0
            for path in paths:
                assert host.find(path) == 12
        one.cache.close()


def test_a_directory_that_is_wrong_or_away_is_a_miss(
    tmp_path: Path, redis: Redis, secret: Path
) -> None:
    with hosts(tmp_path, 2, redis.url, secret, replicas=1) as (one, other):
        one.cache.update(TOKENS, contents(TOKENS))
        one.cache._cache.flush()
        one.cache.clear()
        one.cache.update(TOKENS[:8], contents(TOKENS[:8]))
        assert other.find(TOKENS) == 8  # less than was said
        keys = other.cache._cache._keys.of(np.array(TOKENS, np.int32))
        found = other.cache._cache._directory.where(keys)
        assert [len(who) for who in found] == [2, 2, 0, 0, 0]
        redis.close()
        began = time.monotonic()
        for _ in range(20):
            assert other.find(TOKENS) == 8
            assert other.cache.update(TOKENS, contents(TOKENS)) == 22
            other.cache.clear()
            other.cache.update(TOKENS[:8], contents(TOKENS[:8]))
        assert time.monotonic() - began < 8


def test_who_does_not_know_the_secret_gets_nothing(tmp_path: Path, redis: Redis) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    for path in (ours, theirs):
        path.write_bytes(os.urandom(32))
        path.chmod(0o600)
    with hosts(tmp_path, 1, redis.url, ours) as (one,):
        where = ("127.0.0.1", int(one.peer.address.rpartition(":")[2]))
        with pytest.raises(PeerError):
            Line.connect(where, theirs.read_bytes(), 0.5)
        Line.connect(where, ours.read_bytes(), 0.5).close()
        for noise in (os.urandom(200), b"VKH1" + bytes(32), b""):
            with socket.create_connection(where) as bad:
                bad.sendall(noise)
                bad.settimeout(5)
                with contextlib.suppress(ConnectionError):
                    while bad.recv(4096):
                        pass
        whole = {"layout": one.cache._cache._asks["layout"], "capacity": 9, "keyed": False}
        for header in (
            {"verb": "read"},
            {**whole, "verb": "read", "tokens": 5, "first": 9},
            {**whole, "verb": "read", "tokens": -1, "first": -1},
            {**whole, "verb": "write", "tokens": 1, "first": 0},
            {**whole, "verb": "read", "capacity": float("inf")},
            {**whole, "verb": "read", "layout": [3]},
            {**whole, "verb": "read", "layout": {**whole["layout"], "layers": "many"}},
            {**whole, "verb": "read", "keyed": True},
        ):
            line = Line.connect(where, ours.read_bytes(), 2)
            line.send(header)
            with pytest.raises(PeerError):
                line.receive()
            line.close()
        assert one.cache.update(TOKENS, contents(TOKENS)) == 22
    theirs.chmod(0o644)
    with pytest.raises(ValueError, match="mode 0600"):
        read_secret(theirs)
    theirs.chmod(0o600)
    theirs.write_bytes(b"short")
    with pytest.raises(ValueError, match="32 to 4096 bytes"):
        read_secret(theirs)


def test_damage_on_the_way_is_not_stored(tmp_path: Path, redis: Redis, secret: Path) -> None:
    with hosts(tmp_path, 1, redis.url, secret, replicas=1) as (one,):
        listener = socket.create_server(("127.0.0.1", 0))

        def lie() -> None:
            connection, _ = listener.accept()
            line = Line.accept(connection, secret.read_bytes(), 2)
            line.receive()
            data = bytearray(contents(TOKENS[:4]).tobytes())
            line.send({"count": 4}, data)
            sent = connection.sendall

            line.receive()
            header = b'{"count": 4}'
            sent(HEAD.pack(MAGIC, len(header), len(data), 12345) + header + data)

        threading.Thread(target=lie, daemon=True).start()
        directory = Directory(redis.url)
        directory.sign_of_life("liar", f"127.0.0.1:{listener.getsockname()[1]}")
        one.cache._cache._directory._looked = 0.0
        keys = one.cache._cache._keys
        directory.add(keys.of(np.array(TOKENS[:4], np.int32)), ["liar"])
        assert one.find(TOKENS[:4]) == 4  # the good answer
        one.cache.clear()
        assert one.find(TOKENS[:4]) == 0  # the damaged one
        assert one.cache.stat()["remote_errors"] == 1
        listener.close()
