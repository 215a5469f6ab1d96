"""What the HTTP server adds to the engine: CPU of its process a request, and a streamed token.

python -m benchmarks.server [--rounds 5] [--json results/server.json] [--profile FILE]

A random model of one layer, 64 clients. The engine alone is an `AsyncLLM` that a program in this
process asks for the same outputs; the server is `vllm serve`, whose process's CPU time is read from
the system. The core's process, which is the same for both, is left out, and so are the clients.

    request     completions of one token, not streamed
    token       completions of 128 tokens, streamed; what one adds, the request included
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks.measure import write_json
from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

CLIENTS, TOKENS = 64, 128
REQUESTS, STREAMS = 1500, 256
TARGETS = {"request": 600.0, "token": 60.0}  # microseconds
PROMPT = "The code of amber-fox is 4821. What is the code of amber-fox?"
ENGINE: dict[str, Any] = {
    "load_format": "dummy",
    "hf_overrides": {"num_hidden_layers": 1},
    "kv_cache_memory_bytes": 1 << 28,
    "max_num_seqs": CLIENTS,
}


async def clients(count: int, ask: Callable[[int], Awaitable[None]]) -> None:
    """So many requests, 64 at once."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await ask(number)

    await asyncio.gather(*(one() for _ in range(CLIENTS)))


class Engine:
    """CPU seconds of this process, while it asks an engine."""

    def __init__(self) -> None:
        self._engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**ENGINE))

    async def measure(self, count: int, tokens: int, *, stream: bool) -> float:
        params = SamplingParams(
            max_tokens=tokens,
            temperature=0,
            ignore_eos=True,
            output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
        )

        async def ask(number: int) -> None:
            made = 0
            async for output in self._engine.generate(PROMPT, params, str(number)):
                made += len(output.outputs[0].token_ids)
            assert made == tokens

        start = time.process_time()
        await clients(count, ask)
        return time.process_time() - start

    def close(self) -> None:
        self._engine.shutdown()


class Client:
    """CPU seconds of the server's process, while plain sockets ask it."""

    def __init__(self, port: int, pid: int) -> None:
        self._port, self._process = port, psutil.Process(pid)

    async def measure(self, count: int, tokens: int, *, stream: bool) -> float:
        body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        data = json.dumps(body | {"stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
        message = head.encode() + b"Content-Type: application/json\r\n\r\n" + data
        idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def ask(_: int) -> None:
            link = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = link
            writer.write(message)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200"), answer
            if stream:
                text = await reader.readuntil(b"0\r\n\r\n")
                assert text.count(b"data: ") == tokens + 1
            else:
                size = answer.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
                await reader.readexactly(int(size))
            idle.append(link)

        start = self._seconds()
        await clients(count, ask)
        taken = self._seconds() - start
        for _, writer in idle:
            writer.close()
        return taken

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def server(profile: str | None) -> Iterator[tuple[int, int]]:
    """(port, pid) of `vllm serve` with the same engine, and its ordinary log and metrics."""
    with tempfile.TemporaryFile("w+") as log:
        command = [sys.executable]
        if profile:
            command += ["-m", "cProfile", "-o", profile]
        command += ["-m", "vllm.entrypoints.cli.main", "serve", "--port", "0"]
        for name, value in ENGINE.items():
            text = value if isinstance(value, str) else json.dumps(value)
            command += ["--" + name.replace("_", "-"), text]
        process = subprocess.Popen(
            [*command, "--disable-uvicorn-access-log"], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while True:
                log.seek(0)
                text = log.read()
                if "Listening at http://" in text:
                    break
                if process.poll() is not None:
                    raise RuntimeError(text)
                time.sleep(0.1)
            yield int(text.rpartition("127.0.0.1:")[2].split()[0]), process.pid
        finally:
            process.terminate()
            process.wait()


async def run(args: argparse.Namespace) -> dict[str, Any]:
    added: dict[str, list[float]] = {"request": [], "token": []}
    engine = Engine()
    try:
        with server(args.profile) as (port, pid):
            client = Client(port, pid)
            for i in range(args.rounds + 1):
                for name, count, tokens in (
                    ("request", REQUESTS, 1),
                    ("token", STREAMS, TOKENS),
                ):
                    count = count if i else CLIENTS  # the first round warms up
                    alone = await engine.measure(count, tokens, stream=tokens > 1)
                    served = await client.measure(count, tokens, stream=tokens > 1)
                    if i:
                        added[name].append((served - alone) / (count * tokens) * 1e6)
                        print(
                            f"{name}: engine {alone / count / tokens * 1e6:.1f} us, "
                            f"server {served / count / tokens * 1e6:.1f} us",
                            flush=True,
                        )
    finally:
        engine.close()
    return {
        name: {
            "added_us": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
            "target_us": TARGETS[name],
        }
        for name, values in added.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--profile", metavar="FILE", help="cProfile of the server's process.")
    args = parser.parse_args()
    results = asyncio.run(run(args))
    for name, found in results.items():
        print(
            f"a {name} adds {found['added_us']:.0f} us of CPU "
            f"({found['lowest']:.0f} to {found['highest']:.0f}); target {found['target_us']:.0f}"
        )
    write_json(args.json, "server", results)


if __name__ == "__main__":
    main()
