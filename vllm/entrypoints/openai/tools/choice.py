"""`tools` and `tool_choice` of a request: what may or must be called, and how calls are read."""

from __future__ import annotations

import json
import re
from typing import Any

from vllm.core.errors import VLLMValidationError
from vllm.core.structured import StructuredOutputsParams
from vllm.entrypoints.openai.tools import PARSERS
from vllm.entrypoints.openai.tools.forced import ForcedCall, ForcedCalls
from vllm.entrypoints.openai.tools.pieces import ToolParser

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


def check_tools(tools: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """The functions' parameter schemas by name. Raises VLLMValidationError."""
    if len(tools or []) > MAX_TOOLS:
        raise VLLMValidationError(f"tools takes at most {MAX_TOOLS}", parameter="tools")
    found: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools or []):
        at = f"tools.{i}"
        if tool.get("type", "function") != "function":
            raise VLLMValidationError("only functions can be tools", parameter=f"{at}.type")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise VLLMValidationError("a tool needs a function", parameter=f"{at}.function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise VLLMValidationError(
                "a function's name has 1 to 64 letters, digits, _, . or -",
                parameter=f"{at}.function.name",
                value=name,
            )
        schema = function.get("parameters")
        if schema is not None and not isinstance(schema, dict):
            raise VLLMValidationError(
                "a function's parameters are a JSON schema",
                parameter=f"{at}.function.parameters",
            )
        found[name] = schema or {"type": "object", "properties": {}}
    return found


class ToolChoice:
    """What a request's `tools` and `tool_choice` mean on this server.

    structure: what the text must look like, for required and named calls. Raises
    VLLMValidationError.
    """

    def __init__(
        self,
        tools: list[dict[str, Any]] | None,
        choice: str | dict[str, Any] | None,
        *,
        auto_parser: str | None,
        parallel: bool = True,
    ) -> None:
        schemas = check_tools(tools)
        self.kind = choice if isinstance(choice, str) else "named" if choice else ""
        self.kind = self.kind or ("auto" if tools else "none")
        self.name = ""
        self.structure: StructuredOutputsParams | None = None
        self.parallel = parallel
        self._auto_parser = auto_parser
        if self.kind not in ("none", "auto", "required", "named"):
            raise VLLMValidationError(
                "tool_choice must be none, auto, required or a function",
                parameter="tool_choice",
                value=choice,
            )
        if self.kind in ("required", "named") and not tools:
            raise VLLMValidationError("tool_choice needs tools", parameter="tool_choice")
        if self.kind == "auto" and tools and auto_parser is None:
            raise VLLMValidationError(
                "tool_choice auto needs a server with --enable-auto-tool-choice and "
                "--tool-call-parser",
                parameter="tool_choice" if choice else "tools",
            )
        if self.kind == "auto" and not tools:
            self.kind = "none"
        if isinstance(choice, dict):
            self.name = _named(choice, schemas)
            self.structure = StructuredOutputsParams(json=schemas[self.name])
        elif self.kind == "required":
            self.structure = StructuredOutputsParams(json=_any_calls(schemas, parallel))

    @property
    def shows_special(self) -> bool:
        """Whether calls are marked by special tokens, which the text must then show."""
        return self.kind == "auto" and PARSERS[self._auto_parser or ""].special

    def parser(self) -> ToolParser | None:
        """A new parser for one answer; None when it is plain text."""
        if self.kind == "named":
            return ForcedCall(self.name)
        if self.kind == "required":
            return ForcedCalls()
        if self.kind == "auto":
            assert self._auto_parser is not None
            return PARSERS[self._auto_parser]()
        return None


def _named(choice: dict[str, Any], schemas: dict[str, dict[str, Any]]) -> str:
    function = choice.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name not in schemas:
        raise VLLMValidationError(
            f"tool_choice names a function that tools lacks: {str(name)[:64]!r}",
            parameter="tool_choice",
        )
    return name


def _any_calls(schemas: dict[str, dict[str, Any]], parallel: bool) -> dict[str, Any]:
    """The schema of a list of calls, at least one. References keep pointing at their own schema."""
    calls = []
    definitions: dict[str, Any] = {}
    for name, schema in schemas.items():
        schema = json.loads(json.dumps(schema))
        for key in ("$defs", "definitions"):
            for inner, value in schema.pop(key, {}).items():
                definitions[f"{name}.{inner}"] = value
                _point(value, key, name)
            _point(schema, key, name)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": name}, "parameters": schema},
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    array: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}}
    if not parallel:
        array["maxItems"] = 1
    if definitions:
        array["$defs"] = definitions
    return array


def _point(schema: Any, key: str, name: str) -> None:
    """Let references to this schema's own definitions point to where they are moved."""
    todo = [schema]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            to = item.get("$ref")
            if isinstance(to, str) and to.startswith(f"#/{key}/"):
                item["$ref"] = f"#/$defs/{name}.{to.removeprefix(f'#/{key}/')}"
            todo += item.values()
        elif isinstance(item, list):
            todo += item
