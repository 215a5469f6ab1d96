"""Clients, each a process, that store, find, hold and die at any moment, against a model."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.kvstore.client import LAYERS, NBYTES
from tests.kvstore.daemon import InThread

SLOTS = 60
# Few tokens and short: paths that share beginnings, part anywhere and fill the arena.
paths = st.lists(st.integers(0, 2), min_size=1, max_size=14)
who = st.integers(0, 2)


class Client:
    def __init__(self, socket: Path, *more: str, inside: tuple[str, ...] = ()) -> None:
        command = [*inside, sys.executable, "-m", "tests.kvstore.client", str(socket)]
        command += [str(SLOTS), *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.read()

    def read(self) -> dict[str, int]:
        assert self.process.stdout is not None
        answer: dict[str, int] = json.loads(self.process.stdout.readline())
        return answer

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, **command: Any) -> dict[str, int]:
        self.send(**command)
        return self.read()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Clients(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        size = SLOTS * LAYERS * 2 * NBYTES
        self.daemon = InThread(self.folder / "run" / "kv.sock", size)
        self.clients = [Client(self.daemon.socket) for _ in range(3)]
        self.stored: set[tuple[int, ...]] = set()  # by updates that were answered
        self.perhaps: set[tuple[int, ...]] = set()  # by those whose client died

    def wrote(self, tokens: list[int], count: int) -> None:
        self.stored.update(tuple(tokens[: i + 1]) for i in range(count))

    @rule(who=who, tokens=paths)
    def update(self, who: int, tokens: list[int]) -> None:
        count = self.clients[who].ask(do="update", tokens=tokens)["count"]
        if self.daemon.stat()["pinned"] == 0:
            assert count == len(tokens)
        self.wrote(tokens, count)

    @rule(who=who, tokens=paths, data=st.data())
    def update_behind_a_prefix(self, who: int, tokens: list[int], data: st.DataObject) -> None:
        prefix = data.draw(st.integers(0, len(tokens)))
        count = self.clients[who].ask(do="update", tokens=tokens, prefix=prefix)["count"]
        if prefix and tuple(tokens[:prefix]) not in self.stored | self.perhaps:
            assert count == 0
        if count:
            self.wrote(tokens, prefix + count)

    @rule(who=who, tokens=paths, hold=st.booleans())
    def query(self, who: int, tokens: list[int], hold: bool) -> None:
        found = self.clients[who].ask(do="query", tokens=tokens, hold=hold)
        assert found["wrong"] == 0
        runs = [tuple(tokens[: i + 1]) for i in range(len(tokens))]
        most = sum(run in self.stored | self.perhaps for run in runs)
        least = sum(run in self.stored for run in runs)
        assert found["count"] <= most
        if self.daemon.stat()["evicted"] == 0:
            assert found["count"] >= least

    @rule(who=who)
    def look_again_and_release(self, who: int) -> None:
        assert self.clients[who].ask(do="release")["wrong"] == 0

    @rule(who=who, tokens=paths, after=st.floats(0, 0.002), hold=st.booleans())
    def die(self, who: int, tokens: list[int], after: float, hold: bool) -> None:
        client = self.clients[who]
        client.send(do="query" if hold else "update", tokens=tokens, hold=True)
        time.sleep(after)
        client.kill()
        if not hold:
            self.perhaps.update(tuple(tokens[: i + 1]) for i in range(len(tokens)))
        self.clients[who] = Client(self.daemon.socket)

    @invariant()
    def sound(self) -> None:
        self.daemon.check()
        assert self.daemon.stat()["entries"] <= SLOTS

    def teardown(self) -> None:
        for client in self.clients:
            assert client.ask(do="release")["wrong"] == 0
        for client in self.clients:
            client.kill()
        deadline = time.monotonic() + 5
        while (stat := self.daemon.stat())["clients"] or stat["pinned"]:
            assert time.monotonic() < deadline, stat
            time.sleep(0.005)
        self.daemon.check()
        self.daemon.stop()
        shutil.rmtree(self.folder)


TestClients = Clients.TestCase
TestClients.settings = settings(
    max_examples=8,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
