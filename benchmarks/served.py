"""A `vllm serve` process for one trial: ready when it says so, measured, ended."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

READY = "Application startup complete"
START_SECONDS, STOP_SECONDS = 300.0, 60.0


@dataclass
class Served:
    """`log`: its last lines."""

    url: str
    process: asyncio.subprocess.Process
    log: deque[str] = field(default_factory=lambda: deque(maxlen=200))

    async def metrics(self) -> dict[str, float]:
        """Counters and gauges by name, those with a `source` or tier as name:label. Tokens.

        RuntimeError, with its log, when the server is no longer there.
        """
        try:
            async with httpx.AsyncClient() as client:
                text = (await client.get(f"{self.url}/metrics")).text
        except httpx.HTTPError as error:
            raise RuntimeError(f"the server has died: {error}\n{''.join(self.log)}") from error
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = sample.labels.get("source") or sample.labels.get("tier")
                name = f"{sample.name}:{label}" if label else sample.name
                values[name] = values.get(name, 0.0) + sample.value
        return values

    def peak_memory(self) -> int:
        """Bytes that the server and its children held at most, each for itself."""
        total = 0
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        total += int(line.split()[1]) * 1024
        return total


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *_children(int(child))]
    return found


@contextlib.asynccontextmanager
async def serving(arguments: Sequence[str]) -> AsyncIterator[Served]:
    """A server with these arguments of `vllm serve`. RuntimeError, with its log, if it cannot."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments),
        *("--port", str(port), "--disable-uvicorn-access-log"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 20,
    )
    served = Served(f"http://127.0.0.1:{port}", process)
    ready = asyncio.Event()

    async def read() -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            served.log.append(line.decode("utf-8", "replace"))
            if READY in served.log[-1]:
                ready.set()

    reading = asyncio.create_task(read())
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait(
            {reading, waiting}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not ready.is_set():
            raise RuntimeError(f"the server did not start:\n{''.join(served.log)}")
        yield served
    finally:
        waiting.cancel()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
        await reading
