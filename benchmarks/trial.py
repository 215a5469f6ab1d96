"""One trial: a fresh server, or a simulated engine, and one program on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.presets import flags
from benchmarks.programs import Program
from benchmarks.recorded import Recorder, measures
from benchmarks.served import serving
from examples.agents.client import OpenAIModel

TIERS = ("device", "host", "disk", "shared")


def engine_for(program: Program, scale: str, server: dict[str, Any]) -> dict[str, Any]:
    """The server's keywords with what the program needs laid over them."""
    engine = dict(server)
    tiered = server.get("enable_multi_tier_prefix_caching", False)
    for name, value in program.engine[scale].items():
        if name in ("num_cpu_blocks_override", "swap_space") and not tiered:
            continue
        if value is None:
            engine.pop(name, None)
        else:
            engine[name] = value
    return engine


@dataclass(frozen=True)
class Trial:
    """`engine`: the server's keywords; `progress` is called at each answer; `data`: a real file."""

    program: Program
    scale: str
    engine: dict[str, Any]
    seed: int
    progress: Callable[[], object] = lambda: None
    data: Path | None = None

    def run(self, model: Recorder) -> Coroutine[Any, Any, None]:
        given = {} if self.data is None else {"data": self.data}
        return self.program(model, self.seed, self.scale, **given)


def real(trial: Trial) -> dict[str, Any]:
    """On a `vllm serve` of its engine keywords. Raises RuntimeError when it does not start."""
    return asyncio.run(_real(trial))


async def _real(trial: Trial) -> dict[str, Any]:
    engine = trial.engine
    async with serving(flags(engine)) as served:
        client = OpenAIModel(f"{served.url}/v1")
        model = Recorder(client, trial.progress)
        start = time.perf_counter()
        await trial.run(model)
        duration = time.perf_counter() - start
        await client.close()
        seen = await served.metrics()
        peak = served.peak_memory()
    cached = {t: seen.get(f"vllm:prompt_tokens_cached_by_source_total:{t}", 0.0) for t in TIERS}
    return _result(
        model,
        duration,
        queries=seen.get("vllm:prefix_cache_queries_total", 0.0),
        cached=cached,
        preemptions=seen.get("vllm:num_preemptions_total", 0.0),
        engine=engine,
        blocks=engine.get("num_gpu_blocks_override"),
        peak_memory_bytes=peak,
    )


def simulated(trial: Trial, device: str, geometry: str) -> dict[str, Any]:
    """On a simulated engine of this geometry and device; durations are the simulation's."""
    from benchmarks.simulated import SimulatedModel, config

    engine = {name: value for name, value in trial.engine.items() if name != "model"}
    simulation = SimulatedModel(config(device, geometry, **engine))
    model = Recorder(simulation, trial.progress)
    start = time.perf_counter()
    simulation.run(trial.run(model))
    took = time.perf_counter() - start
    counts, spec = simulation.counts, simulation.core.capacity
    return _result(
        model,
        simulation.now(),
        queries=counts.get("queries", 0.0),
        cached={tier: counts.get(tier, 0.0) for tier in TIERS},
        preemptions=counts.get("preemptions", 0.0),
        engine=engine,
        blocks=spec.num_blocks,
        block_bytes=spec.spec.block_bytes,
        peak_kv_usage=counts.get("peak_usage", 0.0),
        wall_seconds=took,
    )


def _result(
    model: Recorder,
    duration: float,
    *,
    queries: float,
    cached: dict[str, float],
    preemptions: float,
    engine: dict[str, Any],
    blocks: int | None,
    **more: Any,
) -> dict[str, Any]:
    result = measures(model.answers, duration)
    result |= {
        f"{tier}_prefix_cache_hit_rate": 100 * tokens / queries if queries else 0.0
        for tier, tokens in cached.items()
    }
    result |= {
        "cached_tokens_by_tier": cached,
        "prefix_cache_queries": queries,
        "num_preemptions": preemptions,
        "cache_block_size": engine.get("block_size", 16),
        "num_gpu_blocks": blocks,
        "num_cpu_blocks": engine.get("num_cpu_blocks_override"),
        "engine": engine,
        "texts": model.texts,
        **more,
    }
    return result
