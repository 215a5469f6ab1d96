"""What is read of a model's folder, and how a model is found."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from vllm.config import EngineArgs, hub
from vllm.config.model import read_generation, read_json, resolve_dtype, resolve_max_len

HF = {"model_type": "llama", "vocab_size": 10, "max_position_embeddings": 64}


def model_folder(path: Path, hf: dict[str, Any] | None = None, **generation: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(HF | (hf or {})))
    if generation:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize(
    ("asked", "hf", "dtype"),
    [
        ("auto", {}, "float32"),
        ("auto", {"dtype": "bfloat16"}, "bfloat16"),
        ("auto", {"torch_dtype": "torch.bfloat16"}, "bfloat16"),
        ("auto", {"torch_dtype": "float32"}, "float32"),
        ("auto", {"torch_dtype": "float16"}, "bfloat16"),  # emulated by CPUs, slowly
        ("float16", {"torch_dtype": "bfloat16"}, "float16"),
        ("half", {}, "float16"),
        ("float", {"dtype": "bfloat16"}, "float32"),
    ],
)
def test_dtypes(asked: str, hf: dict[str, Any], dtype: str) -> None:
    assert resolve_dtype(asked, hf) == dtype


def test_a_checkpoint_in_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="dtype"):
        resolve_dtype("auto", {"dtype": "float8_e4m3fn"})


def test_context_lengths() -> None:
    assert resolve_max_len(None, HF, allow_longer=False) == 64
    assert resolve_max_len(None, {"n_positions": 32}, allow_longer=False) == 32
    assert resolve_max_len(None, {}, allow_longer=False) == 2048
    assert resolve_max_len(64, HF, allow_longer=False) == 64
    assert resolve_max_len(65, HF, allow_longer=True) == 65
    with pytest.raises(ValueError, match=r"max_model_len 65.*VLLM_ALLOW_LONG_MAX_MODEL_LEN"):
        resolve_max_len(65, HF, allow_longer=False)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        resolve_max_len(None, {"max_position_embeddings": "long"}, allow_longer=False)


def test_the_environment_allows_longer_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    assert EngineArgs(max_model_len=10**6).create_engine_config().model.max_model_len == 10**6


@pytest.mark.parametrize("name", ["vocab_size", "num_hidden_layers", "num_attention_heads"])
@pytest.mark.parametrize("value", [0, -1, "8", 2.5, True, None])
def test_sizes_of_the_model_must_be_whole_and_positive(name: str, value: Any) -> None:
    config = EngineArgs(hf_overrides={name: value}).create_engine_config()
    property_of = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    with pytest.raises(ValueError, match=name):
        getattr(config.model, property_of.get(name, name))


def test_overrides_are_laid_over_the_config() -> None:
    config = EngineArgs(hf_overrides={"max_position_embeddings": 99}).create_engine_config()
    assert config.model.max_model_len == 99
    assert config.model.hf["vocab_size"] == config.model.vocab_size


# ---- generation config ------------------------------------------------------------------------


def generation(folder: Path, source: str = "auto", hf: Any = HF, **overrides: Any) -> Any:
    return read_generation(folder, source, overrides, hf)


def test_defaults_come_from_the_folder(tmp_path: Path) -> None:
    folder = model_folder(
        tmp_path,
        temperature=0.6,
        top_p=0.9,
        top_k=None,
        do_sample=True,
        max_new_tokens=7,
        eos_token_id=[2, 5],
        transformers_version="5",
    )
    told = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 7}
    assert generation(folder) == (told, (2, 5))
    assert generation(folder, "vllm") == ({}, (2, 5))
    assert generation(folder, top_k=4, temperature=1.1) == (
        told | {"top_k": 4, "temperature": 1.1},
        (2, 5),
    )
    assert generation(folder, "vllm", min_p=0.2)[0] == {"min_p": 0.2}


def test_a_model_that_does_not_sample_is_greedy(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, do_sample=False, temperature=0.6, top_p=0.9, top_k=3)
    assert generation(folder)[0] == {"temperature": 0.0}
    # What the user says counts more than what the folder does not.
    assert generation(folder, temperature=0.7)[0]["temperature"] == 0.7


def test_another_folder_or_file_may_be_named(tmp_path: Path) -> None:
    mine = model_folder(tmp_path / "mine", temperature=0.1)
    theirs = model_folder(tmp_path / "theirs", temperature=0.2, eos_token_id=3)
    assert generation(mine, str(theirs)) == ({"temperature": 0.2}, (3,))
    assert generation(mine, str(theirs / "generation_config.json"))[1] == (3,)
    with pytest.raises(ValueError, match="generation_config"):
        generation(mine, str(tmp_path))


def test_ends_of_text(tmp_path: Path) -> None:
    none = model_folder(tmp_path / "none")
    assert generation(none)[1] == ()
    assert generation(none, hf=HF | {"eos_token_id": 4})[1] == (4,)
    null = model_folder(tmp_path / "null", {"eos_token_id": 4}, eos_token_id=None)
    assert generation(null, hf=HF | {"eos_token_id": [4, 5]})[1] == (4, 5)
    assert generation(null, eos_token_id=6)[1] == (6,)
    bad = model_folder(tmp_path / "bad", eos_token_id="</s>")
    with pytest.raises(ValueError, match="eos_token_id"):
        generation(bad)


# ---- files and folders ------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\ud83d"])
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"config\.json"):
        read_json(path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(ValueError, match="larger"):
        read_json(path)


def test_folders(tmp_path: Path) -> None:
    assert hub.resolve(None) == hub.demo_model()
    assert (hub.demo_model() / "config.json").is_file()
    folder = model_folder(tmp_path / "model")
    assert hub.resolve(str(folder)) == folder
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        hub.resolve(str(empty))
    assert hub.resolve(str(empty), tokenizer_only=True) == empty


@pytest.mark.parametrize("name", ["/nowhere/at", "./nowhere", "../no", "~/nowhere-at-all", "a/b/c"])
def test_what_is_no_folder_and_no_hub_id(name: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        hub.resolve(name)


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        hub.resolve(str(path))


def test_a_name_that_no_hub_could_have() -> None:
    with pytest.raises(ValueError, match="not a valid hub id"):
        hub.resolve("some body/some model")


@pytest.mark.parametrize("name", ["somebody/some-model", "some-model"])
def test_without_a_network_the_error_is_clear_and_quick(name: str, tmp_path: Path) -> None:
    """tests/conftest.py sets HF_HUB_OFFLINE."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=f"{name}.*local cache.*path of a model folder"):
        hub.resolve(name, download_dir=str(tmp_path))
    assert time.perf_counter() - start < 10


def test_errors_of_the_network_are_value_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(Exception):
        """An HTTP client's error, of whichever client the hub uses."""

    for error in (ConnectionError("refused"), TimeoutError(), PermissionError("no"), Unreachable()):

        def fail(*args: Any, raised: Exception = error, **given: Any) -> str:
            raise raised

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(ValueError, match="somebody/some-model") as caught:
            hub.resolve("somebody/some-model")
        assert caught.value.__cause__ is error


def test_only_files_that_are_needed_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def fetch(model: str, **given: Any) -> str:
        asked.append({"model": model} | given)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("a/b", revision="r", download_dir="d") == tmp_path
    hub.resolve("a/b", weights=False)
    assert (asked[0]["model"], asked[0]["revision"], asked[0]["cache_dir"]) == ("a/b", "r", "d")
    assert "*.safetensors" in asked[0]["allow_patterns"]
    assert "*.safetensors" not in asked[1]["allow_patterns"]
    assert not any("bin" in p or "py" in p for p in asked[0]["allow_patterns"])


def test_a_tokenizer_may_live_in_a_folder_of_its_own(tmp_path: Path) -> None:
    config = EngineArgs(tokenizer=str(tmp_path)).create_engine_config()
    assert config.model.tokenizer_folder == tmp_path
    assert EngineArgs().create_engine_config().model.tokenizer_folder == hub.demo_model()
