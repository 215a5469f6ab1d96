"""A host's server: reads and writes its daemon for other hosts, and says that it is there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from vllm.kvstore.config import Layout
from vllm.kvstore.hosts.directory import ALIVE, Directory
from vllm.kvstore.hosts.talk import MAX_PAYLOAD, Line, PeerError, endpoint
from vllm.kvstore.native import library

MAX_CONNECTIONS = 64
MAX_LAYOUTS = 16  # that are open at once
IDLE = 60.0  # seconds until a silent connection is ended


def host_file(daemon: str) -> str:
    """Where a daemon's own clients find the ID under which other hosts know it."""
    return daemon + ".host"


class Peer:
    """Serves the daemon at `daemon` to hosts that know the secret, until `close()`."""

    def __init__(
        self,
        daemon: str,
        listen: str,
        directory: Directory,
        secret: bytes,
        *,
        advertise: str = "",
        patience: float = 2.0,
    ) -> None:
        self._daemon = daemon
        self._directory = directory
        self._secret = secret
        self._patience = patience
        self.ident = secrets.token_hex(16)
        host, port = endpoint("listen", listen)
        if advertise:
            endpoint("advertise", advertise)
        self._socket = socket.create_server((host, port), backlog=MAX_CONNECTIONS)
        self.address = advertise or f"{host}:{self._socket.getsockname()[1]}"
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._lines: set[socket.socket] = set()
        self._caches: OrderedDict[str, Any] = OrderedDict()
        with open(host_file(daemon), "w", opener=_private) as file:
            file.write(self.ident)
        self._threads = [threading.Thread(target=run) for run in (self._accept, self._live)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            os.unlink(host_file(self._daemon))
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for connection in self._lines:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._directory.leave(self.ident)
        for cache in self._caches.values():
            cache.close()

    def _live(self) -> None:
        while not self._stop.is_set():
            self._directory.sign_of_life(self.ident, self.address)
            self._stop.wait(ALIVE / 3)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                if self._stop.wait(0.05):
                    return
                continue
            with self._lock:
                full = len(self._lines) >= MAX_CONNECTIONS
                if not full:
                    self._lines.add(connection)
            if full:
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            line = Line.accept(connection, self._secret, self._patience)
            while not self._stop.is_set():
                header, payload = line.receive(wait=IDLE)
                self._answer(line, header, payload)
        except (
            PeerError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ):
            pass  # what it sent makes no sense, or it left: nothing here depends on it
        finally:
            with self._lock:
                self._lines.discard(connection)
            connection.close()

    def _answer(self, line: Line, header: dict[str, Any], payload: memoryview) -> None:
        cache, layout = self._open(header["layout"], int(header["capacity"]))
        token_bytes = layout.layers * 2 * layout.tensor_bytes
        verb, keyed = header["verb"], bool(header["keyed"])
        if keyed:
            key, blob = bytes(payload[:32]), np.frombuffer(payload[32:], np.uint8)
            if verb == "write":
                return line.send({"count": int(cache.put(key, blob))})
            found = np.empty(token_bytes, np.uint8)
            there = cache.get(key, found)
            return line.send({"count": int(there)}, *([found] if there else []))

        count, first = int(header["tokens"]), int(header["first"])
        tokens = np.frombuffer(payload[: 4 * count], np.int32)
        if not 0 <= first <= len(tokens) == count:
            raise ValueError("tokens")
        prefix, rest = tokens[:first], tokens[first:]
        if verb == "write":
            data = np.frombuffer(payload[4 * count :], np.uint8)
            return line.send({"count": cache.update(prefix, rest, spread(data, rest, layout))})
        rest = rest[: MAX_PAYLOAD // token_bytes]
        where = np.empty(len(rest), np.uint64)
        matched, lease = cache.locate(prefix, rest, where)
        tensor = library().KVTensor
        line.send(
            {"count": matched},
            *(tensor(int(where[i]), token_bytes, lease) for i in range(matched)),
        )

    def _open(self, given: dict[str, Any], capacity: int) -> tuple[Any, Layout]:
        """A client of the daemon with the asker's layout."""
        verify = bool(given.pop("verify"))
        layout = Layout(**given)
        name = json.dumps([given, verify, capacity], sort_keys=True)
        with self._lock:
            cache = self._caches.get(name)
            if cache is None:
                cache = library().Cache.shared(
                    **layout.arguments(),
                    socket=self._daemon,
                    capacity=capacity,
                    checksums=verify,
                    lazy=True,
                    retry=1.0,
                )
                self._caches[name] = cache
                while len(self._caches) > MAX_LAYOUTS:
                    self._caches.popitem(last=False)  # ends with the last call on it
            self._caches.move_to_end(name)
        return cache, layout


def spread(data: np.ndarray, tokens: np.ndarray, layout: Layout) -> np.ndarray:
    """The addresses `[tokens, layers, 2]` of tensors that lie one behind the other."""
    if data.nbytes != len(tokens) * layout.layers * 2 * layout.tensor_bytes:
        raise ValueError("the tensors are not of these tokens")
    steps = np.arange(len(tokens) * layout.layers * 2, dtype=np.uint64)
    flat = np.uint64(data.ctypes.data) + steps * np.uint64(layout.tensor_bytes)
    return flat.reshape(len(tokens), layout.layers, 2)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
