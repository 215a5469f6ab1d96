"""Beam search against a naive twin, and over the engine."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vllm import LLM, SamplingParams, VLLMValidationError
from vllm.entrypoints.beam import BeamSearch
from vllm.logprobs import Logprob
from vllm.sampling_params import BeamSearchParams

EOS = 0


def table(seed: int, tokens: list[int], vocab: int) -> np.ndarray:
    """Some model's logprobs behind `tokens`."""
    logits = np.random.default_rng([seed, *tokens]).normal(size=vocab) * 2
    return logits - np.log(np.exp(logits).sum())


def every_text(seed: int, vocab: int, length: int, penalty: float) -> list[tuple[float, list[int]]]:
    """All texts of up to `length` tokens with their scores, by brute force."""
    found = []

    def grow(tokens: list[int], total: float) -> None:
        for token, logprob in enumerate(table(seed, tokens, vocab)):
            made = len(tokens) - 1
            if token == EOS:
                found.append(((total + logprob) / max(1, made) ** penalty, tokens))
            elif made + 1 == length:
                found.append(((total + logprob) / (made + 1) ** penalty, [*tokens, token]))
            else:
                grow([*tokens, token], total + logprob)

    grow([9], 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all(seed: int, penalty: float) -> None:
    vocab, length = 4, 4
    params = BeamSearchParams(beam_width=64, max_tokens=length, length_penalty=penalty)
    search = BeamSearch([9], params, frozenset({EOS}), length)
    while not search.done:
        search.advance(
            [
                {t: Logprob(float(p)) for t, p in enumerate(table(seed, tokens, vocab))}
                for tokens in search.prompts
            ]
        )
    expected = every_text(seed, vocab, length, penalty)[:64]
    got = [(search.score(beam), beam.tokens) for beam in search.result()]
    assert [tokens for _, tokens in got] == [tokens for _, tokens in expected]
    assert all(math.isclose(a, b) for (a, _), (b, _) in zip(got, expected, strict=True))


def test_over_the_engine(llm: LLM) -> None:
    """Width 1 is greedy; wider ones find no worse; scores are what the engine says of the text."""
    prompts = ["The code of amber-fox is", "Once more, the"]
    greedy = llm.generate(
        prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True), use_tqdm=False
    )
    narrow = llm.beam_search(prompts, BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True))
    wide = llm.beam_search(prompts, BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))
    one_by_one = llm.beam_search(
        prompts, BeamSearchParams(beam_width=1, max_tokens=8, ignore_eos=True), concurrency_limit=1
    )
    assert [o.sequences[0].tokens for o in one_by_one] == [o.sequences[0].tokens for o in narrow]
    with pytest.raises(VLLMValidationError, match="concurrency_limit"):
        llm.beam_search(prompts, BeamSearchParams(beam_width=1, max_tokens=1), concurrency_limit=0)
    for plain, one, many in zip(greedy, narrow, wide, strict=True):
        [beam] = one.sequences
        count = len(plain.prompt_token_ids)
        assert beam.tokens[count:] == plain.outputs[0].token_ids
        assert len(many.sequences) == 4
        assert many.sequences[0].cum_logprob >= beam.cum_logprob - 1e-4
        assert llm.llm_engine.tokenizer is not None
        for found in many.sequences:
            assert found.text == llm.llm_engine.tokenizer.decode(found.tokens)
            [told] = llm.generate(
                {"prompt_token_ids": found.tokens},
                SamplingParams(prompt_logprobs=0, max_tokens=1),
                use_tqdm=False,
            )
            assert told.prompt_logprobs is not None
            positions = list(zip(found.tokens, told.prompt_logprobs, strict=True))[count:]
            total = sum(position[token].logprob for token, position in positions if position)
            assert found.cum_logprob == pytest.approx(total, abs=2e-2)


def test_it_ends_at_the_end(llm: LLM) -> None:
    eos = llm.llm_engine.config.model.eos_token_ids[0]
    [found] = llm.beam_search(["Yes."], BeamSearchParams(beam_width=4, max_tokens=60))
    ended = [beam for beam in found.sequences if beam.finish_reason == "stop"]
    assert ended and all(beam.tokens[-1] != eos for beam in ended)


def test_bad_ones_are_refused(llm: LLM) -> None:
    with pytest.raises(VLLMValidationError, match="beam_width"):
        BeamSearchParams(beam_width=0, max_tokens=1)
    with pytest.raises(VLLMValidationError, match="max_logprobs"):
        llm.beam_search("x", BeamSearchParams(beam_width=11, max_tokens=1))


def test_queued_ones_wait_for_their_own_call(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    expected = [
        o.outputs[0].token_ids for o in llm.generate(["a", "b", "c"], params, use_tqdm=False)
    ]
    first = llm.enqueue(["a", "b"], params)
    assert len(first) == 2
    [between] = llm.generate("c", params, use_tqdm=False)
    llm.enqueue("c", params)
    done = llm.wait_for_completion(use_tqdm=False)
    assert [o.request_id for o in done[:2]] == first
    assert [o.outputs[0].token_ids for o in done] == expected
    assert between.outputs[0].token_ids == expected[2]
    assert llm.wait_for_completion(use_tqdm=False) == []
