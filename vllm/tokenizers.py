"""Old door: how vLLM's users get a model's tokenizer without its engine."""

from __future__ import annotations

from typing import Any

from vllm.config import hub
from vllm.engine.tokenizer import Tokenizer


def get_tokenizer(
    tokenizer_name: str,
    *,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **kwargs: Any,
) -> Any:
    """The transformers tokenizer of a folder or hub id. Raises ValueError when there is none.

    `trust_remote_code` has no effect: code from model folders is never run. What else is given is
    for transformers, as add_bos_token.
    """
    if tokenizer_mode != "auto":
        raise ValueError(f"tokenizer_mode must be auto, not {tokenizer_mode!r}")
    folder = hub.resolve(
        tokenizer_name,
        revision=revision,
        download_dir=download_dir,
        weights=False,
        tokenizer_only=True,
    )
    if kwargs:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **kwargs)
    return Tokenizer(folder).hf()


__all__ = ["get_tokenizer"]
