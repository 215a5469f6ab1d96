"""Old door: vLLM's users import the argument parser from here.

Nothing lives here, and nothing shall: the house has no modules of this name.
"""

from vllm.config.flags import FlexibleArgumentParser

__all__ = ["FlexibleArgumentParser"]
