"""`vllm bench throughput|latency|serve|startup|sweep`."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.entrypoints.cli.main import dispatch

COMMANDS = {
    "throughput": "tokens a second of the engine in this process, all requests at once",
    "latency": "seconds of one batch of the engine in this process",
    "serve": "latencies and throughput of a server, request by request",
    "startup": "seconds until an engine can answer",
    "sweep": "bench serve over many settings of the server and of itself",
}


def main(words: Sequence[str]) -> int:
    return dispatch("vllm bench", COMMANDS, words, prefix="bench_")
