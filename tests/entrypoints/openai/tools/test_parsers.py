"""Parsers of tool calls: a stream gives what the whole text gives, however it is cut."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.openai import reasoning
from vllm.entrypoints.openai.tools import PARSERS
from vllm.entrypoints.openai.tools.forced import ForcedCalls
from vllm.entrypoints.openai.tools.pieces import Arguments, Call, Content, Piece, ToolParser, cut
from vllm.entrypoints.server_args import REASONING_PARSERS, TOOL_PARSERS

A = Call("f"), Arguments('{"a": "}\\"]", "b": [1, {}]}')
HERMES_F = '{"name": "f", "arguments": {"a": "}\\"]", "b": [1, {}]}}'
LLAMA_F = HERMES_F.replace("arguments", "parameters")

MARKERS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>"]

CASES: list[tuple[str, str, list[Piece]]] = [
    ("hermes", f"<tool_call>\n{HERMES_F}\n</tool_call>", [*A]),
    (
        "hermes",
        f'So: <tool_call>{HERMES_F}</tool_call>\n<tool_call>{{"arguments": {{}}, "name": "g"}}'
        "</tool_call> bye",
        [Content("So: "), *A, Content("\n"), Call("g"), Arguments("{}"), Content(" bye")],
    ),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>', [Call("f")]),
    (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}',
        [A[0], Arguments('{"a": 1}')],
    ),
    ("hermes", "<tool_call>{oops} x", [Content("<tool_call>{oops} x")]),
    ("hermes", "<tool_call>{} x", [Content("<tool_call>{} x")]),
    ("hermes", '<tool_call>{"name": 5} x', [Content('<tool_call>{"name": 5} x')]),
    ("hermes", '<tool_call>{"name": "f", "arg', [Content('<tool_call>{"name": "f", "arg')]),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a', [A[0], Arguments('{"a')]),
    ("hermes", "no <tool_ call <tool_cal", [Content("no <tool_ call <tool_cal")]),
    ("llama3_json", LLAMA_F, [*A]),
    (
        "llama3_json",
        f'{LLAMA_F}; {{"name": "g", "parameters": {{}}}}',
        [*A, Call("g"), Arguments("{}")],
    ),
    ("llama3_json", f"<|python_tag|>{LLAMA_F}", [*A]),
    ("llama3_json", '{"a": 1}', [Content('{"a": 1}')]),
    ("llama3_json", "hello {}", [Content("hello {}")]),
    ("llama3_json", "<|pyth", [Content("<|pyth")]),
    ("mistral", f"[TOOL_CALLS][{HERMES_F}]", [*A]),
    (
        "mistral",
        f'Well.[TOOL_CALLS] [{HERMES_F}, {{"name": "g", "arguments": {{}}}}]',
        [Content("Well."), *A, Call("g"), Arguments("{}")],
    ),
    (
        "mistral",
        f"[TOOL_CALLS]f{A[1].text}[TOOL_CALLS]g[ARGS]{{}}",
        [*A, Call("g"), Arguments("{}")],
    ),
    ("mistral", "[TOOL_CALLS] nothing", [Content("[TOOL_CALLS] nothing")]),
    ("mistral", "[TOOL", [Content("[TOOL")]),
    ("required", f"[{LLAMA_F}, {LLAMA_F}]", [*A, *A]),
]


def parse(parser: ToolParser, parts: list[str]) -> list[Piece]:
    pieces = [piece for part in parts for piece in parser.feed(part)] + parser.end()
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, Arguments) and isinstance(last, Arguments):
            merged[-1] = Arguments(last.text + piece.text)
        elif isinstance(piece, Content) and isinstance(last, Content):
            merged[-1] = Content(last.text + piece.text)
        else:
            merged.append(piece)
    return merged


def new(name: str) -> ToolParser:
    return ForcedCalls() if name == "required" else PARSERS[name]()


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_whole_and_letter_by_letter(name: str, text: str, expected: list[Piece]) -> None:
    assert parse(new(name), [text]) == expected
    assert parse(new(name), list(text)) == expected


@given(case=st.sampled_from(CASES), data=st.data())
def test_cut_anywhere(case: tuple[str, str, list[Piece]], data: st.DataObject) -> None:
    name, text, expected = case
    at = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    assert parse(new(name), parts) == expected


@given(
    name=st.sampled_from([*PARSERS, "required"]),
    parts=st.lists(
        st.sampled_from([*MARKERS, '{"name":', '"f"', ', "arguments":', *'{}[]"\\:, x;<'])
    ),
)
def test_no_text_breaks_them(name: str, parts: list[str]) -> None:
    """Any text ends, the same way however it is cut, and whole calls have whole arguments."""
    pieces = parse(new(name), parts)
    assert pieces == parse(new(name), ["".join(parts)])
    assert pieces == parse(new(name), list("".join(parts)))
    assert not isinstance(pieces[0], Arguments) if pieces else True


@given(
    name=st.text(min_size=1, max_size=20),
    arguments=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: {"value": value}),
    ascii_only=st.booleans(),
)
def test_any_arguments_come_through(
    name: str, arguments: dict[str, object], ascii_only: bool
) -> None:
    said = json.dumps(arguments, ensure_ascii=ascii_only)
    call = f'{{"name": {json.dumps(name, ensure_ascii=ascii_only)}, "arguments": {said}}}'
    expected = [Call(name), Arguments(said)]
    assert parse(PARSERS["hermes"](), [f"<tool_call>{call}</tool_call>"]) == expected
    assert parse(PARSERS["mistral"](), [f"[TOOL_CALLS][{call}]"]) == expected


@given(text=st.text("ab<", max_size=12))
def test_cut_keeps_back_just_what_may_begin_a_marker(text: str) -> None:
    before, found, rest = cut(text, "<a<b>")
    assert not found and before + rest == text
    assert "<a<b>".startswith(rest) and rest != "<a<b>"
    assert not any("<a<b>".startswith(text[i:]) for i in range(len(before)))


@pytest.mark.parametrize("name", [*PARSERS, "required"])
@pytest.mark.parametrize(
    "text", ["<" * 9, "[TOOL_CALLS]", '{"name": "f", "arguments": {', "<tool_call>"]
)
def test_long_texts_take_linear_time(name: str, text: str) -> None:
    """A quarter of a million characters, in small parts: seconds if it were quadratic."""
    parts = [text * (100_000 // len(text)), *(["x"] * 30_000)]
    begin = time.perf_counter()
    parse(new(name), parts)
    assert time.perf_counter() - begin < 3


def test_the_flags_offer_what_there_is() -> None:
    assert set(TOOL_PARSERS) == set(PARSERS)
    assert set(REASONING_PARSERS) == set(reasoning.PARSERS)
