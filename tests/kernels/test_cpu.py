"""Every C++ kernel, in every instruction set that this machine has, against `reference`."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vllm.kernels import DenseBatch, cpu, dense_batch, reference

if reason := cpu.available("cpu"):
    pytest.skip(f"C++ kernels: {reason}", allow_module_level=True)

native = torch.ops.vllm_cpu
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
CLOSE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-2, "rtol": 1.6e-2},
}


@pytest.fixture(params=native.isas(), autouse=True)
def isa(request: pytest.FixtureRequest):
    before = native.isa()
    native.set_isa(request.param)
    torch.manual_seed(0)
    yield request.param
    native.set_isa(before)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, **CLOSE[want.dtype])


# ---- norms, rotary embedding, activation, KV writes

WIDTHS = pytest.mark.parametrize("width", [1, 16, 20, 80, 128, 1024, 2816])


@DTYPES
@WIDTHS
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_rms_norm(dtype, width, rows):
    x, weight = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    close(native.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))
    residual = torch.randn(rows, width).to(dtype)
    expected = residual.clone()
    close(
        native.add_rms_norm(x, residual, weight, 1e-5),
        reference.add_rms_norm(x, expected, weight, 1e-5),
    )
    assert torch.equal(residual, expected)


@DTYPES
def test_rms_norm_of_heads_within_a_fused_output(dtype):
    heads = torch.randn(9, 12, 64).to(dtype)[:, 8:10]
    weight = torch.randn(64).to(dtype)
    got = native.rms_norm(heads, weight, 1e-6)
    assert got.is_contiguous()
    close(got, reference.rms_norm(heads, weight, 1e-6))
    deeper = torch.randn(2, 3, 4, 64).to(dtype).transpose(0, 1)
    close(native.rms_norm(deeper, weight, 1e-6), reference.rms_norm(deeper, weight, 1e-6))


@DTYPES
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("partial", [1, 2, 4])
def test_rotary(dtype, dim, partial):
    turned = dim // partial // 2 * 2
    cos_sin = torch.randn(500, turned)
    positions = torch.randint(500, (77,))
    fused = torch.randn(77, 10, dim).to(dtype)
    expected = fused.clone()
    native.rotary(positions, fused[:, :8], fused[:, 8:], cos_sin)
    reference.rotary(positions, expected[:, :8], expected[:, 8:], cos_sin)
    close(fused, expected)


@DTYPES
@WIDTHS
def test_silu_and_mul(dtype, width):
    x = torch.randn(33, 2 * width) * 4
    x[0, 0], x[1, 0] = -200, 200  # beyond exp's range both ways
    x = x.to(dtype)
    close(native.silu_and_mul(x), reference.silu_and_mul(x))
    assert native.silu_and_mul(x[:0]).shape == (0, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 8, 16])
def test_write_kv(dtype, size):
    arena = torch.randn(9, 3, 2, 2, size, 32).to(dtype)
    expected = arena.clone()
    fused = torch.randn(8, 6, 32).to(dtype)
    slots = torch.randperm(9 * size)[:8]
    for op, kv in ((native, arena), (reference, expected)):
        op.write_kv(kv[:, 1], fused[:, 2:4], fused[:, 4:6], slots)
    assert torch.equal(arena, expected)


# ---- linear


@DTYPES
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 29, 300])
@pytest.mark.parametrize(("inputs", "outputs"), [(128, 384), (80, 33), (30, 7), (1024, 260)])
def test_linear(dtype, tokens, inputs, outputs):
    x = torch.randn(tokens, inputs + 16).to(dtype)[:, :inputs]
    weight = (torch.randn(outputs, inputs) * inputs**-0.5).to(dtype)
    bias = torch.randn(outputs).to(dtype)
    for b in (None, bias):
        wide = reference.linear(x.float(), weight.float(), None if b is None else b.float())
        close(native.linear(x, weight, b), wide.to(dtype))


# ---- attention


@dataclass
class Case:
    q: Tensor
    kv: Tensor
    batch: DenseBatch
    scale: float

    def check(self, window: int = 0) -> None:
        got = native.attention(
            self.q,
            self.kv,
            self.batch.block_tables,
            self.batch.query_start,
            self.batch.seq_lens,
            self.scale,
            window,
        )
        clean = self.kv.nan_to_num(0)
        close(got, reference.attention(self.q, clean, self.batch, self.scale, window))


def make(dtype, starts, counts, *, heads=2, group=4, dim=64, size=16) -> Case:
    """Sequences that compute `counts` tokens from `starts` on.

    Their blocks lie scattered in an arena of two layers; slots that nobody wrote are NaN, as
    memory that nobody wrote may be.
    """
    lengths = [a + n for a, n in zip(starts, counts, strict=True)]
    needed = [-(-n // size) for n in lengths]
    ids = list(range(sum(needed) + 2))
    random.Random(0).shuffle(ids)
    tables = [[ids.pop() for _ in range(n)] for n in needed]
    arena = torch.full((sum(needed) + 2, 2, heads, 2, size, dim), float("nan"), dtype=dtype)
    for table, length in zip(tables, lengths, strict=True):
        pages = torch.randn(len(table) * size, heads, 2, dim).to(dtype)
        pages[length:] = float("nan")
        arena[table, 1] = pages.view(len(table), size, heads, 2, dim).permute(0, 2, 3, 1, 4)
    fused = torch.randn(sum(counts), heads * (group + 2), dim).to(dtype)
    batch = dense_batch(tables, starts, counts, size)
    return Case(fused[:, : heads * group], arena[:, 1], batch, dim**-0.5)


# Decodes, a first chunk, chunks behind a cached prefix, and a sequence that computes nothing.
MIXED = ([0, 99, 3, 200, 64, 7], [70, 1, 11, 45, 1, 0])


@DTYPES
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_attention_of_a_mixed_batch(dtype, dim, group):
    make(dtype, *MIXED, group=group, dim=dim).check()


@DTYPES
@pytest.mark.parametrize("size", [1, 5, 8, 16, 32])
@pytest.mark.parametrize("window", [0, 1, 17, 64])
def test_attention_over_block_sizes_and_windows(dtype, size, window):
    make(dtype, *MIXED, size=size).check(window)


@DTYPES
@pytest.mark.parametrize(("group", "dim"), [(3, 48), (5, 16), (7, 64), (16, 256), (40, 64)])
def test_attention_of_unusual_heads(dtype, group, dim):
    make(dtype, [0, 30], [20, 1], heads=1, group=group, dim=dim).check()


@DTYPES
@pytest.mark.parametrize("window", [0, 2000])
@pytest.mark.parametrize("counts", [[1, 1], [1, 130], [3, 1]])
def test_attention_of_a_long_context_is_split_and_merged(dtype, window, counts, four_threads):
    make(dtype, [3000, 517], counts, heads=1, group=4, dim=64).check(window)


@DTYPES
def test_attention_with_scores_far_apart(dtype):
    case = make(dtype, [0, 500], [40, 1])
    case.scale = 2.0
    case.check()


def test_attention_of_no_tokens():
    case = make(torch.float32, [5], [0])
    case.check()


# ---- the door


def test_what_does_not_fit_is_refused():
    case = make(torch.float32, [4], [2], dim=32)
    b = case.batch

    def attend(q=case.q, kv=case.kv, tables=b.block_tables, starts=b.query_start, lens=b.seq_lens):
        return native.attention(q, kv, tables, starts, lens, 1.0, 0)

    attend()
    for wrong, message in (
        ({"q": case.q.bfloat16()}, "expected Float"),
        ({"q": case.q[..., :16]}, "head size"),
        ({"q": case.q[:, :7]}, "7 query heads for 2 KV heads"),
        ({"kv": case.kv.transpose(3, 4)}, "contiguous head blocks"),
        ({"tables": b.block_tables.long()}, "block_tables must be int32"),
        ({"tables": b.block_tables + 1000}, "outside of the arena"),
        ({"lens": b.seq_lens + 100}, "blocks of 16"),
        ({"lens": b.seq_lens - 5}, "2 new tokens, 1 KVs"),
        ({"starts": b.query_start + 1}, "query_start must go from 0"),
    ):
        with pytest.raises((RuntimeError, IndexError), match=message):
            attend(**wrong)
    k = torch.zeros(1, 2, 32)
    with pytest.raises(IndexError, match="outside of the arena"):
        native.write_kv(case.kv, k, k, torch.tensor([10**6]))
    with pytest.raises(IndexError, match="outside of cos_sin"):
        native.rotary(torch.tensor([9]), k, k, torch.zeros(9, 32))
    with pytest.raises(RuntimeError, match="do not fit"):
        native.linear(torch.zeros(1, 8), torch.zeros(2, 9), None)
    with pytest.raises(RuntimeError, match="must be float32 or bfloat16"):
        native.silu_and_mul(torch.zeros(1, 8, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [24, 32])
def test_the_python_side_covers_every_dtype_and_head_size(dtype, dim):
    case = make(torch.float32, [40, 0], [1, 9], dim=dim)
    q, kv = case.q.to(dtype), case.kv.nan_to_num(0).to(dtype)
    arguments = (q, kv, case.batch, case.scale, 0)
    close_at = CLOSE.get(dtype, {"atol": 1e-3, "rtol": 1e-3})
    got, want = cpu.attention(*arguments), reference.attention(*arguments)
    torch.testing.assert_close(got, want, **close_at)
    x = torch.randn(3, 64).to(dtype)
    for got, want in (
        (cpu.rms_norm(x, x[0], 1e-5), reference.rms_norm(x, x[0], 1e-5)),
        (
            cpu.add_rms_norm(x, x.clone(), x[0], 0.1),
            reference.add_rms_norm(x, x.clone(), x[0], 0.1),
        ),
        (cpu.silu_and_mul(x), reference.silu_and_mul(x)),
        (cpu.linear(x, x, None), reference.linear(x, x, None)),
    ):
        torch.testing.assert_close(got, want, **close_at)
