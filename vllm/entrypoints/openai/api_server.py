"""`python -m vllm.entrypoints.openai.api_server`: the same as `vllm serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import uvloop

from vllm.config import EngineArgs, VllmConfig
from vllm.core.errors import EngineDeadError
from vllm.engine.async_llm import AsyncLLM
from vllm.entrypoints.openai.app import build_app, routes
from vllm.entrypoints.openai.launcher import Signals, address, bind, serve
from vllm.entrypoints.server_args import ServerArgs
from vllm.observe.recorder import ServerRecorder
from vllm.observe.stats import StatsLog
from vllm.observe.tracing import make_tracer
from vllm.version import __version__

logger = logging.getLogger(__name__)


def run(engine_args: EngineArgs, args: ServerArgs, config: VllmConfig) -> int:
    """Load the model and serve it until a signal; the process's exit code.

    config: what `engine_args` came to.

    Raises ValueError for arguments that cannot work and OSError for an address that cannot be had.
    """
    return uvloop.run(_run(engine_args, args, config))


async def _run(engine_args: EngineArgs, args: ServerArgs, config: VllmConfig) -> int:
    from vllm.entrypoints.engine_process import start_engine

    signals = Signals()
    endpoint = args.otlp_traces_endpoint
    tracer = None if endpoint is None else make_tracer(endpoint, config.model.name)
    listener = bind(args)
    try:
        with signals.handled():
            metrics, log = make_recorder(config, args)
            engine: AsyncLLM = start_engine(engine_args, metrics, config=config)
            ticking = asyncio.create_task(_tick(log))
            try:
                if not await _loaded(engine, signals):
                    return 0 if signals.asked.is_set() else 1
                app = build_app(engine, args, metrics, tracer)
                if metrics is not None:
                    metrics.cache_config(_cache_info(engine))
                _announce(engine, routes(app), address(args, listener))
                return await serve(app, engine, args, listener, signals)
            finally:
                ticking.cancel()
                engine.shutdown()
    finally:
        if tracer is not None:
            tracer.close()
        listener.close()
        if args.uds and os.path.exists(args.uds):
            os.unlink(args.uds)


def make_recorder(config: VllmConfig, args: ServerArgs) -> tuple[ServerRecorder | None, StatsLog]:
    """What counts for /metrics, if anything does, and the log's regular line."""
    if config.disable_log_stats:
        return None, StatsLog()
    name = (args.served_model_name or [config.model.name])[0]
    log = StatsLog(device="GPU" if config.device.device == "cuda" else "CPU")
    return ServerRecorder(name, log, max_model_len=config.model.max_model_len), log


async def _tick(log: StatsLog) -> None:
    while True:
        await asyncio.sleep(1.0)
        log.tick()


async def _loaded(engine: AsyncLLM, signals: Signals) -> bool:
    """Whether the engine came up; not if it died, or a signal came first."""
    ready = asyncio.create_task(engine.is_ready())
    asked = asyncio.create_task(signals.asked.wait())
    await asyncio.wait({ready, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not ready.done():
        ready.cancel()
        return False
    try:
        ready.result()
    except EngineDeadError as error:
        logger.error("The engine could not start: %s", error)
        return False
    return True


def _cache_info(engine: AsyncLLM) -> dict[str, str]:
    ready, cache = engine.ready, engine.config.cache
    assert ready is not None
    tokens = ready.num_blocks * ready.block_size
    return {
        "block_size": str(ready.block_size),
        "num_gpu_blocks": str(ready.num_blocks),
        "enable_prefix_caching": str(cache.enable_prefix_caching),
        "cache_dtype": engine.config.model.dtype,
        "kv_cache_size_tokens": str(tokens),
        "kv_cache_max_concurrency": f"{tokens / ready.max_model_len:.2f}",
    }


def _announce(engine: AsyncLLM, paths: list[str], at: str) -> None:
    info = _cache_info(engine)
    logger.info("vllm %s serves %s", __version__, engine.config.model.name)
    logger.info(
        "KV cache size: %s tokens; maximum concurrency for %d tokens per request: %sx",
        f"{int(info['kv_cache_size_tokens']):,}",
        engine.max_model_len,
        info["kv_cache_max_concurrency"],
    )
    for path in paths:
        logger.info("Route: %s", path)
    logger.info("Listening at %s", at)


if __name__ == "__main__":
    from vllm.entrypoints.cli.serve import main

    sys.exit(main(sys.argv[1:], prog="api_server"))
