"""Old door; see `renderers.hf`."""

from vllm.renderers.hf import resolve_chat_template as resolve_hf_chat_template

__all__ = ["resolve_hf_chat_template"]
