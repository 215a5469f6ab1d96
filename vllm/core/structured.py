"""What the text of an answer must look like, as users say it."""

from __future__ import annotations

from typing import Any

import msgspec

from vllm.core.errors import VLLMValidationError

KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class StructuredOutputsParams(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """Exactly one of `json`, `regex`, `choice`, `grammar`, `json_object` and `structural_tag`.

    json: a JSON schema, as an object or as text. grammar: Lark's syntax as llguidance reads it, or
    GBNF. Whether they can be compiled is told by `vllm.grammar.compile_grammar`. Raises
    VLLMValidationError, naming the field.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | None = None
    disable_any_whitespace: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) not in (None, False)]
        if len(given) != 1:
            raise VLLMValidationError(
                f"structured_outputs needs exactly one of {', '.join(KINDS)}, "
                f"got {', '.join(given) or 'none'}",
                parameter="structured_outputs",
            )
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, types):
                raise VLLMValidationError(
                    f"structured_outputs.{name} has the wrong type {type(value).__name__}",
                    parameter=f"structured_outputs.{name}",
                )
        if self.choice is not None and not all(isinstance(c, str) and c for c in self.choice):
            raise VLLMValidationError(
                "structured_outputs.choice must hold non-empty strings",
                parameter="structured_outputs.choice",
            )

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, False))


_TYPES: dict[str, type | tuple[type, ...]] = {
    "json": (str, dict),
    "regex": str,
    "choice": list,
    "grammar": str,
    "json_object": bool,
    "structural_tag": str,
    "disable_any_whitespace": bool,
    "whitespace_pattern": str,
}
