"""A server process around the fake engine. SIGUSR1 kills the engine.

Options come as JSON: python serve_fake.py '{"tokenizer": "/a/folder", "delay": 0.1}'; all but
these two are the server's.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import uvloop
from fake_engine import FakeEngine

from vllm.entrypoints.logs import configure_logging
from vllm.entrypoints.openai.app import build_app
from vllm.entrypoints.openai.launcher import Signals, address, bind, serve
from vllm.entrypoints.server_args import ServerArgs


async def main() -> int:
    given = json.loads(sys.argv[1])
    engine = FakeEngine(tokenizer=given.pop("tokenizer"))
    engine.delay = given.pop("delay", 0.0)
    args = ServerArgs(**{"port": 0, "shutdown_timeout": 0} | given)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, engine.shutdown)
    signals, listener = Signals(), bind(args)
    with signals.handled():
        print(address(args, listener), flush=True)
        return await serve(build_app(engine, args), engine, args, listener, signals)


if __name__ == "__main__":
    configure_logging()
    sys.exit(uvloop.run(main()))
