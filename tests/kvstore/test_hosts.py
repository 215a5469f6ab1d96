"""Several hosts: their directory in Redis, reads over TCP, replicas, and a network that is cut."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakeredis import TcpFakeServer

from tests.kvstore.client import LAYERS, NBYTES, contents
from tests.kvstore.daemon import InThread, Process
from tests.kvstore.test_shared_model import Client
from vllm.kvstore import HostsConfig, KVCache, SharedMemoryCacheConfig
from vllm.kvstore.hosts.directory import Directory
from vllm.kvstore.hosts.peer import Peer
from vllm.kvstore.hosts.ring import Ring
from vllm.kvstore.hosts.talk import Line, PeerError, read_secret

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


class Redis:
    """A Redis on loopback, in this process."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        with socket.socket() as free:
            free.bind((host, port))
            port = free.getsockname()[1]
        self.server = TcpFakeServer((host, port))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"{host}:{port}"
        self.url = f"redis://{self.address}/0"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def redis() -> Iterator[Redis]:
    one = Redis()
    yield one
    one.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


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


def until(holds: Callable[[], Any], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


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
            from vllm.kvstore.hosts.talk import HEAD, MAGIC

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


# ---- a network that is cut -----------------------------------------------------------------------


class Namespaces:
    """Two hosts as network namespaces on a bridge; cut takes a host's link down."""

    def __init__(self) -> None:
        self.id = f"{os.getpid() % 10000:04d}"
        self.bridge = f"kvb{self.id}"
        self.net = f"10.{200 + os.getpid() % 50}.{os.getpid() % 250}"
        self.names = [f"kv{self.id}{c}" for c in "ab"]
        self.relays: list[Any] = []
        try:
            self.ip("link", "add", self.bridge, "type", "bridge")
            self.ip("addr", "add", f"{self.net}.1/24", "dev", self.bridge)
            self.ip("link", "set", self.bridge, "up")
            for i, name in enumerate(self.names):
                self.ip("netns", "add", name)
                self.ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
                self.ip("link", "set", name, "master", self.bridge, "up")
                self.ip("-n", name, "addr", "add", f"{self.net}.{i + 2}/24", "dev", "eth0")
                self.ip("-n", name, "link", "set", "eth0", "up")
                self.ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    redis_host = property(lambda self: f"{self.net}.1")

    def inside(self, host: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.names[host])

    def listen(self, host: int) -> list[str]:
        return ["--listen", f"{self.net}.{host + 2}:7461"]

    def directory(self, host: int, redis: Redis) -> str:
        return redis.url

    def cut(self, host: int) -> None:
        self.ip("link", "set", self.names[host], "down")

    def heal(self, host: int) -> None:
        self.ip("link", "set", self.names[host], "up")

    def close(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            subprocess.run(["ip", "link", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)


class Relay:
    """Forwards a port; when it is cut, it takes what comes and passes nothing on."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.open = threading.Event()
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=(a, b), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.open.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Loopback:
    """Where no namespaces can be made: relays stand between hosts, and between them and Redis."""

    redis_host = "127.0.0.1"

    def __init__(self) -> None:
        self.ports = []
        for _ in range(2):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.ports.append(free.getsockname()[1])
        self.peers = [Relay(("127.0.0.1", port)) for port in self.ports]
        self.stores: dict[int, Relay] = {}

    def inside(self, host: int) -> tuple[str, ...]:
        return ()

    def listen(self, host: int) -> list[str]:
        advertised = f"127.0.0.1:{self.peers[host].port}"
        return ["--listen", f"127.0.0.1:{self.ports[host]}", "--advertise", advertised]

    def directory(self, host: int, redis: Redis) -> str:
        if host not in self.stores:
            where, _, port = redis.address.rpartition(":")
            self.stores[host] = Relay((where, int(port)))
        return f"redis://127.0.0.1:{self.stores[host].port}/0"

    def cut(self, host: int) -> None:
        for relay in (*self.peers, self.stores[host]):  # both ways between the two
            relay.open.clear()

    def heal(self, host: int) -> None:
        for relay in (*self.peers, self.stores[host]):
            relay.open.set()

    def close(self) -> None:
        for relay in [*self.peers, *self.stores.values()]:
            relay.listener.close()


def networks() -> list[type]:
    """Relays everywhere; namespaces too where they can be made."""
    if os.geteuid() == 0 and shutil.which("ip"):
        with contextlib.suppress(subprocess.CalledProcessError):
            Namespaces().close()
            return [Loopback, Namespaces]
    return [Loopback]


def test_two_hosts_cut_and_healed(tmp_path: Path, secret: Path) -> None:
    for kind in networks():
        folder = tmp_path / kind.__name__
        folder.mkdir()
        network = kind()
        try:
            cut_and_heal(folder, network, secret)
        finally:
            network.close()


def cut_and_heal(folder: Path, network: Any, secret: Path) -> None:
    redis = Redis(network.redis_host)
    daemons, clients = [], []
    try:
        for host in range(2):
            inside, url = network.inside(host), network.directory(host, redis)
            path = folder / str(host) / "kv.sock"
            (folder / str(host)).mkdir(mode=0o700)
            others = [*network.listen(host), "--directory", url, "--secret", str(secret)]
            daemons.append(Process(path, "1M", *others, inside=inside))
            assert "other hosts" in daemons[-1].first_line
            clients.append(Client(path, url, str(secret), inside=inside))
        one, other = clients
        paths = [[100 * i + j for j in range(8)] for i in range(6)]

        def find(client: Client, tokens: list[int]) -> int:
            found = client.ask(do="query", tokens=tokens, hold=False)
            assert found["wrong"] == 0
            return found["count"]

        assert one.ask(do="update", tokens=paths[0])["count"] == 8
        until(lambda: find(other, paths[0]) == 8)

        network.cut(0)
        for path in paths[1:3]:  # its own memory works as before
            assert one.ask(do="update", tokens=path)["count"] == 8
            assert find(one, path) == 8
        began = time.monotonic()
        assert find(other, paths[1]) == 0
        assert other.ask(do="update", tokens=paths[3])["count"] == 8
        for path in (paths[0], paths[3]):
            assert find(other, path) == 8
        assert find(one, paths[3]) == 0
        assert time.monotonic() - began < 12  # no wait is without an end

        network.heal(0)
        assert one.ask(do="update", tokens=paths[4])["count"] == 8

        def again(number: int) -> bool:  # an update whose copy was dropped is announced by the next
            one.ask(do="update", tokens=paths[number])
            return find(other, paths[number]) == 8

        for number in (4, 1):
            until(lambda number=number: again(number), 20)
        assert other.ask(do="update", tokens=paths[5])["count"] == 8
        until(lambda: find(one, paths[5]) == 8, 20)
    finally:
        for client in clients:
            client.kill()
        for daemon in daemons:
            daemon.stop()
        redis.close()
