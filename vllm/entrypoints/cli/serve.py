"""`vllm serve [MODEL]`: serve a model over HTTP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vllm.config import AsyncEngineArgs
from vllm.config.flags import FlexibleArgumentParser, add_flags
from vllm.engine.capacity import capacity
from vllm.entrypoints.cli.command import one_line
from vllm.entrypoints.server_args import ServerArgs


def make_parser(prog: str = "vllm serve") -> FlexibleArgumentParser:
    parser = FlexibleArgumentParser(
        prog=prog,
        description="Serve a model over HTTP, with OpenAI's interface.",
        epilog="--config FILE.yaml reads flags from a file; --help=GROUP shows one group's.",
    )
    parser.add_argument(
        "model_tag",
        metavar="MODEL",
        nargs="?",
        help="Model folder or hub id; without one, the demo model that ships with vllm.",
    )
    add_flags(parser, ServerArgs)
    add_flags(parser, AsyncEngineArgs)
    return parser


def main(words: Sequence[str], prog: str = "vllm serve") -> int:
    """Returns the exit code: 0 after a signal, 1 when the engine failed, 2 for bad arguments."""
    parser = make_parser(prog)
    for word in words:
        if word.startswith("--help="):
            return _help(parser, word.removeprefix("--help="))
    parsed = parser.parse_args(list(words))
    if parsed.model_tag is not None:
        if parsed.model is not None and parsed.model != parsed.model_tag:
            parser.error("give the model once: as MODEL or as --model")
        parsed.model = parsed.model_tag
    try:
        args = ServerArgs.from_mapping(parsed)
        engine_args = AsyncEngineArgs.from_mapping(parsed)
        config = engine_args.create_engine_config(serving=True)
        capacity(config)
    except (ValueError, OSError) as error:
        parser.error(one_line(error))

    from vllm.entrypoints.logs import configure_logging
    from vllm.entrypoints.openai.api_server import run

    configure_logging()
    try:
        return run(engine_args, args, config)
    except (ValueError, OSError) as error:
        parser.error(one_line(error))


def _help(parser: argparse.ArgumentParser, wanted: str) -> int:
    if wanted.lower() == "all":
        parser.print_help()
        return 0
    groups = {g.title.lower(): g for g in parser._action_groups if g.title and g._group_actions}
    group = groups.get(wanted.lower())
    if group is None:
        known = ", ".join(g.title or "" for g in groups.values())
        message = f"there is no group {wanted!r}; choose from {known}, all"
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return 2
    formatter = parser.formatter_class(prog=parser.prog)
    formatter.start_section(group.title)
    formatter.add_arguments(group._group_actions)
    formatter.end_section()
    print(formatter.format_help())
    return 0
