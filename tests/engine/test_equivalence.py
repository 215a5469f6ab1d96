"""What a request gets depends on nothing but itself: not on chunks, cache, company or preemption.

In float32 on the CPU this holds to the token. Every block that nobody holds is full of NaNs in all
of these tests, so that memory which was never written shows when it is read.
"""

from __future__ import annotations

import importlib
import math
import random
from dataclasses import dataclass

import pytest
import torch

from vllm import kernels
from vllm.config import EngineArgs
from vllm.entrypoints.llm_engine import LLMEngine
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams


def kernel_sets() -> list[str]:
    sets = ["reference"]
    for name in kernels.SETS:
        module = importlib.import_module(f"vllm.kernels.{name}")
        if module.available("cpu") is None:
            sets.append(name)
    return sets


pytestmark = pytest.mark.parametrize("kernel", kernel_sets())

SIZE = 16
LENGTHS = (1, 15, 16, 17, 31, 33, 48)


def make(kernel: str, **options) -> LLMEngine:
    """An engine whose unused blocks are poisoned before every step."""
    args = EngineArgs(
        **{
            "dtype": "float32",
            "kernels": kernel,
            "cpu_threads": 1,
            "block_size": SIZE,
            "max_model_len": 128,
            "num_gpu_blocks_override": 64,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
        }
        | options
    )
    engine = LLMEngine.from_engine_args(args)
    core, executor = engine.core, engine.core.executor
    arena, plain = executor.model_runner.kv, executor.execute
    arena.fill_(math.nan)

    def execute(plan):
        pool = core.scheduler.kv._pool
        arena[torch.tensor(pool._free, dtype=torch.int64)] = math.nan
        core.check()
        return plain(plan)

    executor.execute = execute
    return engine


def prompts(engine: LLMEngine, lengths=LENGTHS, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    vocab = engine.config.model.vocab_size
    return [[rng.randrange(vocab) for _ in range(length)] for length in lengths]


def greedy(**more) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "ignore_eos": True} | more)


def drawn(**more) -> SamplingParams:
    return SamplingParams(
        **{"temperature": 1.5, "seed": 11, "max_tokens": 16, "ignore_eos": True} | more
    )


@dataclass
class Ran:
    outputs: list[RequestOutput]
    steps: int

    @property
    def tokens(self) -> list[list[list[int]]]:
        return [[c.token_ids for c in o.outputs] for o in self.outputs]

    @property
    def preemptions(self) -> int:
        return sum(o.metrics.num_preemptions for o in self.outputs)


def run(engine: LLMEngine, requests: list[tuple[list[int], SamplingParams]]) -> Ran:
    done: dict[str, RequestOutput] = {}
    for i, (prompt, params) in enumerate(requests):
        engine.add_request(str(i), prompt, params)
    steps = 0
    while engine.has_unfinished_requests():
        steps += 1
        assert steps < 2000
        for output in engine.step():
            if output.finished:
                done[output.request_id] = output
    assert engine.core.scheduler.kv.usage == 0
    return Ran([done[str(i)] for i in range(len(requests))], steps)


_alone: dict[str, Ran] = {}


def alone(kernel: str, requests: list[tuple[list[int], SamplingParams]]) -> Ran:
    """Each in an engine that does nothing else, and caches nothing."""
    key = f"{kernel} {requests}"
    if key not in _alone:
        engine = make(kernel, enable_prefix_caching=False)
        ran = [run(engine, [request]) for request in requests]
        _alone[key] = Ran([r.outputs[0] for r in ran], sum(r.steps for r in ran))
    return _alone[key]


def mixed(engine: LLMEngine) -> list[tuple[list[int], SamplingParams]]:
    """Greedy and drawn, with and without cuts and penalties."""
    kinds = [
        greedy(),
        drawn(),
        drawn(seed=5, top_k=7),
        drawn(seed=6, top_p=0.8, min_p=0.01),
        drawn(seed=7, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.3),
        greedy(repetition_penalty=1.5, logit_bias={1: -5.0, 2: 3.0}),
        drawn(seed=8, n=3),
    ]
    return list(zip(prompts(engine), kinds, strict=True))


def test_a_batch_gives_what_each_gets_alone(kernel):
    engine = make(kernel)
    requests = mixed(engine)
    assert run(engine, requests).tokens == alone(kernel, requests).tokens


@pytest.mark.parametrize("budget", [8, 19])
def test_chunks(kernel, budget):
    engine = make(kernel, max_num_batched_tokens=budget)
    requests = mixed(engine)
    ran = run(engine, requests)
    assert ran.steps > 16
    assert ran.tokens == alone(kernel, requests).tokens


def test_a_cached_prefix(kernel):
    engine = make(kernel)
    requests = mixed(engine)
    cold, warm = run(engine, requests), run(engine, requests)
    assert [o.num_cached_tokens for o in cold.outputs] == [0] * 7
    assert [o.num_cached_tokens for o in warm.outputs] == [
        (length - 1) // SIZE * SIZE for length in LENGTHS
    ]
    assert cold.tokens == warm.tokens == alone(kernel, requests).tokens


def test_a_conversation_goes_on_from_its_cached_beginning(kernel):
    """The cached blocks hold output tokens too, written one at a time."""
    engine = make(kernel, max_model_len=256)
    text = prompts(engine, [25])[0]
    fresh = list(text)
    for turn in range(3):
        got = run(engine, [(text, greedy())]).outputs[0]
        assert got.num_cached_tokens == (0 if turn == 0 else (len(text) - 4) // SIZE * SIZE)
        text = text + got.outputs[0].token_ids + prompts(engine, [3], seed=turn)[0]
    other = make(kernel, max_model_len=256, enable_prefix_caching=False)
    for turn in range(3):
        got = run(other, [(fresh, greedy())]).outputs[0]
        fresh = fresh + got.outputs[0].token_ids + prompts(engine, [3], seed=turn)[0]
    assert text == fresh


def test_prefixes_that_part_within_a_block(kernel):
    engine = make(kernel)
    (base,) = prompts(engine, [50])
    tails = prompts(engine, [3] * 6, seed=1)
    cuts = (16, 17, 31, 32, 40, 48)
    requests = [(base[:c] + t, greedy()) for c, t in zip(cuts, tails, strict=True)]
    run(engine, [(base, greedy(max_tokens=1))])
    ran = run(engine, requests)
    assert [o.num_cached_tokens for o in ran.outputs] == [c // SIZE * SIZE for c in cuts]
    assert ran.tokens == alone(kernel, requests).tokens


@pytest.mark.parametrize("caching", [True, False])
def test_preemption(kernel, caching):
    engine = make(
        kernel,
        block_size=4,
        num_gpu_blocks_override=20,
        max_model_len=80,
        max_num_batched_tokens=24,
        enable_prefix_caching=caching,
    )
    requests = mixed(engine)
    ran = run(engine, requests)
    assert ran.preemptions > 0
    assert ran.tokens == alone(kernel, requests).tokens


def test_n_outputs_are_n_requests(kernel):
    """Output i of a request with a seed is the only output of one with seed + i."""
    engine = make(kernel)
    requests = [(p, drawn(n=3, seed=40)) for p in prompts(engine, [16, 17, 33])]
    singles = [(p, drawn(seed=40 + i)) for p, _ in requests for i in range(3)]
    together = [tokens for request in run(engine, requests).tokens for tokens in request]
    assert together == [tokens for (tokens,) in alone(kernel, singles).tokens]
    assert len({tuple(t) for t in together}) > 3, "the outputs of one request differ"


def values(output: RequestOutput) -> list[dict[int, float]]:
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    return [{t: p.logprob for t, p in at.items()} for at in output.prompt_logprobs[1:]]


def near(a: list[dict[int, float]], b: list[dict[int, float]]) -> bool:
    return len(a) == len(b) and all(
        next(iter(x)) == next(iter(y)) and x == pytest.approx(y, abs=1e-4)
        for x, y in zip(a, b, strict=True)
    )


def test_prompt_logprobs_over_chunks_cache_and_preemption(kernel):
    lengths = (2, 16, 17, 40)
    whole = make(kernel)
    asked = [(p, drawn(prompt_logprobs=1, n=2, max_tokens=20)) for p in prompts(whole, lengths)]
    expected = [values(o) for o in alone(kernel, asked).outputs]
    assert [len(e) for e in expected] == [length - 1 for length in lengths]
    for _ in range(2):  # the second time all of it is cached, and not read
        ran = run(whole, asked)
        assert all(near(values(o), e) for o, e in zip(ran.outputs, expected, strict=True))
    small = make(kernel, num_gpu_blocks_override=9, max_model_len=80, max_num_batched_tokens=8)
    ran = run(small, asked)
    assert ran.preemptions > 0
    assert all(near(values(o), e) for o, e in zip(ran.outputs, expected, strict=True))


def test_logprobs_of_an_output_are_those_of_the_same_text_as_a_prompt(kernel):
    engine = make(kernel)
    requests = [(p, drawn(logprobs=2, temperature=0.7)) for p in prompts(engine, [5, 16, 30])]
    for (prompt, _), output in zip(requests, run(engine, requests).outputs, strict=True):
        made: CompletionOutput = output.outputs[0]
        assert made.logprobs is not None
        mine = [at[t].logprob for at, t in zip(made.logprobs, made.token_ids, strict=True)]
        assert made.cumulative_logprob == pytest.approx(sum(mine))
        text = prompt + made.token_ids
        again = run(engine, [(text, greedy(max_tokens=1, prompt_logprobs=2))]).outputs[0]
        told = values(again)[len(prompt) - 1 :]
        theirs = [at[t] for at, t in zip(told, made.token_ids, strict=True)]
        assert mine == pytest.approx(theirs, abs=1e-4)
        assert all(value < 0 for value in mine)


def test_reference_tokens_get_the_logprobs_of_the_same_text_as_a_prompt(kernel):
    engine = make(kernel, num_gpu_blocks_override=9, max_model_len=80)
    eos = engine.config.model.eos_token_ids[0]
    given = prompts(engine, [5, 16, 30])
    texts = [[*reversed(p[:3]), eos, *p] for p in given]
    requests = [
        (p, SamplingParams(reference_token_ids=t, max_tokens=1, seed=1))
        for p, t in zip(given, texts, strict=True)
    ]
    ran = run(engine, requests)
    assert ran.tokens == [[t] for t in texts]
    for prompt, output in zip(given, ran.outputs, strict=True):
        made = output.outputs[0]
        assert made.finish_reason == "length" and made.logprobs is not None
        mine = [at[t].logprob for at, t in zip(made.logprobs, made.token_ids, strict=True)]
        asked = greedy(max_tokens=1, prompt_logprobs=0)
        again = run(engine, [(prompt + made.token_ids, asked)]).outputs[0]
        told = values(again)[len(prompt) - 1 :]
        assert mine == pytest.approx([next(iter(at.values())) for at in told], abs=1e-4)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 46, 47])
def test_a_sequence_ends_exactly_at_max_model_len(kernel, length):
    """Also where the pool holds that one sequence and no block more."""
    engine = make(kernel, max_model_len=48, num_gpu_blocks_override=3)
    (prompt,) = prompts(engine, [length])
    made = run(engine, [(prompt, greedy(max_tokens=100))]).outputs[0].outputs[0]
    assert len(made.token_ids) == 48 - length
    assert made.finish_reason == "length"
    expected = alone(kernel, [(prompt, greedy(max_tokens=48 - length))])
    assert [[made.token_ids]] == expected.tokens
