"""Running the server: from the first signal, or the engine's death, to an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from vllm.core.errors import EngineDeadError
from vllm.engine.client import EngineClient
from vllm.entrypoints.openai.errors import ShuttingDown
from vllm.entrypoints.openai.state import Server
from vllm.entrypoints.server_args import ServerArgs

logger = logging.getLogger(__name__)

DEATH_CHECK = 0.25  # seconds between looks at the engine
DEATH_GRACE = 1.0  # in which requests end by the engine's own error, and /health tells it
FLUSH = 3.0  # for clients to read how their requests ended


class Signals:
    """SIGINT and SIGTERM as events: the first asks to end, the second not to wait any longer."""

    def __init__(self) -> None:
        self.asked, self.insisted = asyncio.Event(), asyncio.Event()

    def _take(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._take)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class _Silence(logging.Filter):
    """Keeps requests for some paths out of uvicorn's access log."""

    def __init__(self, paths: list[str]) -> None:
        super().__init__()
        self._paths = frozenset(paths)

    def filter(self, record: logging.LogRecord) -> bool:
        _, _, path, *_ = record.args  # client, method, path and query, version, status
        return str(path).partition("?")[0] not in self._paths


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled here, by `Signals`."""
        yield


def bind(args: ServerArgs) -> socket.socket:
    """The socket to listen on, taken before the model is loaded. Raises OSError."""
    if args.uds:
        _remove_stale(args.uds)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(args.uds)
        return listener
    family = socket.AF_INET6 if ":" in args.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((args.host, args.port))
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that a server which was killed has left: nobody listens to it."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def address(args: ServerArgs, listener: socket.socket) -> str:
    if args.uds:
        return f"unix:{args.uds}"
    scheme = "https" if args.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


async def serve(
    app: FastAPI, engine: EngineClient, args: ServerArgs, listener: socket.socket, signals: Signals
) -> int:
    """Serve until a signal or the engine's death; the process's exit code.

    After a signal no connection is accepted; requests may run for `shutdown_timeout` seconds, and
    what is left then ends with an error. After the engine's death all end with an error.
    """
    config = uvicorn.Config(
        app,
        http="httptools",
        log_level=args.uvicorn_log_level,
        access_log=not args.disable_uvicorn_access_log,
        server_header=False,
        root_path=args.root_path,
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
    )
    state: Server = app.state.server
    silence = _Silence(args.silent_paths())
    access = logging.getLogger("uvicorn.access")
    access.addFilter(silence)
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    death = asyncio.create_task(_death(engine))
    asked = asyncio.create_task(signals.asked.wait())
    insisted = asyncio.create_task(signals.insisted.wait())
    try:
        await asyncio.wait({serving, death, asked}, return_when=asyncio.FIRST_COMPLETED)
        if death.done():
            await asyncio.wait({serving, asked}, timeout=DEATH_GRACE)
            server.should_exit = True
            state.running.cut(EngineDeadError())
        elif not serving.done():
            server.should_exit = True
            logger.info("Shutting down; %d requests are running.", len(state.running))
            await asyncio.wait(
                {serving, death, insisted},
                timeout=args.shutdown_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            state.running.cut(ShuttingDown())
        await asyncio.wait({serving}, timeout=FLUSH)
        server.force_exit = True  # whoever has not read its answer by now never will
        await serving
    finally:
        for task in (death, asked, insisted):
            task.cancel()
        access.removeFilter(silence)
    return 1 if engine.errored or not signals.asked.is_set() else 0


async def _death(engine: EngineClient) -> None:
    while not engine.errored:
        await asyncio.sleep(DEATH_CHECK)
