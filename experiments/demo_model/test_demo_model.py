"""Checks of the recipe and of the shipped checkpoint; no training, a few seconds."""

import itertools
import random
import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from experiments.demo_model import chat, data, words
from experiments.demo_model.encode import Encoder
from experiments.demo_model.export import LOSSLESS
from experiments.demo_model.model import BlockedCausalAttention
from experiments.demo_model.sample_prompts import KINDS, count_tokens, recall_task
from experiments.demo_model.tokenizer import BOS_ID, END_ID, ROLE_IDS, build_tokenizer

SHIPPED = Path(__file__).parents[2] / "vllm" / "demo_model"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def any_text(rng: random.Random) -> str:
    blocks = (
        (32, 127),
        (0, 32),
        (160, 0x250),
        (0x400, 0x460),
        (0x4E00, 0x4E50),
        (0x1F600, 0x1F640),
    )
    letters = []
    for _ in range(rng.randint(0, 40)):
        low, high = rng.choices(blocks, (8, 1, 2, 1, 1, 1))[0]
        letters.append(chr(rng.randrange(low, high)))
    return "".join(letters)


def test_any_text_comes_back(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for text in [*LOSSLESS, *(any_text(rng) for _ in range(2000))]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_shipped_tokenizer_is_this_one(tokenizer: Tokenizer) -> None:
    shipped = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert shipped.get_vocab() == tokenizer.get_vocab()
    for load in (AutoTokenizer, PreTrainedTokenizerFast):
        fast = load.from_pretrained(SHIPPED)
        for text in LOSSLESS:
            ids = fast(text, add_special_tokens=False).input_ids
            assert ids == tokenizer.encode(text, add_special_tokens=False).ids
            assert fast.decode(ids) == text


def test_template_renders_what_training_saw(tokenizer: Tokenizer) -> None:
    fast = AutoTokenizer.from_pretrained(SHIPPED)
    messages = [
        {"role": "system", "content": "Answer the user."},
        {"role": "user", "content": " The color of amber-fox is gray. \n"},
        {"role": "assistant", "content": "OK."},
        {"role": "user", "content": "What is the color of amber-fox?"},
    ]
    text = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = [BOS_ID]
    for message in messages:
        content = tokenizer.encode(message["content"].strip(), add_special_tokens=False).ids
        expected += [ROLE_IDS[message["role"]], *content, END_ID]
    expected.append(ROLE_IDS["assistant"])
    assert fast(text, add_special_tokens=False).input_ids == expected


def test_a_word_is_one_token_in_fact_and_answer(tokenizer: Tokenizer) -> None:
    fact = tokenizer.encode("The color of amber-fox is gray.", add_special_tokens=False).ids
    answer = tokenizer.encode("gray.", add_special_tokens=False).ids
    assert fact[-2:] == answer
    for word in words.NAMES + words.COLORS + words.CITIES:
        assert len(tokenizer.encode(word, add_special_tokens=False).ids) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_recall_tasks_fill_the_prompt_and_hold_the_answer(kind: str) -> None:
    rng = random.Random(kind)
    for tokens in (256, 1024):
        messages, answer = recall_task(rng, tokens, tokens // 32, kind)
        assert tokens - 40 < count_tokens(messages) <= tokens
        before = " ".join(message["content"] for message in messages)
        assert answer.rstrip(".") in before


def test_recall_task_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        recall_task(random.Random(0), tokens=64, facts=20)


def test_held_out_lines_are_not_trained_on() -> None:
    def bare(text: str) -> str:
        return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())

    openers, closers = ["", *chat.OPENERS], ["", *chat.CLOSERS]
    trained = {
        bare(f"{opener} {line} {closer}")
        for intent in chat.INTENTS
        for opener, line, closer in itertools.product(openers, intent.train, closers)
    }
    for intent in chat.INTENTS:
        assert not trained & {bare(line) for line in intent.held_out}


def test_weights_mark_the_first_digit_of_an_answer() -> None:
    encoder = Encoder()
    ids, weights = encoder.conversation(random.Random(1), 64, 1, data.PLAIN)
    assert len(ids) == len(weights) == 64
    for index, weight in enumerate(weights):
        assert (weight == 0) or ids[index] != ROLE_IDS["user"]
    assert any(weight == 1.0 for weight in weights)


@pytest.mark.parametrize("tokens", [64, 256, 512])
def test_blocked_attention_equals_torchs(tokens: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, tokens, 16, requires_grad=True) for _ in range(3)]
    wanted = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
    found = BlockedCausalAttention.apply(*inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(x.square().sum(), inputs) for x in (found, wanted)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
