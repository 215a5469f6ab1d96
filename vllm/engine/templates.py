"""Chat templates: Jinja in a sandbox, of bounded size, with the extensions that models use."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm.core.errors import VLLMValidationError

MAX_RENDERED_CHARS = 32 << 20
MAX_EXPRESSION = 1 << 20


class _Generation(Extension):
    """`{% generation %}` marks, for training, what the assistant said; here it marks nothing."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which no expression makes a text of any length out of a number."""

    intercepted_binops = frozenset({"*", "**"})
    padding = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value, count in ((left, right), (right, left)):
            if isinstance(count, int) and isinstance(value, (str, bytes, list, tuple)):
                _bound(len(value) * count)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            _bound(left.bit_length() * right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(obj, "__self__", None), str) and obj.__name__ in self.padding:
            for value in (*args, *kwargs.values()):
                if isinstance(value, int):
                    _bound(value)
        return super().call(context, obj, *args, **kwargs)


def _bound(size: int) -> None:
    if size > MAX_EXPRESSION:
        raise TemplateError("an expression is too large")


_environment = _Environment(
    trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


_environment.filters["tojson"] = _tojson
_environment.globals["raise_exception"] = _raise
_environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
_templates: dict[str, Any] = {}


def _compiled(template: str) -> Any:
    compiled = _templates.get(template)
    if compiled is None:
        if len(_templates) >= 32:
            _templates.clear()
        compiled = _templates[template] = _environment.from_string(template)
    return compiled


def render(template: str, names: dict[str, Any]) -> str:
    """The template's text. Raises VLLMValidationError when it cannot be made, or is too long."""
    pieces, left = [], MAX_RENDERED_CHARS
    try:
        for piece in _compiled(template).generate(names):
            left -= len(piece)
            if left < 0:
                break
            pieces.append(piece)
    except Exception as error:  # a template may do anything to what it is given
        raise VLLMValidationError(
            f"the chat template cannot render these messages: {str(error)[:500]}",
            parameter="messages",
        ) from error
    if left < 0:
        raise VLLMValidationError("the rendered chat is too long", parameter="messages")
    return "".join(pieces)


# Behind the last message's content while it is rendered. A template that trims contents takes the
# space away, and with it the spaces that end the message.
_MARK = "<|the message goes on here|>"


def marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = messages[-1] if messages else {}
    content = last.get("content")
    if not isinstance(content, str):
        raise VLLMValidationError(
            "continue_final_message needs a last message with text",
            parameter="continue_final_message",
        )
    return [*messages[:-1], last | {"content": f"{content}{_MARK} "}]


def cut_at_mark(text: str) -> str:
    """End the prompt right after the last message's content, so that the model goes on with it."""
    before, mark, after = text.rpartition(_MARK)
    if not mark:
        raise VLLMValidationError(
            "continue_final_message needs a template that shows the last message as it is",
            parameter="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()
