"""Old door: vLLM's users import its errors from here."""

from vllm.core.errors import VLLMValidationError

__all__ = ["VLLMValidationError"]
