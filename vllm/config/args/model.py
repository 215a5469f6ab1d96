"""The flags of the model: which one, how it is read, how long its context is."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.config import hub
from vllm.config.flags import at_least, flag
from vllm.config.model import (
    ModelConfig,
    read_generation,
    read_json,
    resolve_dtype,
    resolve_max_len,
)

logger = logging.getLogger(__name__)


@dataclass
class ModelArgs:
    model: str | None = flag(
        None, "Model", "Model folder or hub id; without one, the demo model that ships with vllm."
    )
    tokenizer: str | None = flag(None, "Model", "Tokenizer folder or hub id, if not the model's.")
    tokenizer_mode: str = flag("auto", "Model", "How to load the tokenizer.", choices=("auto",))
    skip_tokenizer_init: bool = flag(
        False, "Model", "No tokenizer: prompts are token ids, outputs have no text."
    )
    trust_remote_code: bool = flag(
        False, "Model", "Accepted for compatibility; code from model folders is never run."
    )
    dtype: str = flag(
        "auto",
        "Model",
        "Data type of weights, activations and KV cache.",
        choices=("auto", "float32", "float", "bfloat16", "float16", "half"),
    )
    seed: int = flag(0, "Model", "Seed of requests that bring none.")
    max_model_len: int | None = flag(
        None, "Model", "Context length, prompt and output together; 8K means 8192.", size=True
    )
    revision: str | None = flag(None, "Model", "Branch, tag or commit of a hub model.")
    tokenizer_revision: str | None = flag(
        None, "Model", "The same of a tokenizer that is given apart from the model."
    )
    hf_overrides: dict[str, Any] = flag(None, "Model", "JSON object laid over config.json.")
    generation_config: str = flag(
        "auto",
        "Model",
        "Where default sampling parameters come from: auto (model folder), vllm (none), a folder.",
    )
    override_generation_config: dict[str, Any] = flag(
        None, "Model", "JSON object laid over the generation config."
    )
    chat_template: str | None = flag(
        None, "Model", "Jinja template for chats, as a file or in one line, if not the model's."
    )
    max_logprobs: int = flag(20, "Model", "Most logprobs a request may ask for; -1: no limit.")
    enforce_eager: bool = flag(False, "Model", "Run without captured graphs (CPU has none).")
    load_format: str = flag(
        "auto", "Load", "dummy gives random weights.", choices=("auto", "safetensors", "dummy")
    )
    download_dir: str | None = flag(None, "Load", "Where hub models are kept.")

    def make_model(self, shape: dict[str, Any], *, weights: bool, name: str) -> ModelConfig:
        """shape: laid over config.json. weights: whether there must be any. name: for a model that
        was not named. Raises ValueError naming the argument at fault.
        """
        if self.trust_remote_code:
            logger.info("trust_remote_code has no effect: code from model folders is never run.")
        folder = hub.resolve(
            self.model, revision=self.revision, download_dir=self.download_dir, weights=weights
        )
        tokenizer = folder
        if self.tokenizer:
            tokenizer = hub.resolve(
                self.tokenizer,
                revision=self.tokenizer_revision,
                download_dir=self.download_dir,
                weights=False,
                tokenizer_only=True,
            )
        hf = read_json(folder / "config.json") | shape | (self.hf_overrides or {})
        generation, eos = read_generation(
            folder, self.generation_config, self.override_generation_config or {}, hf
        )
        at_least(self, -1, "max_logprobs")
        return ModelConfig(
            folder=folder,
            name=self.model or name,
            tokenizer_folder=tokenizer,
            hf=hf,
            dtype=resolve_dtype(self.dtype, hf),
            max_model_len=resolve_max_len(
                self.max_model_len,
                hf,
                allow_longer=os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN") == "1",
            ),
            max_len_given=self.max_model_len is not None,
            seed=self.seed,
            skip_tokenizer_init=self.skip_tokenizer_init,
            max_logprobs=self.max_logprobs,
            generation=generation,
            eos_token_ids=eos,
            chat_template=_template(self.chat_template),
        )


def _template(given: str | None) -> str | None:
    """The text of a chat template that was given as a file's path or as itself."""
    if given is None or "{" in given or "\n" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise ValueError(f"chat_template: there is no file {given}")
    return path.read_text(encoding="utf-8")
