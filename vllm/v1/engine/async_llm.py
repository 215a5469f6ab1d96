"""Old door: vLLM's users import the asynchronous engine from here, under this name too."""

from vllm import AsyncLLMEngine as AsyncLLM

__all__ = ["AsyncLLM"]
