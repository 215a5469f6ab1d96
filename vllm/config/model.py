"""The model's configuration: what its folder says, and what the user asks for."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")
_ALIASES = {"half": "float16", "float": "float32", "fp32": "float32", "bf16": "bfloat16"}
MAX_JSON_BYTES = 16 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size. Raises ValueError naming the file."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object")
    return value


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Which model, in which dtype, how long; `hf` is its config.json, overrides applied."""

    folder: Path
    name: str  # what the user called it
    tokenizer_folder: Path
    hf: dict[str, Any] = field(repr=False)
    dtype: str
    max_model_len: int
    max_len_given: bool  # by the user, rather than taken from config.json
    seed: int
    skip_tokenizer_init: bool
    max_logprobs: int
    generation: dict[str, Any]  # default sampling parameters
    eos_token_ids: tuple[int, ...]
    chat_template: str | None

    @property
    def architecture(self) -> str:
        return str((self.hf.get("architectures") or ["unknown"])[0])

    @property
    def vocab_size(self) -> int:
        return _positive(self.hf, "vocab_size")

    @property
    def num_layers(self) -> int:
        return _positive(self.hf, "num_hidden_layers", "n_layer")

    @property
    def num_heads(self) -> int:
        return _positive(self.hf, "num_attention_heads", "n_head")

    @property
    def num_kv_heads(self) -> int:
        if self.hf.get("num_key_value_heads") is None:
            return self.num_heads
        return _positive(self.hf, "num_key_value_heads")

    @property
    def head_dim(self) -> int:
        if self.hf.get("head_dim") is not None:
            return _positive(self.hf, "head_dim")
        return _positive(self.hf, "hidden_size", "n_embd") // self.num_heads


def _positive(hf: dict[str, Any], *names: str) -> int:
    for name in names:
        if hf.get(name) is not None:
            value = hf[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"config.json: {name} must be a positive integer, not {value!r}")
            return value
    raise ValueError(f"config.json lacks {' or '.join(names)}")


def resolve_dtype(asked: str, hf: dict[str, Any]) -> str:
    """`auto` is the checkpoint's own dtype. Raises ValueError for one that is not supported."""
    if asked == "auto":
        asked = str(hf.get("dtype") or hf.get("torch_dtype") or "float32")
        if asked.removeprefix("torch.") == "float16":
            # Half-precision matrix products are emulated, slowly, by CPUs.
            logger.info("The checkpoint's float16 is run as bfloat16; --dtype float16 keeps it.")
            asked = "bfloat16"
    dtype = asked.removeprefix("torch.")
    dtype = _ALIASES.get(dtype, dtype)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {asked!r}")
    return dtype


def resolve_max_len(asked: int | None, hf: dict[str, Any], *, allow_longer: bool) -> int:
    """The context length: what is asked for, at most what the model was made for."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    derived = _positive(hf, *names) if any(hf.get(name) for name in names) else 2048
    if asked is None:
        return derived
    if asked < 1:
        raise ValueError(f"max_model_len must be at least 1, not {asked}")
    if asked > derived and not allow_longer:
        raise ValueError(
            f"max_model_len {asked} is above the {derived} positions of the model's config.json; "
            "set VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 to run it all the same"
        )
    return asked


# generation_config.json's names that are also SamplingParams'; max_new_tokens becomes max_tokens.
_SAMPLING_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


def read_generation(
    folder: Path, source: str, overrides: dict[str, Any], hf: dict[str, Any]
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Default sampling parameters and the end-of-sequence ids.

    source: "auto" reads the model folder's generation_config.json, "vllm" takes none, anything
    else is a folder or file to read instead.
    """
    if source in ("auto", "vllm"):
        path = folder / "generation_config.json"
    else:
        path = Path(source)
        path = path / "generation_config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"generation_config {source!r}: there is no file {path}")
    given = read_json(path) if path.is_file() else {}
    ids: Any = next(
        (g["eos_token_id"] for g in (overrides, given, hf) if g.get("eos_token_id") is not None), []
    )
    eos = tuple(ids if isinstance(ids, list) else [ids])
    if not all(isinstance(i, int) for i in eos):
        raise ValueError(f"{path}: eos_token_id must be an integer or a list of them, not {ids!r}")
    if source == "vllm":
        given = {}
    if "temperature" in overrides:
        given.pop("do_sample", None)
    given = given | overrides
    defaults = {name: given[name] for name in _SAMPLING_DEFAULTS if given.get(name) is not None}
    if given.get("do_sample") is False:
        defaults["temperature"] = 0.0
        defaults.pop("top_p", None)
        defaults.pop("top_k", None)
    if given.get("max_new_tokens") is not None:
        defaults["max_tokens"] = given["max_new_tokens"]
    return defaults, eos
