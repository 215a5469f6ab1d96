"""The engine core in a process of its own, and the front end's line to it.

    front end  --PUSH--> to_core   --> core      EngineRequest, AbortRequests, EndOutputs, Call
    front end <--PULL--  from_core <-- core      Ready, StepOutputs, Reply, Died

Both sockets are Unix sockets in a folder of mode 0700; messages are msgpack, decoded against their
types. Nothing is pickled. The core gets its arguments as JSON on its standard input, which stays
open: its end tells the core that the front end is gone.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import msgspec
import zmq

from vllm.core.errors import VLLMValidationError
from vllm.core.request import (
    AbortRequests,
    Call,
    Died,
    EndOutputs,
    EngineRequest,
    FromCore,
    Ready,
    Reply,
    StepOutputs,
    ToCore,
)
from vllm.engine.core import EngineCore

logger = logging.getLogger(__name__)

ENDING = 4.5  # seconds; less than what the front end waits before it insists
TIDY_WAIT = 10  # milliseconds between looks at transfers while no request is here
TO_CORE, FROM_CORE = "to_core.sock", "from_core.sock"
CALLABLE = (
    "reset_prefix_cache",
    "cache_session",
    "dump_prefix_metrics",
    "check",
    "sleep",
    "wake_up",
    "is_sleeping",
    "start_profile",
    "stop_profile",
    "collective_rpc",
)

encode = msgspec.msgpack.Encoder().encode
decode_to_core = msgspec.msgpack.Decoder(ToCore).decode
decode_from_core = msgspec.msgpack.Decoder(FromCore).decode


class CoreProcess:
    """The parent's side: starts the process, and ends it."""

    def __init__(self, command: list[str], arguments: str) -> None:
        """`command` is started with the socket folder as its last argument."""
        self.folder = Path(tempfile.mkdtemp(prefix="vllm-"))  # mode 0700
        self.to_core = f"ipc://{self.folder / TO_CORE}"
        self.from_core = f"ipc://{self.folder / FROM_CORE}"
        self._command = [*command, str(self.folder)]
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Call this once the sockets are bound."""
        # A session of its own: Ctrl-C in a terminal is the front end's to handle, which drains.
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._arguments.encode() + b"\n")
        self._process.stdin.flush()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def wait(self) -> int:
        """Blocks until the process has ended; its exit code."""
        assert self._process is not None
        return self._process.wait()

    def stop(self, timeout: float = 5.0) -> None:
        """End the process: close its standard input, then insist. Safe to call again."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class CoreServer:
    """The child's side: the loop around an `EngineCore`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        context = zmq.Context()
        self._inbox = context.socket(zmq.PULL)
        self._inbox.connect(f"ipc://{folder}/{TO_CORE}")
        self._outbox = context.socket(zmq.PUSH)
        self._outbox.connect(f"ipc://{folder}/{FROM_CORE}")
        self._outbox.setsockopt(zmq.LINGER, 2000)
        self._serving = False
        self._ending, self._ended = threading.Event(), threading.Event()
        ear, self._bell = os.pipe()
        self._poller = zmq.Poller()
        self._poller.register(self._inbox, zmq.POLLIN)
        self._poller.register(ear, zmq.POLLIN)
        self._context = context

    def run(self, core: EngineCore, kernels: dict[str, str]) -> None:
        """Serve until `end`, then shut the core down."""
        capacity = core.capacity
        self._send(
            Ready(capacity.num_blocks, capacity.spec.block_size, capacity.max_model_len, kernels)
        )
        self._serving = True
        while not self._ending.is_set():
            while self._idle(core) and core.tidy():
                self._poll(TIDY_WAIT)
            self._take_messages(core, wait=not core.has_work)
            if core.has_work:
                self._send(core.step())
        core.shutdown()
        self._ended.set()

    def end(self) -> None:
        """Let `run` return, from another thread; waits until it has, or `ENDING` seconds."""
        self._ending.set()
        os.write(self._bell, b"!")
        if self._serving:
            self._ended.wait(ENDING)

    def _idle(self, core: EngineCore) -> bool:
        return not (core.has_work or self._ending.is_set() or self._poll(0))

    def _poll(self, milliseconds: int | None) -> bool:
        """Whether a message is here, after so long or until the end is near; None: wait for it."""
        return any(which is self._inbox for which, _ in self._poller.poll(milliseconds))

    def _take_messages(self, core: EngineCore, *, wait: bool) -> None:
        """All messages that are here; with `wait`, at least one, unless the end is near."""
        told = False
        if wait:
            self._poll(None)
        while self._inbox.poll(0):
            message = decode_to_core(self._inbox.recv())
            match message:
                case EngineRequest():
                    core.add(message)
                case AbortRequests():
                    core.abort(message.request_ids)
                    told = True
                case EndOutputs():
                    core.end(message.outputs)
                    told = True
                case Call():
                    self._send(_answer(core, message))
        if told and not core.has_work:  # no step will say that there is nothing left to do
            self._send(StepOutputs([], core.scheduler.take_stats()))

    def die(self, error: BaseException) -> None:
        """Say why, and wait until it is said."""
        self._send(Died(str(error) or type(error).__name__))
        self._outbox.close()
        self._inbox.close(0)
        self._context.term()

    def _send(self, message: FromCore) -> None:
        self._outbox.send(encode(message))


def _answer(core: EngineCore, call: Call) -> Reply:
    if call.method not in CALLABLE:
        return Reply(call.number, error=f"there is no method {call.method!r}")
    try:
        result = getattr(core, call.method)(*call.args)
        encode(result)
        return Reply(call.number, result)
    except VLLMValidationError as error:
        return Reply(call.number, error=str(error), invalid=True)
    except Exception as error:
        logger.error("%s failed: %s", call.method, traceback.format_exc())
        return Reply(call.number, error=f"{type(error).__name__}: {error}")


def end_with_parent(server: CoreServer) -> None:
    """End this process when its standard input ends: the front end has closed it, or has died.

    The core gets `ENDING` seconds for its last writes, if no step hangs.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        # The front end may have been killed. And first of all: `end` lets the process end.
        shutil.rmtree(server.folder, ignore_errors=True)
        server.end()
        os._exit(0)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
