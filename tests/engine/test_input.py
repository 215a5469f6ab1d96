"""From prompts to requests: every form that is taken, and what each refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.made_tokenizers import EOS, TURN, folder
from vllm.config import EngineArgs
from vllm.core.compression import CompressionParams
from vllm.core.errors import VLLMValidationError
from vllm.engine.input import InputProcessor
from vllm.engine.tokenizer import Tokenizer
from vllm.sampling_params import SamplingParams

MAX_LEN = 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(folder(tmp_path_factory.mktemp("input"), "byte_level"))


def processor(tokenizer: Tokenizer | None, vocab: int = 0, **given: Any) -> InputProcessor:
    size = vocab or (tokenizer.vocab_size if tokenizer else 100)
    overrides = {"vocab_size": size, "eos_token_id": 5} | given.pop("hf_overrides", {})
    args = EngineArgs(hf_overrides=overrides, generation_config="vllm", **given)
    override = args.override_generation_config or {}
    args.override_generation_config = {"eos_token_id": overrides["eos_token_id"]} | override
    return InputProcessor(args.create_engine_config(), tokenizer, MAX_LEN)


def refused(make: Any, *args: Any, **given: Any) -> VLLMValidationError:
    with pytest.raises(VLLMValidationError) as caught:
        make("id", *args, **given)
    return caught.value


# ---- prompts ----------------------------------------------------------------------------------


def test_prompt_forms(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    text = "Hello world"
    ids = tokenizer.encode(text)
    forms: list[tuple[Any, str | None, str | None]] = [
        (text, text, None),
        (ids, None, None),
        (tuple(ids), None, None),
        ({"prompt": text}, text, None),
        ({"prompt": ids}, None, None),
        ({"prompt_token_ids": ids}, None, None),
        ({"prompt_token_ids": ids, "prompt": "shown"}, "shown", None),
        ({"prompt": text, "prompt_token_ids": None}, text, None),
        ({"prompt": text, "cache_salt": "s"}, text, "s"),
        ({"prompt_token_ids": ids, "cache_salt": None}, None, None),
    ]
    for prompt, shown, salt in forms:
        request, told = make("id", prompt, SamplingParams())
        assert request.prompt_token_ids == ids
        assert (told, request.cache_salt) == (shown, salt)
    assert ids[0] == tokenizer._rust.token_to_id("<s>")  # text gets its special tokens


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ([], "decoder prompt cannot be empty"),
        ({"prompt_token_ids": []}, "decoder prompt cannot be empty"),
        ({}, "needs prompt or prompt_token_ids"),
        ({"prompt": None}, "needs prompt or prompt_token_ids"),
        ({"prompt": "a", "multi_modal_data": 1}, "cannot hold multi_modal_data"),
        (None, "not NoneType"),
        (5, "not int"),
        (b"bytes", "not bytes"),
        ({"prompt": 5}, "not int"),
        ({"prompt_token_ids": "text"}, "not str"),
        ([1, "a"], "must be integers"),
        ([1.0], "must be integers"),
        ([True], "must be integers"),
        ([[1]], "must be integers"),
        ([-1], "token id -1 is out of vocabulary"),
        ([1, 10**6], "token id 1000000 is out of vocabulary"),
        ([2**70], "out of vocabulary"),
        ([1] * MAX_LEN, "maximum context length is 32 tokens"),
        ([1] * 10_000, "maximum context length is 32 tokens"),
        ("word " * 1000, "maximum context length is 32 tokens"),
        ("lone \ud800", "not valid Unicode"),
    ],
)
def test_bad_prompts_are_refused(tokenizer: Tokenizer, prompt: Any, told: str) -> None:
    error = refused(processor(tokenizer).make, prompt, SamplingParams())
    assert told in error.message
    assert error.parameter == "prompt"
    assert len(str(error)) < 400


def test_empty_text_is_empty_without_special_tokens(tmp_path: Path) -> None:
    bare = Tokenizer(folder(tmp_path, "word_level"))
    assert "cannot be empty" in str(refused(processor(bare).make, "", SamplingParams()))


def test_the_longest_prompt_leaves_one_token(tokenizer: Tokenizer) -> None:
    request, _ = processor(tokenizer).make("id", [1] * (MAX_LEN - 1), SamplingParams())
    assert request.max_tokens == 1


def test_max_tokens_is_cut_to_what_is_left(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    for asked, left in ((None, 22), (5, 5), (22, 22), (1000, 22)):
        request, _ = make("id", [1] * 10, SamplingParams(max_tokens=asked))
        assert request.max_tokens == left


def test_a_padded_vocabulary_counts_as_the_models(tokenizer: Tokenizer) -> None:
    wide = processor(tokenizer, vocab=tokenizer.vocab_size + 10).make
    wide("id", [tokenizer.vocab_size + 9], SamplingParams())
    assert "out of vocabulary" in str(refused(wide, [tokenizer.vocab_size + 10], SamplingParams()))
    narrow = processor(tokenizer, vocab=20).make
    assert "out of vocabulary" in str(refused(narrow, "Hello world", SamplingParams()))


# ---- what comes with them ---------------------------------------------------------------------


@pytest.mark.parametrize("salt", ["", "a@b", "a/b", "a\\b", "a\0b", "x" * 129, 5, "\ud800"])
def test_bad_salts_are_refused(tokenizer: Tokenizer, salt: Any) -> None:
    make = processor(tokenizer).make
    assert refused(make, [1], SamplingParams(), cache_salt=salt).parameter == "cache_salt"
    prompt = {"prompt_token_ids": [1], "cache_salt": salt}
    assert refused(make, prompt, SamplingParams()).parameter == "cache_salt"


def test_a_salt_beside_the_prompt_beats_the_prompts(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    prompt = {"prompt_token_ids": [1], "cache_salt": "theirs"}
    assert make("id", prompt, SamplingParams(), cache_salt="mine")[0].cache_salt == "mine"
    assert make("id", [1], SamplingParams(), cache_salt="x" * 128)[0].cache_salt == "x" * 128


def test_priorities_need_their_policy(tokenizer: Tokenizer) -> None:
    plain = processor(tokenizer).make
    assert plain("id", [1], SamplingParams(), priority=0)[0].priority == 0
    error = refused(plain, [1], SamplingParams(), priority=1)
    assert (error.parameter, "--scheduling-policy priority" in str(error)) == ("priority", True)
    sorted_ = processor(tokenizer, scheduling_policy="priority").make
    assert sorted_("id", [1], SamplingParams(), priority=-3)[0].priority == -3
    for bad in (2**63, -(2**63) - 1, "high", 1.5, None):
        assert refused(sorted_, [1], SamplingParams(), priority=bad).parameter == "priority"


def test_ends_of_text_are_the_configs_and_the_tokenizers(tokenizer: Tokenizer) -> None:
    end = tokenizer._rust.token_to_id(EOS)
    assert processor(tokenizer).make("id", [1], SamplingParams())[0].eos_token_ids == [5, end]
    assert processor(None).make("id", [1], SamplingParams())[0].eos_token_ids == [5]
    # Ids that the model cannot give would be read past the end of its logits.
    odd = processor(tokenizer, hf_overrides={"eos_token_id": [10**6, -1, end]})
    assert odd.make("id", [1], SamplingParams())[0].eos_token_ids == [end]


def test_reference_tokens_must_fit(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    forced = SamplingParams(reference_token_ids=[5] * (MAX_LEN - 4), max_tokens=1)
    assert make("id", [1] * 4, forced)[0].max_tokens == MAX_LEN - 4
    assert refused(make, [1] * 5, forced).parameter == "reference_token_ids"


def test_wishes_for_compression_become_the_requests(tokenizer: Tokenizer) -> None:
    asked = SamplingParams(target_compression_rate=0.5, sinks=4)
    make = processor(tokenizer, enable_kvc=True).make
    request = make("id", [1] * 4, asked)[0]
    assert request.compression == CompressionParams(target_compression_rate=0.5, sinks=4)
    assert make("id", [1] * 4, SamplingParams())[0].compression is None
    assert refused(make, [1], SamplingParams(max_cache_tokens=32)).parameter == "max_cache_tokens"
    assert refused(processor(tokenizer).make, [1], asked).parameter == "target_compression_rate"


def test_bad_words_are_tokenised_with_and_without_a_space(tokenizer: Tokenizer) -> None:
    params = SamplingParams(bad_words=["Hello", " world", "\n", "Hello"])
    words = processor(tokenizer).make("id", [1], params)[0].bad_words_token_ids
    plain = [tokenizer.encode(t, add_special_tokens=False) for t in ("Hello", "world", "\n")]
    spaced = [tokenizer.encode(t, add_special_tokens=False) for t in (" Hello", " world", " \n")]
    assert sorted(words) == sorted(plain + spaced)
    space = processor(tokenizer).make("id", [1], SamplingParams(bad_words=[" "]))[0]
    assert space.bad_words_token_ids == [tokenizer.encode(" ", add_special_tokens=False)]


def test_bad_words_in_a_vocabulary_that_begins_texts_with_a_space(tmp_path: Path) -> None:
    spaces = Tokenizer(folder(tmp_path, "metaspace"))
    begin = spaces.encode("H", add_special_tokens=False)
    assert spaces.token(begin[0])[0] == "▁"
    inside = spaces._rust.token_to_id("H")
    found = processor(spaces).make("id", [1], SamplingParams(bad_words=["H"]))[0]
    assert begin in found.bad_words_token_ids
    assert [inside] in found.bad_words_token_ids


def test_bad_words_that_the_model_cannot_say_are_left_out(tokenizer: Tokenizer) -> None:
    narrow = processor(tokenizer, vocab=10)
    params = SamplingParams(bad_words=["Hello world", TURN])
    turn = tokenizer._rust.token_to_id(TURN)
    assert narrow.make("id", [1], params)[0].bad_words_token_ids == [[turn]]


def test_without_a_tokenizer_text_is_refused() -> None:
    make = processor(None).make
    make("id", [1, 2], SamplingParams())
    assert refused(make, "text", SamplingParams()).parameter == "prompt"
    assert refused(make, [1], SamplingParams(stop="a")).parameter == "stop"
    assert refused(make, [1], SamplingParams(bad_words=["a"])).parameter == "bad_words"


def test_parameters_are_checked_against_the_model(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    size = tokenizer.vocab_size
    for given in (
        {"stop_token_ids": [size]},
        {"allowed_token_ids": [size]},
        {"logit_bias": {size: 1.0}},
        {"logprobs": 21},
        {"prompt_logprobs": -1},
    ):
        assert refused(make, [1], SamplingParams(**given)).parameter == next(iter(given))
    processor(tokenizer, max_logprobs=-1).make("id", [1], SamplingParams(logprobs=-1))


def test_the_request_has_parameters_of_its_own_checked_again(tokenizer: Tokenizer) -> None:
    make = processor(tokenizer).make
    params = SamplingParams()
    request, _ = make("id", [1], params)
    params.temperature = 0.5
    assert request.params.temperature == 1.0
    params.top_p = 7.0
    assert refused(make, [1], params).parameter == "top_p"
