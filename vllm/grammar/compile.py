"""A request's structured outputs as one llguidance grammar, checked."""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

import msgspec
from llguidance import LLMatcher, StructTag
from llguidance.gbnf_to_lark import gbnf_to_lark

from vllm.core.errors import VLLMValidationError
from vllm.core.structured import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

COMPILE_SECONDS = 2.0  # what a front end waits for one grammar
MAX_SCHEMA_BYTES = MAX_GRAMMAR_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_REGEX_BYTES = 2 << 10
MAX_CHOICES = 1024
CACHED_BYTES = 8 << 20
# Between JSON's tokens: as people and programs write it, compact or indented. Bounded, because a
# model that may write spaces for ever sometimes does.
WHITESPACE = r"( |\r?\n[ \t]{0,64})?"

_cache: OrderedDict[bytes, str] = OrderedDict()
_cached_bytes = 0
_lock = Lock()


def compile_grammar(wish: StructuredOutputsParams) -> str:
    """The grammar's text. Raises VLLMValidationError, naming the field, for one that is bad.

    The compiled ones are kept, least recently used first out, within CACHED_BYTES.
    """
    global _cached_bytes
    try:
        key = msgspec.json.encode(wish)
    except (UnicodeEncodeError, RecursionError, TypeError) as error:
        raise _bad(wish.kind, f"it is no plain value in valid Unicode ({error})") from error
    with _lock:
        if (known := _cache.get(key)) is not None:
            _cache.move_to_end(key)
            return known
    grammar = _compiled(wish)
    with _lock:
        if key not in _cache:
            _cache[key] = grammar
            _cached_bytes += len(key) + len(grammar)
        while _cached_bytes > CACHED_BYTES:
            old, text = _cache.popitem(last=False)
            _cached_bytes -= len(old) + len(text)
    return grammar


def _compiled(wish: StructuredOutputsParams) -> str:
    kind = wish.kind
    try:
        grammar = _WRITERS[kind](wish)
        fault = LLMatcher.validate_grammar(grammar)
    except VLLMValidationError:
        raise
    except (ValueError, AssertionError, KeyError, RecursionError) as error:
        raise _bad(kind, str(error)) from error
    if fault:
        raise _bad(kind, fault)
    return grammar


def _bad(kind: str, why: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"structured_outputs.{kind} cannot be compiled: {why[:500]}",
        parameter=f"structured_outputs.{kind}",
    )


def _json(wish: StructuredOutputsParams) -> str:
    assert wish.json is not None
    text = wish.json if isinstance(wish.json, str) else json.dumps(wish.json)
    _within("json", text, MAX_SCHEMA_BYTES)
    schema = json.loads(text)  # never handed on as text: llguidance would paste it
    if not isinstance(schema, dict):
        raise VLLMValidationError(
            "structured_outputs.json must be a schema, an object",
            parameter="structured_outputs.json",
        )
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise VLLMValidationError(
            f"structured_outputs.json may be nested at most {MAX_SCHEMA_DEPTH} deep",
            parameter="structured_outputs.json",
        )
    return _schema(wish, schema)


def _schema(wish: StructuredOutputsParams, schema: dict[str, Any]) -> str:
    options: JsonCompileOptions = {}
    if wish.disable_any_whitespace:
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = WHITESPACE
    if wish.whitespace_pattern is not None:
        _within("whitespace_pattern", wish.whitespace_pattern, MAX_REGEX_BYTES)
        options["whitespace_pattern"] = wish.whitespace_pattern
    return LLMatcher.grammar_from_json_schema(schema, overrides=options)


def _any_object(wish: StructuredOutputsParams) -> str:
    return _schema(wish, {"type": "object"})


def _regex(wish: StructuredOutputsParams) -> str:
    assert wish.regex is not None
    _within("regex", wish.regex, MAX_REGEX_BYTES)
    return LLMatcher.grammar_from_regex(wish.regex)


def _choice(wish: StructuredOutputsParams) -> str:
    assert wish.choice is not None
    if len(wish.choice) > MAX_CHOICES:
        raise VLLMValidationError(
            f"structured_outputs.choice takes at most {MAX_CHOICES} strings",
            parameter="structured_outputs.choice",
        )
    if not wish.choice:
        raise VLLMValidationError(
            "structured_outputs.choice must not be empty", parameter="structured_outputs.choice"
        )
    lark = "start: " + " | ".join(json.dumps(c, ensure_ascii=False) for c in wish.choice)
    _within("choice", lark, MAX_GRAMMAR_BYTES)
    return LLMatcher.grammar_from_lark(lark)


def _grammar(wish: StructuredOutputsParams) -> str:
    assert wish.grammar is not None
    _within("grammar", wish.grammar, MAX_GRAMMAR_BYTES)
    text = gbnf_to_lark(wish.grammar) if "::=" in wish.grammar else wish.grammar
    return LLMatcher.grammar_from_lark(text)


def _structural_tag(wish: StructuredOutputsParams) -> str:
    """Free text in which each trigger begins one of the structures: a begin, JSON, an end."""
    assert wish.structural_tag is not None
    _within("structural_tag", wish.structural_tag, MAX_SCHEMA_BYTES)
    said = json.loads(wish.structural_tag)
    if not isinstance(said, dict) or not said.get("structures") or not said.get("triggers"):
        raise VLLMValidationError(
            "structured_outputs.structural_tag needs structures and triggers",
            parameter="structured_outputs.structural_tag",
        )
    tags = []
    for structure in said["structures"]:
        begin, schema = str(structure["begin"]), structure.get("schema", {})
        trigger = next((t for t in said["triggers"] if begin.startswith(t)), None)
        if trigger is None or not isinstance(schema, dict) or _depth(schema) > MAX_SCHEMA_DEPTH:
            raise VLLMValidationError(
                "each structure needs a begin that starts with a trigger, and a schema at most "
                f"{MAX_SCHEMA_DEPTH} deep",
                parameter="structured_outputs.structural_tag",
            )
        tags.append(
            StructTag(trigger=trigger, begin=begin, grammar=schema, end=str(structure["end"]))
        )
    return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=False))


_WRITERS = {
    "json": _json,
    "json_object": _any_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "structural_tag": _structural_tag,
}


def _within(name: str, text: str, most: int) -> None:
    size = len(text.encode())
    if size > most:
        raise VLLMValidationError(
            f"structured_outputs.{name} may have at most {most} bytes, not {size}",
            parameter=f"structured_outputs.{name}",
        )


def _depth(value: Any) -> int:
    """How deep objects and arrays are nested; stops counting beyond the limit."""
    level, depth = [value], 0
    while depth <= MAX_SCHEMA_DEPTH:
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            break
        depth += 1
    return depth
