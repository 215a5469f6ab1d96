"""The vectorised sampler against a twin that treats one row at a time, in plain Python."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from vllm.core.plan import NewSequence, StepPlan
from vllm.sampling_params import SamplingParams
from vllm.worker import draw as drawing
from vllm.worker import sampler as sampling
from vllm.worker.draw import draw, uniforms
from vllm.worker.rows import Rows
from vllm.worker.sampler import Sampler, token_logprobs

VOCAB = 40
EOS = 3


@dataclass
class Row:
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [1])
    output: list[int] = field(default_factory=list)
    seed: int = 0
    bad_words: list[list[int]] = field(default_factory=list)


def sample(logits: torch.Tensor, batch: list[Row]):
    state = Rows(len(batch), 64, 4)
    sampler = Sampler(len(batch), logits.shape[1], str)
    new = [
        NewSequence(
            seq=i,
            tokens=row.prompt + row.output,
            prompt_len=len(row.prompt),
            params=row.params,
            sampling_seed=row.seed,
            eos_token_ids=[EOS],
            bad_words_token_ids=row.bad_words,
        )
        for i, row in enumerate(batch)
    ]
    rows, fresh = state.apply(
        StepPlan(
            seqs=list(range(len(batch))),
            starts=np.zeros(len(batch), np.int32),
            counts=np.ones(len(batch), np.int32),
            sample=np.ones(len(batch), bool),
            blocks=[[] for _ in batch],
            new=new,
            forget=[],
        )
    )
    for at in fresh:
        sampler.set_row(at, state.new[at])
    return sampler.sample(logits.clone(), rows, state)


def tokens_of(logits: torch.Tensor, batch: list[Row]) -> list[int]:
    return sample(logits, batch)[0].tolist()


def processed(logits: torch.Tensor, row: Row) -> list[float]:
    """One row's logits after rules and penalties, one token at a time."""
    p, x = row.params, [float(v) for v in logits]
    if p.allowed_token_ids:
        x = [v if i in p.allowed_token_ids else -math.inf for i, v in enumerate(x)]
    for token, bias in (p.logit_bias or {}).items():
        x[token] += bias
    banned = set()
    if len(row.output) < p.min_tokens:
        banned |= set(p.stop_token_ids) | (set() if p.ignore_eos else {EOS})
    for word in row.bad_words:
        if len(word) == 1 or row.output[-(len(word) - 1) :] == word[:-1]:
            banned.add(word[-1])
    left = [i for i, v in enumerate(x) if v > -math.inf and i not in banned]
    if left:
        x = [-math.inf if i in banned else v for i, v in enumerate(x)]
    for token in range(len(x)):
        seen = token in row.prompt or token in row.output
        if seen and p.repetition_penalty != 1:
            up = x[token] <= 0
            x[token] = x[token] * p.repetition_penalty if up else x[token] / p.repetition_penalty
        if token in row.output:
            x[token] -= p.frequency_penalty * row.output.count(token) + p.presence_penalty
    return x


def kept(x: list[float], p: SamplingParams) -> dict[int, float]:
    """What may be drawn and how likely, in the order in which probabilities are cumulated."""
    peak = max(x)
    weight = {i: math.exp((v - peak) / p.temperature) for i, v in enumerate(x)}
    by_value = sorted(weight, key=lambda i: (-x[i], i))
    if p.top_k > 0:
        by_value = by_value[: p.top_k]
    total = sum(weight[i] for i in by_value)
    if p.top_p < 1:
        mass, few = 0.0, []
        for i in by_value:
            if few and mass >= p.top_p * total:
                break
            few.append(i)
            mass += weight[i]
        by_value = few
    by_value = [i for i in by_value if weight[i] >= p.min_p]  # the likeliest has weight 1
    cut = 0 < p.top_k < len(x) or p.top_p < 1
    order = by_value if cut else sorted(by_value)
    total = sum(weight[i] for i in order)
    return {i: weight[i] / total for i in order}


def twin(logits: torch.Tensor, row: Row) -> int:
    x = processed(logits, row)
    if row.params.greedy:
        return x.index(max(x))
    position = len(row.prompt) + len(row.output)
    uniform = float(uniforms(np.array([row.seed % 2**64], np.uint64), np.array([position]))[0])
    passed = 0.0
    token = -1
    for token, share in kept(x, row.params).items():
        passed += share
        if share > 0 and passed > uniform:
            return token
    return token


def some_logits(rng: random.Random, rows: int, vocab: int = VOCAB) -> torch.Tensor:
    """Coarse, as bfloat16 makes them, so that equal ones are common."""
    scale = rng.choice([0.5, 2.0, 6.0])
    return torch.tensor(
        [[round(rng.gauss(0, scale) * 4) / 4 for _ in range(vocab)] for _ in range(rows)]
    )


def some_row(rng: random.Random, features: set[str]) -> Row:
    given: dict[str, object] = {"temperature": rng.choice([0.0, 0.3, 1.0, 1.7]), "max_tokens": 32}
    output = [rng.randrange(8) for _ in range(rng.randrange(6))]
    bad_words: list[list[int]] = []

    def on(name: str) -> bool:
        return name in features and rng.random() < 0.6

    if on("top_k"):
        given["top_k"] = rng.choice([1, 2, 5, VOCAB - 1, VOCAB, VOCAB + 7])
    if on("top_p"):
        given["top_p"] = rng.choice([1e-6, 0.3, 0.9, 0.999])
    if on("min_p"):
        given["min_p"] = rng.choice([0.05, 0.5, 1.0])
    if on("presence"):
        given["presence_penalty"] = rng.uniform(-2, 2)
    if on("frequency"):
        given["frequency_penalty"] = rng.uniform(-2, 2)
    if on("repetition"):
        given["repetition_penalty"] = rng.choice([0.5, 1.3, 2.0])
    if on("bias"):
        given["logit_bias"] = {rng.randrange(VOCAB): rng.uniform(-100, 100) for _ in range(3)}
    if on("allowed"):
        given["allowed_token_ids"] = [*rng.sample(range(VOCAB), rng.randrange(1, 9)), EOS]
    if on("bad_words"):
        tail = output[-1:] or [0]
        bad_words = [[rng.randrange(VOCAB)], [*tail, rng.randrange(VOCAB)], [5, 6, 7], [0, 1]]
    if on("min_tokens"):
        given["min_tokens"] = rng.randrange(1, 8)
        given["stop_token_ids"] = rng.sample(range(VOCAB), 3)
        given["ignore_eos"] = rng.random() < 0.3
    return Row(
        SamplingParams(**given),
        [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 6))],
        output,
        rng.randrange(-(2**63), 2**63),
        bad_words,
    )


FEATURES = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence",
    "frequency",
    "repetition",
    "bias",
    "allowed",
    "bad_words",
    "min_tokens",
]


@pytest.mark.parametrize("feature", FEATURES)
def test_each_feature_alone_is_as_its_twin(feature: str) -> None:
    rng = random.Random(FEATURES.index(feature))
    for _ in range(12):
        batch = [some_row(rng, {feature}) for _ in range(rng.randrange(1, 9))]
        logits = some_logits(rng, len(batch))
        assert tokens_of(logits, batch) == [twin(x, r) for x, r in zip(logits, batch, strict=True)]


@pytest.mark.parametrize("seed", range(8))
def test_all_features_in_mixed_batches_are_as_their_twin(seed: int) -> None:
    rng = random.Random(100 + seed)
    for _ in range(8):
        batch = [some_row(rng, set(FEATURES)) for _ in range(rng.randrange(1, 40))]
        logits = some_logits(rng, len(batch))
        assert tokens_of(logits, batch) == [twin(x, r) for x, r in zip(logits, batch, strict=True)]


def test_a_rows_token_does_not_depend_on_the_rest_of_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "CANDIDATES", 8)  # so that some rows need more than others
    monkeypatch.setattr(sampling, "CHUNK_ROWS", 7)
    rng = random.Random(7)
    for _ in range(20):
        batch = [some_row(rng, {"top_k", "top_p", "min_p", "repetition"}) for _ in range(24)]
        logits = some_logits(rng, len(batch), 300)
        together = tokens_of(logits, batch)
        assert together == [tokens_of(logits[i : i + 1], [row])[0] for i, row in enumerate(batch)]
        order = rng.sample(range(len(batch)), len(batch))
        assert [together[i] for i in order] == tokens_of(logits[order], [batch[i] for i in order])


def test_top_p_in_a_flat_distribution_looks_beyond_its_first_candidates() -> None:
    vocab = 3000
    logits = torch.zeros(1, vocab)
    logits[0, ::2] = 0.25
    cumulated = np.array([draw(logits, *one(top_p=0.9, uniform=u))[0] for u in (0.0, 0.5, 0.9999)])
    assert cumulated[0] == 0
    assert cumulated[1] % 2 == 0
    assert cumulated[2] % 2 == 1
    # 90% of the mass: all even ids, and the lower ones of the odd ids.
    even = math.exp(0.25) * vocab / 2
    few = (0.9 * (even + vocab / 2) - even) * 2
    assert abs(cumulated[2] - few) < few * 0.01


def one(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, uniform: float = 0.0):
    return np.array([top_k]), np.array([top_p]), np.array([min_p]), np.array([uniform])


def test_greedy_rows_and_top_k_1_take_the_argmax() -> None:
    logits = some_logits(random.Random(3), 64)
    best = logits.argmax(-1).tolist()
    assert tokens_of(logits, [Row(SamplingParams(temperature=0)) for _ in range(64)]) == best
    only = [Row(SamplingParams(top_k=1, temperature=2.0), seed=i) for i in range(64)]
    assert tokens_of(logits, only) == best


@pytest.mark.parametrize(
    "cut",
    [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 9, "top_p": 0.9, "min_p": 0.05}],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(cut: dict[str, float]) -> None:
    count = 20_000
    logits = torch.randn(14, generator=torch.Generator().manual_seed(5)) * 1.5
    params = SamplingParams(temperature=0.8, **cut)
    state = [np.full(count, v) for v in (params.top_k, params.top_p, params.min_p)]
    positions = np.arange(count)
    uniform = uniforms(np.full(count, 42, np.uint64), positions)
    drawn = draw((logits / 0.8).repeat(count, 1), *state, uniform)
    expected = kept([float(v) for v in logits], params)
    counts = np.bincount(drawn.numpy(), minlength=14)
    assert set(np.flatnonzero(counts)) <= set(expected)
    chi = sum((counts[i] - count * p) ** 2 / (count * p) for i, p in expected.items())
    freedom = len(expected) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 8, (chi, freedom)


def test_uniforms_are_pinned() -> None:
    """Other numbers would change what every seeded request gives."""
    seeds = np.array([0, 1, 42, 2**64 - 1, 0], np.uint64)
    positions = np.array([0, 1, 17, 3, 2**31])
    golden = [
        0.28176129772258496,
        0.6871007905211134,
        0.9044133946617391,
        0.858248943920594,
        0.7967754759848314,
    ]
    assert uniforms(seeds, positions).tolist() == golden
    assert uniforms(seeds[1:2], positions[1:2]).tolist() == golden[1:2]
    pairs = zip(seeds.tolist(), positions.tolist(), strict=True)
    assert [plain_uniform(s, p) for s, p in pairs] == golden


def plain_uniform(seed: int, position: int) -> float:
    """The same with Python's integers."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    first = mix((seed + 0x9E3779B97F4A7C15) % 2**64)
    return (mix(first ^ (position * 0xD1B54A32D192ED03 % 2**64)) >> 11) * 2.0**-53


def test_uniforms_do_not_correlate() -> None:
    size = 256
    seeds = np.repeat(np.arange(size, dtype=np.uint64), size)
    u = uniforms(seeds, np.tile(np.arange(size), size)).reshape(size, size)
    assert (u >= 0).all()
    assert (u < 1).all()
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(u.var() - 1 / 12) < 0.002
    assert len(np.unique(u)) == u.size
    buckets = np.bincount((u * 64).astype(int).ravel(), minlength=64)
    assert ((buckets - u.size / 64) ** 2 / (u.size / 64)).sum() < 120
    for shifted in (np.roll(u, 1, 0), np.roll(u, 1, 1), np.roll(u, (1, -1), (0, 1)), u.T):
        assert abs(np.corrcoef(u.ravel(), shifted.ravel())[0, 1]) < 0.02
    across = np.corrcoef(u) - np.eye(size)  # every seed's stream against every other's
    assert abs(across).max() < 0.4
    assert abs(np.corrcoef(u.T) - np.eye(size)).max() < 0.4


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1 - 2**-53])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}])
def test_what_has_no_probability_is_never_drawn(cut: dict[str, float], uniform: float) -> None:
    rng = random.Random(11)
    for _ in range(30):
        logits = torch.full((1, 9), -math.inf)
        alive = rng.sample(range(9), rng.randrange(1, 4))
        logits[0, alive] = torch.tensor([rng.gauss(0, 3) for _ in alive])
        assert int(draw(logits, *one(uniform=uniform, **cut))) in alive


def test_bans_that_leave_nothing_are_not_applied() -> None:
    both = Row(SamplingParams(allowed_token_ids=[EOS], min_tokens=4), output=[1])
    greedy = Row(SamplingParams(allowed_token_ids=[7], temperature=0), bad_words=[[7]])
    assert tokens_of(some_logits(random.Random(1), 2), [both, greedy]) == [EOS, 7]


def test_a_row_keeps_nothing_of_its_last_sequence() -> None:
    state, sampler = Rows(1, 16, 4), Sampler(1, VOCAB, str)
    strange = SamplingParams(
        allowed_token_ids=[5], logprobs=2, top_k=3, top_p=0.5, min_p=0.3, repetition_penalty=2.0
    )
    forced = SamplingParams(reference_token_ids=[7])
    logits = some_logits(random.Random(2), 1)
    for seq, params in enumerate([strange, forced, SamplingParams(temperature=0)]):
        new = NewSequence(seq, [1, 2], 2, params, 0)
        plan = StepPlan(
            [seq], *np.zeros((2, 1), np.int32), np.ones(1, bool), [[]], [new], [seq - 1]
        )
        rows, fresh = state.apply(plan)
        sampler.set_row(fresh[0], new)
        tokens, logprobs = sampler.sample(logits.clone(), rows, state)
    assert tokens.tolist() == logits.argmax(-1).tolist()
    assert logprobs is None


def test_logprobs_are_those_of_the_model_whatever_the_rules() -> None:
    rng = random.Random(4)
    logits = some_logits(rng, 6)
    asked = [None, 0, 1, 5, -1, VOCAB + 3]
    batch = [
        Row(SamplingParams(logprobs=k, allowed_token_ids=[9, 11], temperature=0.5), seed=i)
        for i, k in enumerate(asked)
    ]
    tokens, told = sample(logits, batch)
    assert told is not None
    assert told[0] is None
    expected = torch.log_softmax(logits, -1)
    for i, k in list(enumerate(asked))[1:]:
        assert told[i].ids[0] == tokens[i] in (9, 11)
        count = VOCAB if k in (-1, VOCAB + 3) else k
        assert len(told[i].ids) == len(told[i].logprobs) == count + 1
        assert told[i].logprobs == pytest.approx(expected[i][told[i].ids].tolist())
        assert told[i].logprobs[1:] == sorted(told[i].logprobs[1:], reverse=True)
        better = [v for v in expected[i].tolist() if v > float(expected[i, tokens[i]])]
        assert told[i].rank == len(better) + 1
        best = sorted(expected[i].tolist(), reverse=True)[:count]
        assert told[i].logprobs[1:] == pytest.approx(best)


def test_reference_tokens_come_whatever_is_likely() -> None:
    rng = random.Random(5)
    logits = some_logits(rng, 4)
    forced = SamplingParams(reference_token_ids=[EOS, 9, EOS], allowed_token_ids=[1])
    batch = [Row(forced, output=[EOS, 9, EOS][:k]) for k in range(3)]
    batch.append(Row(SamplingParams(temperature=0)))
    tokens, told = sample(logits, batch)
    assert tokens.tolist() == [EOS, 9, EOS, int(logits[3].argmax())]
    expected = torch.log_softmax(logits, -1)
    for i in range(3):
        assert told[i].ids == [tokens[i]]
        assert told[i].logprobs == pytest.approx([float(expected[i, tokens[i]])])


def test_nobody_asks_for_logprobs() -> None:
    assert sample(torch.randn(2, VOCAB), [Row(SamplingParams()), Row(SamplingParams())])[1] is None


def test_ranks_of_equal_tokens_are_the_best_they_share() -> None:
    assert token_logprobs(torch.tensor([-1.0, -2.0, -1.0, -3.0]), 2, 0).rank == 1
    assert token_logprobs(torch.tensor([-1.0, -2.0, -1.0, -3.0]), 1, 0).rank == 3


def test_time_of_64_rows_of_32k(capsys: pytest.CaptureFixture[str]) -> None:
    rows, vocab = 64, 32_000
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(1)) * 5
    kinds = {
        "greedy": {"temperature": 0.0},
        "plain": {},
        "top_k": {"top_k": 50},
        "top_p": {"top_p": 0.9},
        "all": {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.1},
    }
    took = {}
    for name, given in kinds.items():
        batch = [Row(SamplingParams(**given), seed=i) for i in range(rows)]
        start = time.perf_counter()
        tokens_of(logits, batch)
        took[name] = time.perf_counter() - start
    with capsys.disabled():
        print("\n64 x 32k:", ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in took.items()))
    assert max(took.values()) < 10
