"""A cache over the local daemon that asks other hosts for what is not here.

Tokens go between hosts in blocks of `block_size`, each named by a key chained over the layout and
all tokens up to its end. What is stored here is announced, and copied to as many hosts as
`replicas` says, in the background; what another host has is read from it, stored here, and found
here. A hit is always one of the local daemon: what came from elsewhere went through its door.
"""

from __future__ import annotations

import hashlib
import math
import os
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vllm.kvstore.config import Layout, positive
from vllm.kvstore.hosts.directory import MAX_KEYS, Directory
from vllm.kvstore.hosts.keys import Keys
from vllm.kvstore.hosts.others import Others
from vllm.kvstore.hosts.peer import host_file, spread
from vllm.kvstore.hosts.talk import MAX_PAYLOAD, read_secret
from vllm.kvstore.native import library

QUEUE = 64  # updates that wait to be copied; those beyond stay on this host alone
ATTEMPTS = 4  # other hosts that one query asks


class HostsConfig:
    """How hosts find each other: `directory` is a Redis's URL, `secret` a file that all share.

    What is stored is kept on `replicas` hosts, this one included. Another host has `timeout`
    seconds to begin an answer; after a failure it is not asked for as long again and a second.
    `ttl` seconds after its last update a block is not announced any more.
    """

    def __init__(
        self,
        directory: str,
        secret: str | os.PathLike[str],
        *,
        replicas: int = 2,
        timeout: float = 1.0,
        ttl: float = 3600,
    ) -> None:
        self.directory = directory
        self.secret = os.fspath(secret)
        for name, text in (("directory", directory), ("secret", self.secret)):
            if not text:
                raise ValueError(f"{name} is empty")
        self.replicas = positive("replicas", replicas)
        self.timeout = positive("timeout", timeout, float)
        self.ttl = positive("ttl", ttl, float)
        for name, seconds in (("timeout", timeout), ("ttl", ttl)):
            if math.isinf(seconds):
                raise ValueError(f"{name} must be finite")

    def open(
        self, local: Any, layout: Layout, capacity: int, socket: str, block: int, verify: bool
    ) -> HostsCache:
        return HostsCache(self, local, layout, capacity, socket, block, verify)


class HostsCache:
    """See the module; the methods are those of the library's `Cache`."""

    def __init__(
        self,
        config: HostsConfig,
        local: Any,
        layout: Layout,
        capacity: int,
        socket: str,
        block: int,
        verify: bool,
    ) -> None:
        self._config = config
        self._local = local
        self._layout = layout
        self._socket = socket
        self._block = block
        self._token_bytes = layout.layers * 2 * layout.tensor_bytes
        self._keys = Keys(layout, verify, block)
        self._asks = {
            "layout": {**layout.arguments(), "threads": 1, "verify": verify},
            "capacity": capacity,
        }
        self._others = Others(read_secret(config.secret), config.timeout)
        self._directory = Directory(config.directory, ttl=config.ttl)
        self._lock = threading.Lock()
        self._remote_hits = self._copied = self._dropped = 0
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE)
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    # ---- by tokens ---------------------------------------------------------------------------

    def update(self, prefix: Any, tokens: Any, tensors: Any) -> int:
        stored = int(self._local.update(prefix, tokens, tensors))
        path, start = _joined(prefix, tokens)
        if (start + stored) // self._block > start // self._block:  # a block more is whole
            self._later(path[: start + stored], start)
        return stored

    def query(self, prefix: Any, tokens: Any, tensors: Any) -> int:
        self._bring(prefix, tokens)
        return int(self._local.query(prefix, tokens, tensors))

    def locate(self, prefix: Any, tokens: Any, where: Any) -> tuple[int, Any]:
        self._bring(prefix, tokens)
        found: tuple[int, Any] = self._local.locate(prefix, tokens, where)
        return found

    def fill(self, prefix: Any, tokens: Any, addresses: Any) -> int:
        self._bring(prefix, tokens)
        return int(self._local.fill(prefix, tokens, addresses))

    def _bring(self, prefix: Any, tokens: Any) -> None:
        """Store here what other hosts have of the path behind what is here."""
        path, _ = _joined(prefix, tokens)
        whole = len(path) // self._block * self._block
        here = self._here(path)
        if here >= whole:
            return
        keys = self._keys.of(path)
        first = here // self._block
        holders = self._directory.where(keys[first : first + MAX_KEYS])
        hosts, _ = self._directory.hosts()
        own, tried = self._own(), set[str]()
        for _ in range(ATTEMPTS):
            at = here // self._block - first
            there = holders[at] & hosts.keys() - tried - {own} if 0 <= at < len(holders) else set()
            runs = {ident: _run(holders, at, ident) for ident in there if self._others.may(ident)}
            if not runs:
                return
            ident = max(
                runs, key=lambda one: (runs[one], hashlib.sha256(f"{own}{one}".encode()).digest())
            )
            tried.add(ident)
            said = (first + at + runs[ident]) * self._block
            came = self._read(ident, hosts[ident], path[:said], here)
            if came < 0:
                continue
            if here + came < said:  # it has forgotten some of what stands in the directory
                self._directory.discard(
                    keys[(here + came) // self._block : said // self._block], ident
                )
            if came and own:
                self._directory.add(keys[first + at : (here + came) // self._block], [own])
            here += came
            if here >= whole:
                return

    def _here(self, path: npt.NDArray[np.int32]) -> int:
        where = np.empty(len(path), np.uint64)
        matched, lease = self._local.locate(None, path, where)
        if lease is not None:
            lease.release()
        return int(matched)

    def _read(self, ident: str, address: str, path: npt.NDArray[np.int32], first: int) -> int:
        """How many tokens behind `first` are stored here now; -1: the host could not be asked."""
        most = max(1, MAX_PAYLOAD // 2 // self._token_bytes)
        came = 0
        while first + came < len(path):
            part = path[: min(len(path), first + came + most)]
            ask = {"verb": "read", "keyed": False, "tokens": len(part), "first": first + came}
            reply = self._ask(ident, address, ask, part)
            if reply is None:
                return came or -1
            header, payload = reply
            count = header.get("count")
            rest = part[first + came :]
            if not isinstance(count, int) or not 0 <= count <= len(rest):
                return came
            if count == 0 or len(payload) != count * self._token_bytes:
                return came
            data = np.frombuffer(payload, np.uint8)
            addresses = spread(data, rest[:count], self._layout)
            stored = int(self._local.update(path[: first + came], rest[:count], addresses))
            came += stored
            with self._lock:
                self._remote_hits += stored
            if stored < count or count < len(rest):
                return came
        return came

    # ---- by key ------------------------------------------------------------------------------

    def put(self, key: bytes, blob: Any) -> bool:
        stored = bool(self._local.put(key, blob))
        if stored:
            self._later(key, 0)
        return stored

    def get(self, key: bytes, blob: Any) -> bool:
        if self._local.get(key, blob):
            return True
        name = self._keys.of_blob(key)
        hosts, _ = self._directory.hosts()
        own = self._own()
        for ident in sorted(self._directory.where([name])[0] & hosts.keys() - {own})[:ATTEMPTS]:
            if not self._others.may(ident):
                continue
            ask = {"verb": "read", "keyed": True}
            reply = self._ask(ident, hosts[ident], ask, np.frombuffer(key, np.uint8))
            if reply is None:
                continue
            header, payload = reply
            if header.get("count") != 1 or len(payload) != self._token_bytes:
                self._directory.discard([name], ident)
                continue
            data = np.frombuffer(payload, np.uint8)
            np.copyto(np.frombuffer(blob, np.uint8), data)
            if self._local.put(key, data) and own:
                self._directory.add([name], [own])
            with self._lock:
                self._remote_hits += 1
            return True
        return False

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        there: list[bool] = self._local.contains(list(keys))
        missing = [i for i, found in enumerate(there) if not found]
        hosts, _ = self._directory.hosts()
        others = {ident for ident in hosts if ident != self._own() and self._others.may(ident)}
        if missing and others:
            found = self._directory.where([self._keys.of_blob(keys[i]) for i in missing])
            for i, idents in zip(missing, found, strict=True):
                there[i] = not idents.isdisjoint(others)
        return there

    def remove(self, key: bytes) -> None:
        """Here. Other hosts keep theirs until it goes by itself."""
        self._local.remove(key)
        own = self._own()
        if own:
            self._directory.discard([self._keys.of_blob(key)], own)

    # ---- copies for other hosts --------------------------------------------------------------

    def _later(self, what: Any, start: int) -> None:
        try:
            self._queue.put_nowait((what, start))
        except queue.Full:
            with self._lock:
                self._dropped += 1

    def _copy(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._copy_one(*item)
            except (RuntimeError, ValueError, OSError):  # closed meanwhile, or no daemon
                with self._lock:
                    self._dropped += 1
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _copy_one(self, what: Any, start: int) -> None:
        hosts, ring = self._directory.hosts()
        own = self._own()
        keyed = isinstance(what, bytes)
        keys = [self._keys.of_blob(what)] if keyed else self._keys.of(what)
        if not keys:
            return
        have = [own] if own in hosts else []
        # A path is where its first block is, so that who asks for it finds it in one place.
        for ident in ring.owners(keys[0], self._config.replicas):
            if len(have) >= self._config.replicas:
                break
            if ident in have or not self._others.may(ident):
                continue
            if self._write(ident, hosts[ident], what, start, keyed):
                have.append(ident)
                with self._lock:
                    self._copied += 1
        self._directory.add(keys, have)

    def _write(self, ident: str, address: str, what: Any, start: int, keyed: bool) -> bool:
        if keyed:
            blob = np.empty(self._token_bytes, np.uint8)
            if not self._local.get(what, blob):
                return False
            ask = {"verb": "write", "keyed": True}
            reply = self._ask(ident, address, ask, np.frombuffer(what, np.uint8), blob)
            return reply is not None and reply[0].get("count") == 1
        whole = len(what) // self._block * self._block
        # What stands before `start` was copied when it was stored; if it is not there, all is sent.
        for first in dict.fromkeys((start, 0)):
            done = self._write_path(ident, address, what[:whole], first)
            if done is None or done:
                return bool(done)
        return False

    def _write_path(
        self, ident: str, address: str, path: npt.NDArray[np.int32], first: int
    ) -> bool | None:
        """Whether all behind `first` is there now; None: the host could not be asked."""
        most = max(1, MAX_PAYLOAD // 2 // self._token_bytes)
        while first < len(path):
            rest = path[first : first + most]
            where = np.empty(len(rest), np.uint64)
            matched, lease = self._local.locate(path[:first], rest, where)
            if matched < len(rest):
                return False
            tensor = library().KVTensor
            ask = {"verb": "write", "keyed": False, "tokens": first + len(rest), "first": first}
            data = (tensor(int(where[i]), self._token_bytes, lease) for i in range(matched))
            reply = self._ask(ident, address, ask, path[: first + len(rest)], *data)
            if reply is None:
                return None
            if reply[0].get("count") != len(rest):
                return False
            first += len(rest)
        return True

    def _ask(
        self, ident: str, address: str, header: dict[str, Any], *payload: Any
    ) -> tuple[dict[str, Any], memoryview] | None:
        return self._others.ask(ident, address, {**self._asks, **header}, *payload)

    def _own(self) -> str:
        """The ID of this host, as other hosts know it; empty if its daemon does not serve them."""
        try:
            return Path(host_file(self._socket)).read_text()[:64]
        except OSError:
            return ""

    # ---- the rest ----------------------------------------------------------------------------

    def flush(self) -> None:
        """Wait until what was stored before is announced and copied."""
        self._queue.join()

    def gc(self, ttl: float) -> int:
        return int(self._local.gc(ttl))

    def clear(self) -> None:
        """Here. Other hosts keep theirs."""
        self._local.clear()

    def stat(self) -> dict[str, int]:
        counts: dict[str, int] = self._local.stat()
        with self._lock:
            counts["remote_hits"] = self._remote_hits
            counts["remote_errors"] = self._others.errors
            counts["copied"] = self._copied
            counts["dropped"] = self._dropped
        return counts

    def attached(self) -> bool:
        return bool(self._local.attached())

    def close(self) -> None:
        self._local.close()
        if self._thread.is_alive():
            while True:  # what waits is dropped: nobody is left to ask for it
                try:
                    self._queue.get_nowait()
                    self._queue.task_done()
                except queue.Empty:
                    break
            self._queue.put(None)
            self._thread.join()
        self._others.close()
        self._directory.close()


def _joined(prefix: Any, tokens: Any) -> tuple[npt.NDArray[np.int32], int]:
    """The whole path, and where `tokens` begin in it."""
    head = np.asarray([] if prefix is None else prefix, np.int32)
    return np.concatenate([head, np.asarray(tokens, np.int32)]), len(head)


def _run(holders: list[set[str]], at: int, ident: str) -> int:
    """How many blocks in a row from `at` a host is said to have."""
    end = at
    while end < len(holders) and ident in holders[end]:
        end += 1
    return end - at
