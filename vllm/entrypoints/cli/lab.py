"""`vllm lab`: what a prefix cache would do on a trace."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.entrypoints.cli.main import dispatch

COMMANDS = {
    "calibrate": "the simulator's model of latency from a real run, and its error",
    "cluster": "several simulated engines behind a router, with and without a shared store",
    "collect": "who reuses what: four workloads through the simulated engine",
    "simulate": "hit rates of policies at capacities",
    "summarize": "how much is reused, how often and how soon",
    "analyze": "distributions of reuse, as tables and plots",
    "curve": "the exact LRU hit rate at all capacities, and the offline optimum beside it",
    "mixed": "several workloads in one stream, and how each of them fares",
    "advise": "how much memory, which policy, and where misses come from",
    "convert": "a trace into another format",
    "report": "one HTML page about a trace, with plots",
}


TRACES = """
Real traces: github.com/kvcache-ai/Mooncake (FAST25-release/traces),
github.com/alibaba-edu/qwen-bailian-usagetraces-anon."""


def main(words: Sequence[str]) -> int:
    return dispatch("vllm lab", COMMANDS, words, prefix="lab_", note=TRACES)
