"""An LLM serving engine with vLLM's surface, written from scratch.

Names are imported when they are first used: `import vllm` and the command line start at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vllm.version import __version__, __version_tuple__

if TYPE_CHECKING:
    from vllm.config import AsyncEngineArgs, EngineArgs
    from vllm.core.errors import VLLMValidationError
    from vllm.entrypoints.async_llm import AsyncLLMEngine
    from vllm.entrypoints.llm import LLM
    from vllm.entrypoints.llm_engine import LLMEngine
    from vllm.inputs import PromptType, TextPrompt, TokensPrompt
    from vllm.logprobs import Logprob
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams

_HOMES = {
    "AsyncEngineArgs": "vllm.config",
    "AsyncLLMEngine": "vllm.entrypoints.async_llm",
    "CompletionOutput": "vllm.outputs",
    "EngineArgs": "vllm.config",
    "LLM": "vllm.entrypoints.llm",
    "LLMEngine": "vllm.entrypoints.llm_engine",
    "Logprob": "vllm.logprobs",
    "PromptType": "vllm.inputs",
    "RequestOutput": "vllm.outputs",
    "SamplingParams": "vllm.sampling_params",
    "TextPrompt": "vllm.inputs",
    "TokensPrompt": "vllm.inputs",
    "VLLMValidationError": "vllm.core.errors",
}

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "CompletionOutput",
    "EngineArgs",
    "LLMEngine",
    "Logprob",
    "PromptType",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
    "VLLMValidationError",
    "__version__",
    "__version_tuple__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vllm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
