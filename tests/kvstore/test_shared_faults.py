"""Daemons that go, hang, come back or lie; clients that do; who may connect."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kvstore.daemon import Process, in_thread, process
from tests.kvstore.test_shared_api import LAYERS, TOKEN, cache, nowhere, tensors
from vllm.kvstore import KVStoreError, numpy_view
from vllm.kvstore.native import library

TOKENS = list(range(8))


def test_a_restart_is_seen_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "run" / "kv.sock"
    with process(path) as first:
        store = cache(path)
        assert store.update(TOKENS, tensors(TOKENS)) == 8
        found = nowhere(8)
        assert store.query(TOKENS, found) == 8
        first.stop(signal.SIGKILL)
    assert store.find(TOKENS).count == 0
    assert store.update(TOKENS, tensors(TOKENS)) == 0
    assert not store.attached
    with process(path):  # the dead one left socket and lock behind
        back = time.monotonic()
        while store.update(TOKENS, tensors(TOKENS)) == 0:
            assert time.monotonic() - back < 5
            time.sleep(0.05)
        assert store.find(TOKENS).count == 8
        view = numpy_view(found[3][1][0], np.float32)  # the first daemon's, still held
        assert np.array_equal(view, tensors(TOKENS)[3, 1, 0])


def test_a_daemon_that_hangs_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "run" / "kv.sock"
    with process(path) as daemon:
        store = cache(path, config={"sync_interval": 0.5})
        store.update(TOKENS, tensors(TOKENS))
        held = store.find(TOKENS)
        daemon.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert store.find(TOKENS).count == 0
        assert store.find(TOKENS).count == 0
        assert time.monotonic() - began < 4  # the patience of one second, for a few tries
        daemon.process.send_signal(signal.SIGCONT)
        back = time.monotonic()
        while store.find(TOKENS).count == 0:
            assert time.monotonic() - back < 5
            time.sleep(0.05)
        # The connection that was given up is kept for what it holds.
        other = [[9] * 4000, [7] * 4000]
        big = cache(path, capacity=100_000)
        for run in other:
            big.update(run, np.zeros((4000, LAYERS, 2, 4), np.float32))
        assert np.array_equal(held.numpy(5, np.float32, [4]), tensors(TOKENS)[5])


def test_socket_and_folder_are_ours_alone(tmp_path: Path) -> None:
    with in_thread(tmp_path) as daemon:
        assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
        with pytest.raises(ValueError, match="another daemon"):
            library().Server(str(daemon.socket), 4096)
        with cache(daemon.socket) as store:
            assert store.attached
        maps = Path("/proc/self/maps").read_text()
        assert {line.split()[-2] for line in maps.splitlines() if "memfd:" in line} <= {"/memfd:kv"}
    assert not daemon.socket.exists()
    taken = tmp_path / "run" / "notes"
    taken.write_text("mine")
    with pytest.raises(ValueError, match="is no socket"):
        library().Server(str(taken), 4096)
    assert taken.read_text() == "mine"
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    open_folder.chmod(0o755)
    with pytest.raises(ValueError, match="mode 0700"):
        library().Server(str(open_folder / "s"), 4096)


def test_another_user_is_turned_away(tmp_path: Path) -> None:
    """Even with the socket's path open to all, and even if it is the other who serves."""
    if os.geteuid() != 0:
        with in_thread(tmp_path) as daemon:  # the system's part of it is all that can be tried
            assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
        return
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect(sys.argv[1])\n"
        "sys.exit(0 if s.recv(1) == b'' else 1)\n"
    )
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, in_thread(Path(folder)) as daemon:
        for path in (Path(folder), daemon.socket.parent):
            path.chmod(0o755)
        daemon.socket.chmod(0o666)
        asked = subprocess.run(
            [sys.executable, "-S", "-c", program, str(daemon.socket)], timeout=20
        )
        assert asked.returncode == 0
        assert daemon.stat()["clients"] == 0
    theirs = tmp_path / "theirs.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(theirs))
    pid = os.fork()
    if pid == 0:  # SO_PEERCRED names who listens
        os.setuid(65534)
        server.listen()
        time.sleep(5)
        os._exit(0)
    time.sleep(0.2)
    with pytest.raises(KVStoreError, match="another user"):
        cache(theirs)
    server.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    "sent",
    [
        os.urandom(4096),
        struct.pack("<IIIIQQQ", 0x32534B56, 1, 0, 0, 0, 0, 1 << 60),  # more payload than may be
        struct.pack("<IIIIQQQ", 0x32534B56, 1, 0, 0, 0, 99, 8) + bytes(8),  # a match before a hello
        struct.pack("<IIIIQQQ", 0x32534B56, 99, 0, 0, 0, 0, 0),
        struct.pack("<IIIIQQQ", 0x32534B56, 0, 0, 0, 0, 0, 3) + bytes(3),
    ],
    ids=["noise", "length", "no hello", "verb", "short hello"],
)
def test_nonsense_on_the_socket(tmp_path: Path, sent: bytes) -> None:
    with (
        in_thread(tmp_path) as daemon,
        cache(daemon.socket) as store,
        socket.socket(socket.AF_UNIX) as bad,
    ):
        bad.connect(str(daemon.socket))
        bad.sendall(sent)
        bad.settimeout(5)
        assert bad.recv(40)[4:8] == struct.pack("<I", 1)  # refused
        assert store.update(TOKENS, tensors(TOKENS)) == 8
        assert store.find(TOKENS).count == 8
        daemon.check()


class Liar:
    """A daemon of the right user that answers what it likes."""

    def __init__(self, path: Path, answer: Any, *, seal: bool = True, size: int = 4096) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.arena = os.memfd_create("t", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        os.ftruncate(self.arena, size)
        if seal:
            fcntl.fcntl(self.arena, 1033, 2 | 4)  # F_ADD_SEALS: no shrinking, no growing
        self.answer = answer
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.talk, args=(client,), daemon=True).start()

    def talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, struct.error):
            client.recv(40 + 48)
            arena = struct.pack("<QQQ", 4096, 4096 // TOKEN, TOKEN)
            hello = struct.pack("<IIQQQQ", 0x32534B56, 0, 0, 0, 0, len(arena)) + arena
            client.sendmsg(
                [hello],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [self.arena]))],
            )
            while True:
                request = client.recv(40)
                _, verb, _, _, _, first, length = struct.unpack("<IIIIQQQ", request)
                while length:
                    length -= len(client.recv(length))
                client.sendall(self.answer(verb, first))

    def close(self) -> None:
        self.listener.close()
        os.close(self.arena)


def answer(count: int, payload: bytes, first: int = 0, ident: int = 1) -> bytes:
    return struct.pack("<IIQQQQ", 0x32534B56, 0, ident, first, count, len(payload)) + payload


@contextlib.contextmanager
def liar(path: Path, said: Any, **more: Any) -> Iterator[None]:
    one = Liar(path, said, **more)
    try:
        yield
    finally:
        one.close()


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (answer(1, struct.pack("<I", 64)), 0),  # one slot past the end
        (answer(1, struct.pack("<I", 2**32 - 1)), 0),
        (answer(2**63, struct.pack("<I", 0)), 0),
        (answer(9, struct.pack("<9I", *range(9))), 0),  # more than was asked for
        (answer(3, struct.pack("<I", 0)), 0),  # fewer slots than counted
        (answer(1, struct.pack("<I", 0), first=99), 1),  # a place that only a write has
        (struct.pack("<IIQQQQ", 0x32534B56, 0, 1, 0, 1, 1 << 40), 0),
        (b"\0" * 40, 0),
        (b"", 0),
    ],
)
def test_every_slot_and_length_is_checked(tmp_path: Path, said: bytes, found: int) -> None:
    path = tmp_path / "liar.sock"
    with liar(path, lambda verb, first: said), cache(path, config={"sync_interval": 9}) as store:
        assert store.find(TOKENS).count == found
        assert store.update(TOKENS, tensors(TOKENS)) == 0


@pytest.mark.parametrize("more", [{"seal": False}, {"size": 2048}])
def test_an_arena_that_could_shrink_is_refused(tmp_path: Path, more: Any) -> None:
    with (
        liar(tmp_path / "liar.sock", lambda verb, first: b"", **more),
        pytest.raises(KVStoreError, match="arena"),
    ):
        cache(tmp_path / "liar.sock")


def test_damage_is_found_when_checksums_are_kept(tmp_path: Path) -> None:
    """A client that scribbles over the arena: the token and what follows are gone, not wrong."""
    with in_thread(tmp_path) as daemon, cache(daemon.socket, config={"verify": True}) as store:
        store.update(TOKENS, tensors(TOKENS))
        with store.find(TOKENS) as match:
            where = int(match.addresses[5, 1, 0])
        start, end = next(
            (int(a, 16), int(b, 16))
            for a, b in (
                line.split()[0].split("-")
                for line in Path("/proc/self/maps").read_text().splitlines()
                if "memfd:kv" in line and " r--s " in line
            )
            if int(a, 16) <= where < int(b, 16)
        )
        writable = next(
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "memfd:kv" in line and " rw-s " in line
        )
        assert start <= where < end
        from ctypes import c_char

        byte = c_char.from_address(writable + where - start + 3)
        byte.value = bytes([byte.value[0] ^ 1])
        assert store.find(TOKENS).count == 5
        assert store.stat()["damaged"] == 1
        assert store.update(TOKENS, tensors(TOKENS)) == 8
        assert store.find(TOKENS).count == 8


def test_a_forked_child_neither_keeps_nor_breaks_what_its_parent_holds(tmp_path: Path) -> None:
    path = tmp_path / "run" / "kv.sock"
    with process(path):
        parent = os.fork()
        if parent == 0:
            store = cache(path)
            store.update(TOKENS, tensors(TOKENS))
            match = store.find(TOKENS)
            if os.fork() == 0:
                time.sleep(3)  # outlives its parent
                os._exit(0)
            assert match.count == 8
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(parent, 0)
        deadline = time.monotonic() + 2
        while (stat := library().daemon_stat(str(path)))["pinned"] or stat["clients"]:
            assert time.monotonic() < deadline, stat
            time.sleep(0.02)
        assert stat["entries"] == 8


def test_readers_need_no_second_try_while_others_write(tmp_path: Path) -> None:
    """The original's seventh defect: 54 of 91 queries failed while it synchronised."""
    with in_thread(tmp_path, size=1 << 22) as daemon, cache(daemon.socket) as store:
        store.update(TOKENS, tensors(TOKENS))
        held = store.find(TOKENS)  # else it may go while this thread has to wait its turn
        stop = threading.Event()

        def write() -> None:
            with cache(daemon.socket, capacity=10_000) as writer:
                number = 0
                while not stop.is_set():
                    number += 1
                    run = [number] * 500
                    writer.update(run, np.zeros((500, LAYERS, 2, 4), np.float32))

        threads = [threading.Thread(target=write) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(300):
                match = store.find(TOKENS)
                assert match.count == 8
                assert np.array_equal(match.numpy(7, np.float32, [4]), tensors([7])[0])
            held.release()
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_memory_is_the_payload_whatever_clients_die(tmp_path: Path) -> None:
    """The original's eighth defect: each client that died kept a copy of all that it had read."""
    path = tmp_path / "run" / "kv.sock"
    token, count = 64 << 10, 64
    payload = token * count
    reader = (
        "import sys, os, signal, numpy as np\n"
        "from vllm.kvstore import *\n"
        "c = KVCache(SharedMemoryCacheConfig(sys.argv[1]), 32 << 10)\n"
        "m = c.find(list(range(64)))\n"
        "c.update([-1] * 3, np.ones((3, 1, 2, 8192), np.float32))\n"
        "assert m.count == 64, m.count\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    def shared(process: Process) -> int:
        """Bytes of all shared memory that the daemon has."""
        text = Path(f"/proc/{process.process.pid}/fdinfo")
        assert text.exists()
        total = 0
        for fd in os.listdir(f"/proc/{process.process.pid}/fd"):
            with contextlib.suppress(OSError):
                if "memfd:" in os.readlink(f"/proc/{process.process.pid}/fd/{fd}"):
                    total += os.stat(f"/proc/{process.process.pid}/fd/{fd}").st_blocks * 512
        return total

    with process(path, str(payload)) as daemon:
        from vllm.kvstore import KVCache, SharedMemoryCacheConfig

        store = KVCache(SharedMemoryCacheConfig(path), token // 2)
        data = np.zeros((count, 1, 2, token // 8), np.float32)
        assert store.update(list(range(count)), data) == count
        sizes = [shared(daemon)]
        for _ in range(3):
            died = subprocess.run([sys.executable, "-c", reader, str(path)], timeout=60)
            assert died.returncode == -signal.SIGKILL
            sizes.append(shared(daemon))
        assert max(sizes) <= payload * 1.03
        assert store.stat()["pinned"] == 0
        fresh = [5000 + i for i in range(count)]
        assert store.update(fresh, data) == count  # all of it is for use
