"""What the runners share: their parsers, how a question becomes a prompt, what was kept of it."""

from __future__ import annotations

import argparse
from typing import Any

from vllm.engine.tokenizer import Tokenizer
from vllm.outputs import CompletionOutput


def make_parser(module: str, about: str | None) -> argparse.ArgumentParser:
    """about: the module's docstring, whose first line describes it."""
    return argparse.ArgumentParser(
        prog=f"python -m experiments.{module}",
        description=(about or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def as_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of what a user says, in the model's template if there is one."""
    if tokenizer.chat_template is None:
        return tokenizer.encode(text)
    chat = tokenizer.render_chat([{"role": "user", "content": text}])
    return tokenizer.encode(chat, add_special_tokens=False)


def kept(output: CompletionOutput) -> dict[str, Any]:
    """Fields of a result's row; none where nothing could be compressed."""
    kvs = output.kv_compression
    return {} if kvs is None else {"logical_kvs": kvs.logical, "kept_kvs": kvs.kept}
