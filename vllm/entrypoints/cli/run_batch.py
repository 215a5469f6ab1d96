"""`vllm run-batch`: answer the requests of a JSONL file, in OpenAI's batch format."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

from vllm.config import AsyncEngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.entrypoints.cli.command import positive, run
from vllm.entrypoints.server_args import ServerArgs

PROG = "vllm run-batch"
# Of the server's arguments those that change answers, and where metrics are shown.
TAKEN = """
    host port served_model_name response_role enable_auto_tool_choice tool_call_parser
    reasoning_parser return_tokens_as_token_ids enable_per_request_metrics enable_log_requests
    enable_log_outputs max_log_len
""".split()


def make_parser() -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(prog=PROG, description=__doc__)
    add = parser.add_argument
    add("-i", "--input-file", required=True, metavar="FILE", help="JSONL, a request a line.")
    add("-o", "--output-file", required=True, metavar="FILE", help="JSONL; - is standard output.")
    add("--output-tmp-dir", metavar="DIR", help="Where the output is until it is whole.")
    add("--max-inflight", type=positive, default=512, metavar="N", help="Requests at once.")
    add("--enable-metrics", action="store_true", help="Show metrics at http://HOST:PORT.")
    add_flags(parser, ServerArgs, skip=[f.name for f in fields(ServerArgs) if f.name not in TAKEN])
    add_flags(parser, AsyncEngineArgs)
    return parser


def main(words: Sequence[str]) -> int:
    """Returns 0 when all were answered, if only by a refusal; 1 when the engine failed."""
    return run(make_parser(), words, _answer)


def _answer(args: argparse.Namespace) -> int:
    from vllm.entrypoints.logs import configure_logging
    from vllm.entrypoints.openai import batch

    configure_logging()
    args.count = batch.check(Path(args.input_file))
    with _output(args.output_file, args.output_tmp_dir) as file:
        return asyncio.run(_run(args, file))


async def _run(args: argparse.Namespace, file: BinaryIO) -> int:
    import msgspec
    from tqdm import tqdm

    from vllm.core.errors import EngineDeadError
    from vllm.entrypoints.engine_process import start_engine
    from vllm.entrypoints.openai import batch
    from vllm.entrypoints.openai.api_server import make_recorder
    from vllm.entrypoints.openai.app import build_app

    server_args = ServerArgs.from_mapping(args)
    engine_args = AsyncEngineArgs.from_mapping(args)
    config = engine_args.create_engine_config(serving=True)
    metrics, _ = make_recorder(config, server_args)
    engine = start_engine(engine_args, metrics, config=config)
    try:
        await engine.is_ready()
        if args.enable_metrics and metrics is not None:
            import prometheus_client

            prometheus_client.start_http_server(args.port, args.host, metrics.registry)
        app = build_app(engine, server_args, metrics)
        keys = server_args.keys()
        with tqdm(total=args.count, desc="Requests") as bar:

            def write(output: batch.BatchOutput) -> None:
                file.write(msgspec.json.encode(output) + b"\n")
                bar.update()

            await batch.answer_all(
                app,
                batch.read(Path(args.input_file)),
                write,
                max_inflight=args.max_inflight,
                key=keys[0] if keys else None,
            )
        return 1 if engine.errored else 0
    except EngineDeadError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    finally:
        engine.shutdown()


@contextlib.contextmanager
def _output(path: str, folder: str | None) -> Iterator[BinaryIO]:
    """A file that appears under its name once it is whole; standard output is written directly."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise ValueError(f"--output-file: there is no folder {target.parent}")
    handle, aside = tempfile.mkstemp(dir=folder or target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        shutil.move(aside, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        raise
