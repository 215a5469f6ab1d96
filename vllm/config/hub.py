"""From what a user calls a model to a folder on disk."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

ALLOWED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


def demo_model() -> Path:
    """The folder of the model that ships with the package."""
    return Path(str(files("vllm") / "demo_model"))


def resolve(
    model: str | None,
    *,
    revision: str | None = None,
    download_dir: str | None = None,
    weights: bool = True,
    tokenizer_only: bool = False,
) -> Path:
    """The folder of `model`: None is the shipped demo model, a path is itself, else a hub id.

    A hub id is downloaded (or found in the hub's cache) with a progress bar; only configuration,
    tokenizer and safetensors files are fetched, and without `weights` no safetensors. A folder
    needs a config.json unless it is `tokenizer_only`.
    Raises ValueError when there is no such folder, or no such model can be had.
    """
    if model is None:
        return demo_model()
    path = Path(model).expanduser()
    if path.is_dir():
        if not tokenizer_only and not (path / "config.json").is_file():
            raise ValueError(f"model folder {model} has no config.json")
        return path
    if path.exists() or model.startswith(("/", "./", "../", "~")) or model.count("/") > 1:
        raise ValueError(
            f"model {model!r} is neither a folder nor a hub id such as organisation/name"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ALLOWED if weights else [p for p in ALLOWED if p != "*.safetensors"]
    try:
        return Path(
            snapshot_download(
                model, revision=revision, cache_dir=download_dir, allow_patterns=patterns
            )
        )
    except HfHubHTTPError as error:
        raise ValueError(f"the hub does not give model {model!r}: {error}") from error
    except HFValidationError as error:
        raise ValueError(f"{model!r} is not a valid hub id: {error}") from error
    except Exception as error:  # which HTTP client's errors these are depends on the hub's version
        raise ValueError(
            f"model {model!r} is not in the local cache and cannot be had from the hub; give the "
            f"path of a model folder, or download it first where there is a network ({error})"
        ) from error
