"""Operations on head blocks: `reference` against dense attention, C++ against `reference`."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from vllm.kernels import cpu, dense_batch, head_blocks, reference

BUILT = cpu.available("cpu") is None
native = torch.ops.vllm_cpu
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
CLOSE = {
    torch.float32: {"atol": 1e-5, "rtol": 1e-5},
    torch.bfloat16: {"atol": 1e-2, "rtol": 1.6e-2},
}


@pytest.fixture(params=["reference", *(native.isas() if BUILT else ())])
def ops(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    if request.param == "reference":
        yield reference
        return
    before = native.isa()
    native.set_isa(request.param)
    yield cpu
    native.set_isa(before)


@dataclass
class Case:
    """Compressed sequences whose heads have kept different amounts, in scattered head blocks."""

    q: Tensor
    blocks: Tensor  # [n, 2, B, D]; what no head holds is NaN
    tables: Tensor
    query_start: Tensor
    lengths: Tensor

    def alone(self, s: int, h: int, group: int) -> Tensor:
        """The queries of one head of one sequence by plain dense attention over its KVs."""
        size, length = self.blocks.shape[2], int(self.lengths[s, h])
        first, last = self.query_start[s : s + 2].tolist()
        blocks = self.tables[s, h, : -(-length // size)].tolist()
        arena = self.blocks.nan_to_num(0).unsqueeze(1)
        batch = dense_batch([blocks], [length - last + first], [last - first], size)
        q = self.q[first:last, h * group : (h + 1) * group]
        return reference.attention(q, arena, batch, 0.2, 0)


def make(dtype, counts, *, heads=2, group=4, dim=64, size=16, most=120) -> Case:
    rng = random.Random(1)
    lengths = [[n + rng.randrange(most) for _ in range(heads)] for n in counts]
    lengths[-1][0] = counts[-1]  # a head that has kept nothing of what was before
    needed = [[-(-n // size) for n in row] for row in lengths]
    width = max(map(max, needed))
    ids = list(range(sum(map(sum, needed)) + 3))
    rng.shuffle(ids)
    blocks = torch.full((len(ids), 2, size, dim), float("nan"), dtype=dtype)
    tables = torch.full((len(counts), heads, width), 10**9, dtype=torch.int32)
    for s, row in enumerate(lengths):
        for h, length in enumerate(row):
            for i in range(needed[s][h]):
                block = tables[s, h, i] = ids.pop()
                filled = min(size, length - i * size)
                blocks[block, :, :filled] = torch.randn(2, filled, dim).to(dtype)
    fused = torch.randn(sum(counts), heads * (group + 2), dim).to(dtype)
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return Case(fused[:, : heads * group], blocks, tables, starts, torch.tensor(lengths).int())


@DTYPES
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize(("dim", "size"), [(32, 1), (64, 16), (96, 8), (128, 32)])
def test_attention_reads_each_head_by_its_own_table(ops, dtype, group, dim, size):
    case = make(dtype, [1, 19, 1, 0, 40, 1], group=group, dim=dim, size=size)
    got = ops.attention_heads(case.q, case.blocks, case.tables, case.query_start, case.lengths, 0.2)
    assert got.dtype == dtype
    assert got.is_contiguous()
    for s in range(len(case.lengths)):
        first, last = case.query_start[s : s + 2].tolist()
        for h in range(2 if last > first else 0):
            mine = got[first:last, h * group : (h + 1) * group]
            torch.testing.assert_close(mine, case.alone(s, h, group), **CLOSE[dtype])


@DTYPES
def test_a_long_context_is_split_and_merged(ops, dtype):
    case = make(dtype, [1, 3], heads=1, group=4, most=3000)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    got = ops.attention_heads(case.q, case.blocks, case.tables, case.query_start, case.lengths, 0.2)
    torch.set_num_threads(before)
    torch.testing.assert_close(
        got, torch.cat([case.alone(s, 0, 4) for s in (0, 1)]), **CLOSE[dtype]
    )


def test_a_table_of_whole_blocks_is_dense_attention(ops):
    """A list of blocks, seen as head blocks, means what it means to `attention`."""
    layers, heads, size, dim = 2, 3, 4, 32
    arena = torch.randn(9, layers, heads, 2, size, dim)
    batch = dense_batch([[5, 0, 7], [3, 8]], [6, 0], [5, 7], size)
    q = torch.randn(12, heads * 2, dim)
    layer = 1
    head = torch.arange(heads).view(1, heads, 1)
    tables = (batch.block_tables.unsqueeze(1) * layers + layer) * heads + head
    lengths = batch.seq_lens.unsqueeze(1).expand(-1, heads).contiguous()
    got = ops.attention_heads(q, head_blocks(arena), tables.int(), batch.query_start, lengths, 0.3)
    expected = reference.attention(q, arena[:, layer], batch, 0.3, 0)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 8])
def test_writes_go_to_each_heads_slot(ops, dtype, size):
    blocks = torch.zeros(40 // size, 2, size, 16, dtype=dtype)
    fused = torch.randn(6, 2 * 3, 16).to(dtype)  # as from a fused projection: strided rows
    k, v = fused[:, 2:4], fused[:, 4:]
    slots = torch.randperm(40)[:12].view(6, 2)
    ops.write_kv_heads(blocks, k, v, slots)
    for t in range(6):
        for h in range(2):
            at = int(slots[t, h])
            assert torch.equal(blocks[at // size, 0, at % size], k[t, h])
            assert torch.equal(blocks[at // size, 1, at % size], v[t, h])
    assert int((blocks != 0).any(-1).sum()) == 24, "and nothing else is written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_move_keys_and_values_together(ops, dtype):
    blocks = torch.randn(50, 2, 8, 16).to(dtype)
    before, chosen = blocks.clone(), torch.randperm(400)
    source, target = chosen[:150], chosen[150:300]
    ops.copy_kv(blocks, source, target)
    flat, old = (b.transpose(1, 2).reshape(400, 2, 16) for b in (blocks, before))
    assert torch.equal(flat[target], old[source])
    rest = torch.cat([source, chosen[300:]])
    assert torch.equal(flat[rest], old[rest])
    ops.copy_kv(blocks, source[:0], target[:0])


@pytest.mark.skipif(not BUILT, reason="C++ kernels not built")
def test_what_does_not_fit_is_refused():
    case = make(torch.float32, [2, 1])

    fitting = {
        "q": case.q,
        "blocks": case.blocks,
        "tables": case.tables,
        "starts": case.query_start,
        "lens": case.lengths,
    }

    def attend(**other):
        return native.attention_heads(*(fitting | other).values(), 1.0)

    attend()
    far = case.tables.clone()
    far[0, 1, 0] = len(case.blocks)
    for wrong, message in (
        ({"q": case.q.bfloat16()}, "expected Float"),
        ({"q": case.q[:, :7]}, "7 query heads for 2 KV heads"),
        ({"blocks": case.blocks.transpose(2, 3)}, "contiguous head blocks"),
        ({"tables": case.tables.long()}, "tables must be int32"),
        ({"tables": far}, "outside of the arena"),
        ({"lens": case.lengths + 1000}, "blocks of 16"),
        ({"lens": case.lengths * 0}, "new tokens, 0 KVs"),
        ({"lens": case.lengths[:, :1]}, "lengths must be int32"),
        ({"starts": case.query_start + 1}, "query_start must go from 0"),
    ):
        with pytest.raises((RuntimeError, IndexError), match=message):
            attend(**wrong)
    k, last = torch.zeros(1, 2, 64), len(case.blocks) * 16
    for bad in (-1, last):
        with pytest.raises(IndexError, match="outside of the arena"):
            native.write_kv_heads(case.blocks, k, k, torch.tensor([[0, bad]]))
        with pytest.raises(IndexError, match="outside of the arena"):
            native.copy_kv(case.blocks, torch.tensor([bad]), torch.tensor([0]))
        with pytest.raises(IndexError, match="outside of the arena"):
            native.copy_kv(case.blocks, torch.tensor([0]), torch.tensor([bad]))
    with pytest.raises(RuntimeError, match="slots must be contiguous int64"):
        native.write_kv_heads(case.blocks, k, k, torch.tensor([[0]]))
