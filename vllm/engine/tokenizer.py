"""The tokenizer: tokenizer.json through `tokenizers`, chats through `templates`.

Reading one takes tens of milliseconds, where importing transformers takes seconds; a folder that
has no tokenizer.json is converted through transformers once. `hf()` gives users the transformers
object that their programs expect.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vllm.config import VllmConfig
from vllm.config.model import read_json
from vllm.config.vocabulary import read_tokenizer
from vllm.core.errors import VLLMValidationError
from vllm.engine import templates

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
            messages = templates.marked(messages)
        names = {"documents": None} | self._special | kwargs
        names |= {
            "messages": messages,
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        text = templates.render(template, names)
        return templates.cut_at_mark(text) if continue_final_message else text

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


def make_tokenizer(config: VllmConfig) -> Tokenizer | None:
    """The tokenizer of the engine's model; None with skip_tokenizer_init."""
    model = config.model
    if model.skip_tokenizer_init:
        return None
    return Tokenizer(model.tokenizer_folder, model.chat_template)
