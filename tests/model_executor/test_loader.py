"""Weights: what is read, what is refused, and that a hostile file costs nothing."""

from __future__ import annotations

import json
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, OPTConfig, PretrainedConfig

from vllm import kernels
from vllm.kernels import Ops
from vllm.model_executor import loader
from vllm.model_executor.loader import load_model, weight_files
from vllm.model_executor.safetensors import DTYPES, read_header, read_tensors

from .harness import Case, Driver, load, make_case

OPT = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 64,
}
SINGLE, INDEX = loader.SINGLE, loader.INDEX


@pytest.fixture(scope="module")
def plain() -> Ops:
    return kernels.load("cpu", "reference")


def config(**fields: Any) -> LlamaConfig:
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    return LlamaConfig(**small, **sizes, **fields)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("llama"), config())


@pytest.fixture
def weights(case: Case) -> dict[str, Tensor]:
    return load_file(case.folder / SINGLE)


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def tensor(begin: int, end: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
HOSTILE: dict[str, tuple[Any, bytes, int | None]] = {
    "header past the end": ({}, b"", 1000),
    "header of 2^63 bytes": ({}, b"", 2**63),
    "header of no bytes": (b"", b"", None),
    "not JSON": (b"{", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "too deep": (b"[" * 100_000, b"", None),
    "an array": ([], b"", None),
    "a number": ({"a": 1}, b"", None),
    "a field too few": ({"a": {"dtype": "U8", "shape": [1]}}, b"x", None),
    "a field too many": ({"a": tensor(0, 1, [1]) | {"code": "x"}}, b"x", None),
    "unknown dtype": ({"a": tensor(0, 1, [1], "PICKLE")}, b"x", None),
    "dtype of another type": ({"a": tensor(0, 1, [1]) | {"dtype": ["U8"]}}, b"x", None),
    "past the end": ({"a": tensor(0, 8, [8])}, b"1234", None),
    "far past the end": ({"a": tensor(0, 2**62, [2**62])}, b"1234", None),
    "a shape that overflows": ({"a": tensor(0, 0, [2**32, 2**32])}, b"", None),
    "a shape of another size": ({"a": tensor(0, 4, [2], "F32")}, b"1234", None),
    "a shape of fewer bytes": ({"a": tensor(0, 4, [2])}, b"1234", None),
    "a negative shape": ({"a": tensor(0, 4, [-2, -2])}, b"1234", None),
    "a fractional shape": ({"a": tensor(0, 4, [4.0])}, b"1234", None),
    "a true shape": ({"a": tensor(0, 1, [True])}, b"1", None),
    "negative offsets": ({"a": tensor(-4, 0, [4])}, b"1234", None),
    "offsets backwards": ({"a": tensor(4, 0, [4])}, b"1234", None),
    "three offsets": ({"a": tensor(0, 4, [4]) | {"data_offsets": [0, 4, 4]}}, b"1234", None),
    "an overlap": ({"a": tensor(0, 4, [4]), "b": tensor(2, 6, [4])}, b"123456", None),
    "the same bytes twice": ({"a": tensor(0, 4, [4]), "b": tensor(0, 4, [4])}, b"1234", None),
    "a gap": ({"a": tensor(0, 2, [2]), "b": tensor(4, 6, [2])}, b"123456", None),
    "an overlap and a gap": ({"a": tensor(0, 4, [4]), "b": tensor(2, 6, [4])}, b"12345678", None),
    "a gap and past the end": ({"a": tensor(0, 2, [2]), "b": tensor(4, 6, [2])}, b"1234", None),
    "bytes left over": ({"a": tensor(0, 2, [2])}, b"123456", None),
    "a name twice": (b"{%s,%s}" % (ONE, ONE), b"1", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file(tmp_path: Path, name: str) -> None:
    header, data, length = HOSTILE[name]
    path = write(tmp_path / "evil.safetensors", header, data, length)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"evil\.safetensors: "):
        read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_header_longer_than_allowed(tmp_path: Path) -> None:
    """The file really has that many bytes (holes), so only the cap refuses it."""
    path = write(tmp_path / "evil.safetensors", b"{", length=100 * 2**20 + 1)
    with path.open("r+b") as file:
        file.truncate(200 * 2**20)
    with pytest.raises(ValueError, match="bad header length"):
        read_header(path)


def test_every_truncation(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.arange(5.0), "b": torch.ones(2, 3)}, whole)
    raw, cut = whole.read_bytes(), tmp_path / "cut.safetensors"
    for size in range(len(raw)):
        cut.write_bytes(raw[:size])
        with pytest.raises(ValueError, match=r"cut\.safetensors: "):
            read_header(cut)


def good_file() -> bytes:
    header = {"a": tensor(0, 8, [2], "F32"), "b": tensor(8, 11, [3]), "c": tensor(11, 11, [0])}
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(range(11))


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, len(good_file()) - 1), st.binary(min_size=1))))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]]
) -> None:
    """A good file with pieces overwritten: a ValueError, or tensors that lie inside the file."""
    raw = bytearray(good_file())
    for at, piece in changes:
        raw[at : at + len(piece)] = piece
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(raw)
    try:
        entries = read_header(path)
    except ValueError:
        assert changes
        return
    read = dict(read_tensors(path, entries))
    assert sum(t.numel() * t.element_size() for t in read.values()) < len(raw)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_is_read_as_the_library_wrote_it(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {
        "some": torch.arange(6).view(2, 3).to(dtype),
        "none": torch.empty(0, 4, dtype=dtype),
        "one": torch.ones((), dtype=dtype),
    }
    path = tmp_path / "all.safetensors"
    save_file(given, path)
    read = dict(read_tensors(path, read_header(path)))
    assert read.keys() == given.keys()
    for name, expected in given.items():
        assert read[name].dtype == expected.dtype
        assert read[name].shape == expected.shape
        ours, theirs = (t.reshape(-1).view(torch.uint8) for t in (read[name], expected))
        assert torch.equal(ours, theirs)


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {"a": tensor(0, 1, [1]), "b": tensor(1, 9, [2], "F32")}
    numbers = torch.tensor([1.5, -2.0]).numpy().tobytes()
    path = write(tmp_path / "odd.safetensors", header, b"x" + numbers)
    read = dict(read_tensors(path, read_header(path)))["b"]
    assert read.tolist() == [1.5, -2.0]
    assert read.data_ptr() % 4 == 0


def test_a_file_that_shrinks_after_the_check(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    entries = read_header(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="shrank"):
        dict(read_tensors(path, entries))


def test_sharded_equals_single(case: Case, plain: Ops, tmp_path: Path) -> None:
    case.reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(weight_files(tmp_path)) > 2
    one, many = load(case, plain), load_model(tmp_path, case.hf, plain, torch.float32)
    for name, weight in many.state_dict().items():
        assert torch.equal(weight, one.state_dict()[name]), name


@pytest.mark.parametrize(
    "index",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"weight_map": {}}',
        b'{"weight_map": ["a.safetensors"]}',
        *(
            json.dumps({"weight_map": {"a": name}}).encode()
            for name in [
                "../secret.safetensors",
                "/etc/secret.safetensors",
                "sub/a.safetensors",
                "a\0.safetensors",
                "a\n.safetensors",
                "weights.bin",
                "",
                7,
                ["a.safetensors"],
                "absent.safetensors",
            ]
        ),
    ],
)
def test_bad_index(tmp_path: Path, index: bytes) -> None:
    """Every file that such an index may mean is there, so that it is the name that is refused."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for path in ("../secret.safetensors", "sub/a.safetensors", "weights.bin"):
        save_file({"a": torch.ones(1)}, folder / path)
    (folder / INDEX).write_bytes(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: "):
        weight_files(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(case: Case, plain: Ops, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04.")
    with pytest.raises(FileNotFoundError, match=f"only as {name}: .*convert them to safetensors"):
        load_model(tmp_path, case.hf, plain, torch.float32)


def test_no_weights(case: Case, plain: Ops, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor"):
        load_model(tmp_path, case.hf, plain, torch.float32)


def test_a_hostile_file_is_refused_before_the_model_is_made(
    case: Case, plain: Ops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / SINGLE, {"a": tensor(0, 9, [9])})
    monkeypatch.setattr(loader, "resolve", lambda hf: pytest.fail("made the model"))
    with pytest.raises(ValueError, match="the tensors end at byte"):
        load_model(tmp_path, case.hf, plain, torch.float32)


def drop(weights: dict[str, Tensor]) -> None:
    del weights["model.layers.1.self_attn.k_proj.weight"]


def add(weights: dict[str, Tensor]) -> None:
    weights["model.layers.3.mlp.up_proj.weight"] = torch.ones(1)


def widen(weights: dict[str, Tensor]) -> None:
    weights["model.layers.0.mlp.up_proj.weight"] = torch.ones(49, 32)


def broadcast(weights: dict[str, Tensor]) -> None:
    weights["model.norm.weight"] = torch.ones(1)


def quantise(weights: dict[str, Tensor]) -> None:
    name = "model.layers.2.self_attn.o_proj.weight"
    weights[name] = weights[name].to(torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"missing weights: model\.layers\.1\.self_attn\.k_proj\.weight$"),
        (add, r"unexpected weights: model\.layers\.3\.mlp\.up_proj\.weight$"),
        (widen, r"layers\.0\.mlp\.up_proj\.weight has shape \[49, 32\], .* \[48, 32\]"),
        (broadcast, r"model\.norm\.weight has shape \[1\]"),
        (quantise, r"layers\.2\.self_attn\.o_proj\.weight is torch\.int8"),
    ],
)
def test_weights_that_do_not_match(
    case: Case, weights: dict[str, Tensor], plain: Ops, tmp_path: Path, change: Any, message: str
) -> None:
    change(weights)
    save_file(weights, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path, case.hf, plain, torch.float32)


def test_what_older_checkpoints_carry_along(
    case: Case, weights: dict[str, Tensor], plain: Ops, tmp_path: Path
) -> None:
    """Inverse frequencies, and an output layer that is tied to the embedding anyway."""
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / SINGLE)
    load_model(tmp_path, case.hf, plain, torch.float32)
    tied = load_model(tmp_path, case.hf | {"tie_word_embeddings": True}, plain, torch.float32)
    assert torch.equal(tied.head, weights["model.embed_tokens.weight"])
    del weights["lm_head.weight"]
    save_file(weights, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"missing weights: lm_head\.weight"):
        load_model(tmp_path, case.hf, plain, torch.float32)


@pytest.mark.parametrize(
    ("made", "prefix", "mask"),
    [
        (
            GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64),
            "transformer.",
            "h.1.attn.bias",
        ),
        (OPTConfig(**OPT), "model.", None),
    ],
    ids=["gpt2", "opt"],
)
def test_first_releases_have_shorter_names(
    plain: Ops, tmp_path: Path, made: PretrainedConfig, prefix: str, mask: str | None
) -> None:
    case = make_case(tmp_path, made)
    expected = load(case, plain).state_dict()
    weights = load_file(tmp_path / SINGLE)
    assert all(name.startswith(prefix) for name in weights)
    short = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    save_file(short | ({mask: torch.ones(1, 1, 8, 8)} if mask else {}), tmp_path / SINGLE)
    for name, weight in load(case, plain).state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loads_in_the_dtype_asked_for(case: Case, plain: Ops, dtype: torch.dtype) -> None:
    model, exact = load(case, plain, dtype), load(case, plain)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    for ours, theirs in zip(model.parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, theirs.to(dtype))


def test_dummy(case: Case, plain: Ops, tmp_path: Path) -> None:
    """Made up from the seed alone, in a folder without weights, and fit to run."""
    made = [
        load_model(tmp_path, case.hf, plain, torch.float32, "dummy", seed) for seed in (1, 1, 2)
    ]
    first, again, other = [torch.cat([w.flatten() for w in m.parameters()]) for m in made]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    logits = Driver(made[0], case.hf).prefill(case.prompt(20))[1]
    assert 0.3 < logits.std() < 3
    assert len({*logits.argmax(-1).tolist()}) > 4


def test_unknown_load_format(case: Case, plain: Ops) -> None:
    with pytest.raises(ValueError, match="not 'pt'"):
        load_model(case.folder, case.hf, plain, torch.float32, "pt")


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False)])
def test_progress(
    case: Case,
    plain: Ops,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    progress: bool,
    shown: bool,
) -> None:
    load(case, plain)
    assert not capsys.readouterr().err, "a small load is quiet"
    monkeypatch.setattr(loader, "QUIET", 0)
    load_model(case.folder, case.hf, plain, torch.float32, progress=progress)
    assert ("Loading weights" in capsys.readouterr().err) == shown


def test_weights_are_let_go_as_they_are_read(
    case: Case, plain: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    def watched(*args: Any) -> Iterator[tuple[str, Tensor]]:
        nonlocal most
        for name, weight in read_tensors(*args):
            alive.add(weight)
            most = max(most, len(alive))
            yield name, weight

    monkeypatch.setattr(loader, "read_tensors", watched)
    load(case, plain)
    assert 1 <= most <= 3


def test_the_same_tensor_in_two_files(case: Case, weights: dict[str, Tensor], plain: Ops) -> None:
    model = load(case, plain)
    with pytest.raises(ValueError, match=r"unexpected weights: lm_head\.weight"):
        model.load([*weights.items(), ("lm_head.weight", weights["lm_head.weight"])])
