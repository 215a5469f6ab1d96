"""Tool calls in a model's text, found while it streams: one file a format.

A parser is fed the text as it comes and gives back pieces, in order: plain content, the beginning
of a call with its name, and the raw JSON text of that call's arguments. What is left open when the
text ends is settled by `end`. A whole answer is the stream fed at once. All parsers take linear
time and use no regular expressions, since the text is whatever a model was talked into.
"""

from __future__ import annotations

from vllm.entrypoints.openai.tools.hermes import Hermes
from vllm.entrypoints.openai.tools.llama3_json import Llama3Json
from vllm.entrypoints.openai.tools.mistral import Mistral
from vllm.entrypoints.openai.tools.pieces import ToolParser

PARSERS: dict[str, type[ToolParser]] = {
    "hermes": Hermes,  # Qwen 2.5 and 3 as well
    "llama3_json": Llama3Json,
    "mistral": Mistral,
}

__all__ = ["PARSERS", "ToolParser"]
