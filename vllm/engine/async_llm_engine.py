"""Old door: vLLM's users import the asynchronous engine from here."""

from vllm import AsyncLLMEngine

__all__ = ["AsyncLLMEngine"]
