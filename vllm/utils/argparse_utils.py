"""Old door: vLLM's users import the argument parser from here."""

from vllm.config.flags import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
