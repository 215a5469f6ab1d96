"""The tokenizer: tokenizer.json through `tokenizers`, chat templates through sandboxed Jinja.

Reading one takes tens of milliseconds, where importing transformers takes seconds; a folder that
has no tokenizer.json is converted through transformers once. `hf()` gives users the transformers
object that their programs expect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm.config.model import read_json
from vllm.config.vocabulary import read_tokenizer
from vllm.core.errors import VLLMValidationError

MAX_RENDERED_CHARS = 32 << 20
MAX_EXPRESSION = 1 << 20
_SURROGATES = re.compile("[\ud800-\udfff]")
_NAMED = tuple(f"{n}_token" for n in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


class Tokenizer:
    """Text to token ids and back, for one model folder. Safe to share between threads."""

    def __init__(self, folder: Path, chat_template: str | None = None) -> None:
        """Raises ValueError when the folder holds no tokenizer that can be read."""
        self.folder = folder
        path = folder / "tokenizer_config.json"
        self.config = read_json(path) if path.is_file() else {}
        self._chat_template = chat_template
        special = self._special_names()
        self.bos_token, self.eos_token = special.get("bos_token"), special.get("eos_token")
        self._special = special
        self._rust = read_tokenizer(folder)
        self._hf: Any = None
        # Ids below this may be decoded; a model's vocabulary may be padded to more.
        self.vocab_size: int = self._rust.get_vocab_size(with_added_tokens=True)
        added = self._rust.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @property
    def eos_token_id(self) -> int | None:
        return None if self.eos_token is None else self._rust.token_to_id(self.eos_token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Raises VLLMValidationError for text that is not valid Unicode."""
        if _SURROGATES.search(text):
            raise VLLMValidationError("the text is not valid Unicode", parameter="prompt")
        return self._rust.encode(text, add_special_tokens=add_special_tokens).ids

    def spans(
        self, text: str, places: list[tuple[int, int]], *, add_special_tokens: bool = True
    ) -> list[tuple[int, int]]:
        """For each [start, end) in characters: [first, last) of the tokens that hold any of them.

        A place that no token holds is left out.
        """
        encoding = self._rust.encode(text, add_special_tokens=add_special_tokens)
        begins, ends = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2).T
        found = []
        for start, end in places:
            held = np.flatnonzero((begins < end) & (ends > start))
            if len(held):
                found.append((int(held[0]), int(held[-1]) + 1))
        return found

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token(self, token_id: int) -> str:
        """One vocabulary entry as it is written in the vocabulary; "" for an id it lacks."""
        return self._rust.id_to_token(token_id) or ""

    def text_of(self, token_id: int) -> str:
        """One token's own text, special tokens included, as logprobs show it.

        Decoding a lone token strips the space that many vocabularies put in front, so it is decoded
        behind another token whose text is then taken away.
        """
        anchor = self._anchor
        text = self.decode([anchor, token_id], skip_special_tokens=False)
        return text[len(self._anchor_text) :]

    @cached_property
    def _anchor(self) -> int:
        for text in ("a", "the", "."):
            ids = self.encode(text, add_special_tokens=False)
            if len(ids) == 1:
                return ids[0]
        return 0

    @cached_property
    def _anchor_text(self) -> str:
        return self.decode([self._anchor], skip_special_tokens=False)

    def _special_names(self) -> dict[str, str]:
        """bos_token, eos_token, ... as text, from the files that may name them."""
        found: dict[str, str] = {}
        path = self.folder / "special_tokens_map.json"
        for source in (read_json(path) if path.is_file() else {}, self.config):
            for name in _NAMED:
                value = source.get(name)
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    found[name] = value
        return found

    @cached_property
    def chat_template(self) -> str | None:
        """The template: what the user gave, chat_template.jinja, or tokenizer_config.json's."""
        if self._chat_template is not None:
            return self._chat_template
        path = self.folder / "chat_template.jinja"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        return self._named_templates().get("default")

    def _named_templates(self) -> dict[str, str]:
        given = self.config.get("chat_template")
        if isinstance(given, list):  # several, by name
            named = {t.get("name"): t.get("template") for t in given if isinstance(t, dict)}
        else:
            named = {"default": given}
        return {str(name): text for name, text in named.items() if isinstance(text, str)}

    def _template_for(self, tools: list[dict[str, Any]] | None) -> str | None:
        if tools and self._chat_template is None:
            return self._named_templates().get("tool_use", self.chat_template)
        return self.chat_template

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt's text for a conversation; VLLMValidationError when it cannot be made."""
        if continue_final_message and add_generation_prompt:
            raise VLLMValidationError(
                "continue_final_message and add_generation_prompt exclude each other",
                parameter="continue_final_message",
            )
        template = chat_template or self._template_for(tools)
        if template is None:
            raise VLLMValidationError(
                "the model has no chat template; give one with --chat-template, or use completions",
                parameter="messages",
            )
        if continue_final_message:
            messages = _marked(messages)
        names = {"documents": None} | self._special | kwargs
        names |= {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        text, left = "", MAX_RENDERED_CHARS
        try:
            pieces = []
            for piece in _compiled(template).generate(names):
                left -= len(piece)
                if left < 0:
                    break
                pieces.append(piece)
            text = "".join(pieces)
        except Exception as error:  # a template may do anything to what it is given
            raise VLLMValidationError(
                f"the chat template cannot render these messages: {str(error)[:500]}",
                parameter="messages",
            ) from error
        if left < 0:
            raise VLLMValidationError("the rendered chat is too long", parameter="messages")
        return _cut_at_mark(text) if continue_final_message else text

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        **options: Any,
    ) -> str | list[int]:
        """`render_chat` as transformers' tokenizers have it. Raises ValueError."""
        try:
            text = self.render_chat(
                conversation, add_generation_prompt=add_generation_prompt, **options
            )
        except VLLMValidationError as error:
            raise ValueError(str(error)) from error
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def hf(self) -> Any:
        """The transformers tokenizer of the same folder (slow to import), made once."""
        if self._hf is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            if self._chat_template is not None:
                tokenizer.chat_template = self._chat_template
            self._hf = tokenizer
        return self._hf


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


# Behind the last message's content while it is rendered. A template that trims contents takes the
# space away, and with it the spaces that end the message.
_MARK = "<|the message goes on here|>"


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = messages[-1] if messages else {}
    content = last.get("content")
    if not isinstance(content, str):
        raise VLLMValidationError(
            "continue_final_message needs a last message with text",
            parameter="continue_final_message",
        )
    return [*messages[:-1], last | {"content": f"{content}{_MARK} "}]


def _cut_at_mark(text: str) -> str:
    """End the prompt right after the last message's content, so that the model goes on with it."""
    before, mark, after = text.rpartition(_MARK)
    if not mark:
        raise VLLMValidationError(
            "continue_final_message needs a template that shows the last message as it is",
            parameter="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()
