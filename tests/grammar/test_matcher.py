"""Masks against a slow twin: a token may come if some text of the language begins like that."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import vllm
from vllm.core.structured import StructuredOutputsParams
from vllm.engine.tokenizer import Tokenizer
from vllm.grammar import compile_grammar
from vllm.grammar.matcher import Matchers

FOLDER = Path(vllm.__file__).parent / "demo_model"
TOKENIZER = Tokenizer(FOLDER)
END = TOKENIZER.eos_token_id
assert END is not None
PADDED = TOKENIZER.vocab_size + 40  # as a model's vocabulary may be
WORDS = ["yes", "yesterday", "no way", 'say "no"', "ça va", "日本"]


@pytest.fixture
def matchers() -> Matchers:
    return Matchers((FOLDER / "tokenizer.json").read_text, PADDED)


def branches(text: str) -> bool:
    """Whether the language leaves a choice behind `text`: several characters, or the end."""
    return len({word[len(text) : len(text) + 1] for word in WORDS if word.startswith(text)}) > 1


def may_begin(text: str) -> bool:
    return any(word.startswith(text) for word in WORDS)


def test_masks_of_a_choice_equal_the_twins(matchers: Matchers) -> None:
    """Exact for tokens of whole characters where the language leaves a choice.

    Where it leaves none, the library allows only the canonical token of what must come.
    """
    grammar = compile_grammar(StructuredOutputsParams(choice=WORDS))
    texts = {i: TOKENIZER.text_of(i) for i in range(TOKENIZER.vocab_size)}
    rng = np.random.default_rng(0)
    ended = set()
    for number in range(40):
        matchers.begin(number, grammar, [], [END])
        so_far = ""
        while True:
            mask = matchers.allowed(number)
            assert mask.shape == (PADDED,) and not mask[TOKENIZER.vocab_size :].any()
            for token, text in texts.items():
                if token in TOKENIZER.special_ids or "\ufffd" in text or not text:
                    continue
                exact = branches(so_far)
                assert mask[token] <= may_begin(so_far + text), (so_far, text)
                assert not exact or mask[token] == may_begin(so_far + text), (so_far, text)
            assert mask[END] == (so_far in WORDS)
            whole = [i for i in np.flatnonzero(mask) if i == END or "\ufffd" not in texts[i]]
            if not whole:
                break  # only parts of a character lead on
            token = int(rng.choice(whole))
            matchers.accept(number, token)
            if token == END:
                assert so_far in WORDS
                ended.add(so_far)
                assert np.flatnonzero(matchers.allowed(number)).tolist() == [END]
                break
            so_far += texts[token]
    assert len(ended) >= 4


def test_a_sequence_that_is_sent_again_goes_on(matchers: Matchers) -> None:
    grammar = compile_grammar(StructuredOutputsParams(regex=r"[a-z]{3}-[0-9]{4}"))
    matchers.begin(0, grammar, [], [END])
    tokens: list[int] = []
    while not TOKENIZER.decode(tokens).count("-"):
        tokens.append(int(np.flatnonzero(matchers.allowed(0))[-1]))
        matchers.accept(0, tokens[-1])
    matchers.begin(1, grammar, tokens, [END])
    np.testing.assert_array_equal(matchers.allowed(0), matchers.allowed(1))
    allowed = [TOKENIZER.text_of(int(i)) for i in np.flatnonzero(matchers.allowed(1))]
    assert allowed and all(re.fullmatch("[0-9]{1,4}", text) for text in allowed)
    matchers.end(0)
    assert 0 not in matchers and 1 in matchers


def test_a_text_that_breaks_the_grammar_ends(matchers: Matchers) -> None:
    grammar = compile_grammar(StructuredOutputsParams(choice=["yes"]))
    matchers.begin(0, grammar, TOKENIZER.encode("no", add_special_tokens=False), [END])
    assert np.flatnonzero(matchers.allowed(0)).tolist() == [END]
