"""Two hosts and the network between them: cut, and healed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from tests.kvstore import stores
from tests.kvstore.daemon import Process, until
from tests.kvstore.stores import Redis
from tests.kvstore.test_shared_model import Client


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


def test_two_hosts_cut_and_healed(tmp_path: Path) -> None:
    secret = stores.secret(tmp_path)
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
