"""The engine core's process: how the front end starts one, and its main program."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from typing import TypeVar

from vllm.config import EngineArgs, VllmConfig
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.core import EngineCore
from vllm.engine.output import Recorder
from vllm.engine.process import CoreProcess, CoreServer, end_with_parent
from vllm.entrypoints.executor import make_executor
from vllm.entrypoints.logs import configure_logging

logger = logging.getLogger(__name__)
Engine = TypeVar("Engine", bound=AsyncLLM)


def start_engine(
    args: EngineArgs,
    recorder: Recorder | None = None,
    *,
    serving: bool = True,
    config: VllmConfig | None = None,
    cls: type[Engine] = AsyncLLM,  # type: ignore[assignment]
) -> Engine:
    """An asynchronous engine whose core loads in another process; returns before it has loaded.

    config: what `args` came to, where that is known already.

    Raises ValueError, in this process, for arguments that cannot work.
    """
    if config is None:
        config = args.create_engine_config(serving=serving)
    arguments = json.dumps({"args": asdict(args), "serving": serving})
    command = [sys.executable, "-m", "vllm.entrypoints.engine_process"]
    return cls(config, CoreProcess(command, arguments), recorder)


def main() -> int:
    """Read the arguments from standard input, build the core, serve it."""
    configure_logging()
    server = CoreServer(sys.argv[1])
    given = json.loads(_first_line(sys.stdin.fileno()))
    end_with_parent(server)
    try:
        config = EngineArgs(**given["args"]).create_engine_config(serving=given["serving"])
        core = EngineCore(config, make_executor)
        server.run(core, getattr(core.executor, "kernels", {}))
        return 0
    except (ValueError, FileNotFoundError) as error:
        server.die(error)  # bad arguments: one line is enough
    except BaseException as error:
        logger.exception("The engine core failed")
        server.die(error)
    return 1


def _first_line(descriptor: int) -> bytes:
    """Byte by byte, so that nothing behind it is taken from those who watch the descriptor."""
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line


if __name__ == "__main__":
    sys.exit(main())
