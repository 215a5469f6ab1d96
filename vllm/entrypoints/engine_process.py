"""The engine core's process: how the front end starts one, and its main program."""

from __future__ import annotations

import json
import logging
import sys

from vllm.config import EngineArgs
from vllm.config.args import config_to_json
from vllm.engine.async_llm import AsyncLLM
from vllm.engine.core import EngineCore
from vllm.engine.output import Recorder
from vllm.engine.process import CoreProcess, CoreServer, end_with_parent
from vllm.entrypoints.executor import make_executor
from vllm.entrypoints.logs import configure_logging

logger = logging.getLogger(__name__)


def start_engine(
    args: EngineArgs, recorder: Recorder | None = None, *, serving: bool = True
) -> AsyncLLM:
    """An asynchronous engine whose core loads in another process; returns before it has loaded.

    Raises ValueError, in this process, for arguments that cannot work.
    """
    config = args.create_engine_config(serving=serving)
    arguments = json.dumps({"args": json.loads(config_to_json(args)), "serving": serving})
    command = [sys.executable, "-m", "vllm.entrypoints.engine_process"]
    return AsyncLLM(config, CoreProcess(command, arguments), recorder)


def main() -> int:
    """Read the arguments from standard input, build the core, serve it."""
    configure_logging()
    server = CoreServer(sys.argv[1])
    given = json.loads(sys.stdin.buffer.raw.readline())  # unbuffered: the watcher reads on
    end_with_parent()
    try:
        config = EngineArgs(**given["args"]).create_engine_config(serving=given["serving"])
        core = EngineCore(config, make_executor)
        server.run(core, getattr(core.executor, "kernels", {}))
    except (ValueError, FileNotFoundError) as error:
        server.die(error)  # bad arguments: one line is enough
    except BaseException as error:
        logger.exception("The engine core failed")
        server.die(error)
    return 1


if __name__ == "__main__":
    sys.exit(main())
