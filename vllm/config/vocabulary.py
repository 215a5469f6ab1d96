"""A model folder's tokenizer as the `tokenizers` library has it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer


def read_tokenizer(folder: Path) -> RustTokenizer:
    """Raises ValueError when the folder holds none that can be read."""
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            rust = RustTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot read {path}: {error}") from error
        # Files may carry over how the tokenizer was last used in training.
        rust.no_truncation()
        rust.no_padding()
        return rust
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        backend: RustTokenizer = slow.backend_tokenizer
        # Without any files transformers makes an empty tokenizer up from the model's type.
        if not backend.encode("a").ids:
            raise ValueError("it has no vocabulary")
        return backend
    except Exception as error:
        raise ValueError(
            f"{folder} has no tokenizer.json, and no other tokenizer that can be converted "
            f"({error}); give one with --tokenizer, or use --skip-tokenizer-init"
        ) from error
