"""Text and OpenAI-style requests, tokenised here, and chained by the engine's own keys."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.kv.lineage import chain, root
from vllm.prefixlab.formats import Encode, Options, Source, decode
from vllm.prefixlab.trace import Trace, TraceBuilder

BLOCK = 16
MAX_TOKENS = 1 << 24
HUMAN = ("human", "user")


def keys(tokens: list[int], block_size: int) -> list[bytes]:
    """The chained key of each block of a prompt, the last maybe partial."""
    key = root(b"lab")
    made: list[bytes] = []
    for i in range(0, len(tokens), block_size):
        key = chain(key, tokens[i : i + block_size])
        made.append(key)
    return made


def spoken(turns: Any, role: str, text: str) -> str:
    """A conversation as plain text, a line a turn."""
    if not isinstance(turns, list):
        raise ValueError("messages: must be a list")
    lines = []
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get(role), str):
            raise ValueError(f"messages: each needs a {role} in words")
        content = turn.get(text)
        if isinstance(content, list):
            content = "".join(
                part["text"]
                for part in content
                if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        if not isinstance(content, str):
            raise ValueError(f"messages: each needs a {text} in words")
        lines.append(f"{turn[role]}: {content}\n")
    return "".join(lines)


def prompts(row: dict[str, Any]) -> list[str | list[int]]:
    """What the row asks, in words or token ids. Raises ValueError when it asks nothing.

    A conversation of ShareGPT's is a request a turn, each with all that was said before it.
    """
    body = row.get("body")
    if isinstance(body, dict):  # a line of OpenAI's batch files
        return prompts(body)
    for name in ("prompt", "text", "input"):
        asked = row.get(name)
        if isinstance(asked, str) and asked:
            return [asked]
        if isinstance(asked, list) and asked and all(type(t) is int for t in asked):
            return [asked]
    if "messages" in row:
        return [spoken(row["messages"], "role", "content")]
    if "conversations" in row:
        turns = row["conversations"]
        spoken(turns, "from", "value")  # all of it must be one
        asks = [i for i, turn in enumerate(turns, 1) if turn["from"] in HUMAN]
        if asks:
            return [spoken(turns[:i], "from", "value") for i in asks]
    raise ValueError("prompt: missing (or messages, conversations, text, input)")


def read_text(source: Source, options: Options) -> Trace:
    """JSON objects with a prompt, or messages; may have `timestamp` (s), `session`, `turn`, ..."""
    size = options.block_size or BLOCK
    builder = TraceBuilder(size, source.name)
    for number, line in source.rows():
        try:
            row = decode(line, object)
            if not isinstance(row, dict):
                raise ValueError("a request is a JSON object")
            _add(builder, row, f"row {number}", options.encode)
        except (msgspec.MsgspecError, ValueError) as error:
            builder.refuse(number, str(error))
    return builder.build()


def _add(builder: TraceBuilder, row: dict[str, Any], name: str, encode: Encode | None) -> None:
    """The row's requests, or ValueError and none of them."""
    time, made = row.get("timestamp", 0.0), row.get("output_length", 0)
    turn, workload = row.get("turn", 0), row.get("workload", "unknown")
    session = row.get("session")
    if type(time) not in (int, float) or type(made) is not int:
        raise ValueError("timestamp, output_length: must be numbers")
    if type(turn) is not int or not isinstance(workload, str):
        raise ValueError("turn: must be a number; workload: a name")
    if not isinstance(session, (int, str, type(None))):
        raise ValueError("session: must be a number or a name")
    asked = []
    for words in prompts(row):
        tokens = words
        if isinstance(tokens, str):
            tokens = encode(tokens) if encode else list(tokens.encode("utf-8", "replace"))
        if not 1 <= len(tokens) <= MAX_TOKENS or not all(0 <= t < 2**31 for t in tokens):
            raise ValueError(f"prompt: must be 1 to {MAX_TOKENS} tokens")
        asked.append(tokens)
    if len(asked) > 1 and session is None:
        session = name
    for later, tokens in enumerate(asked):
        builder.add(
            keys(tokens, builder.block_size),
            len(tokens),
            made,
            float(time),
            session=session,
            turn=turn + later,
            workload=workload,
        )
