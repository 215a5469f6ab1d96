"""`LLM`: prompts and their order, what can go wrong, what outputs hold."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import LLM, EngineArgs, LLMEngine, SamplingParams, VLLMValidationError
from vllm.engine.output import RequestRejectedError

from .offline import FEW, TEXTS, run, tokens

# ---- prompts and their order --------------------------------------------------------------------


def test_prompt_forms_give_the_same(llm: LLM) -> None:
    text = TEXTS[0]
    (first,) = run(llm, text)
    ids = first.prompt_token_ids
    assert (first.prompt, first.finished, len(first.outputs)) == (text, True, 1)
    assert first.outputs[0].finish_reason == "length"
    for form in (
        [text],
        ids,
        [ids],
        {"prompt": text},
        {"prompt_token_ids": ids},
        [{"prompt_token_ids": ids, "cache_salt": "x"}],
    ):
        (other,) = run(llm, form)
        assert other.prompt_token_ids == ids
        assert tokens([other]) == tokens([first])


def test_outputs_come_in_the_prompts_order(llm: LLM) -> None:
    prompts = [TEXTS[i % 4] for i in range(20)]  # more than run at once
    lengths = [1 + (i * 7) % 5 for i in range(20)]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    outputs = run(llm, prompts, params)
    assert [o.prompt for o in outputs] == prompts
    assert [len(t) for t in tokens(outputs)] == lengths
    longest = params[lengths.index(5)]
    alone = {text: tokens(run(llm, text, longest))[0] for text in TEXTS}
    for output in outputs:
        got = output.outputs[0].token_ids
        assert got == alone[output.prompt][: len(got)]
    ids = [int(o.request_id) for o in outputs]
    assert ids == sorted(ids)


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    assert run(llm, []) == []


def test_lists_must_match(llm: LLM) -> None:
    for more in ({"params": [FEW]}, {"params": [FEW] * 3}):
        with pytest.raises(VLLMValidationError) as caught:
            run(llm, TEXTS[:2], **more)
        assert caught.value.parameter == "sampling_params"
    with pytest.raises(VLLMValidationError) as caught:
        run(llm, TEXTS[:2], priority=[0])
    assert caught.value.parameter == "priority"
    run(llm, TEXTS[:2], priority=[0, 0])


def test_given_parameters_are_not_changed(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2)
    before = params.clone()
    run(llm, TEXTS, params)
    assert params == before


# ---- what can go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ([], "decoder prompt cannot be empty"),
        ([10**6], "out of vocabulary"),
        ([1] * 128, "maximum context length is 128 tokens"),
        ({"prompt": "a", "extra": 1}, "cannot hold extra"),
        (None, "not NoneType"),
        ("\ud800", "Unicode"),
    ],
)
def test_a_bad_prompt_in_a_batch_refuses_all_of_it(llm: LLM, bad: Any, told: str) -> None:
    with pytest.raises(VLLMValidationError, match=told):
        run(llm, [TEXTS[0], bad, TEXTS[1]])
    assert len(run(llm, TEXTS)) == 4


class Broken:
    """An executor that fails at its n-th step, before or after it has done it."""

    def __init__(self, inner: Any, error: BaseException, at: int, after: bool) -> None:
        self.inner, self.error, self.at, self.after = inner, error, at, after

    def execute(self, plan: Any) -> Any:
        self.at -= 1
        if self.at == 0 and not self.after:
            raise self.error
        result = self.inner.execute(plan)
        if self.at == 0:
            raise self.error
        return result


def interrupt(llm: LLM, error: BaseException, at: int, after: bool) -> None:
    core = llm.llm_engine.core
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core, "executor", Broken(core.executor, error, at, after))
        with pytest.raises(type(error)):
            run(llm, TEXTS * 3)
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")], ids=repr)
def test_an_interrupted_run_leaves_the_engine_usable(
    llm: LLM, error: BaseException, at: int
) -> None:
    before = tokens(run(llm, TEXTS))
    for _ in range(4):
        interrupt(llm, error, at, after=True)
        assert tokens(run(llm, TEXTS)) == before


def test_an_interrupt_before_the_workers_saw_the_plan() -> None:
    llm = LLM(max_model_len=128, max_num_seqs=4, num_gpu_blocks_override=100)
    before = tokens(run(llm, TEXTS))
    for at in (1, 2, 3):
        interrupt(llm, KeyboardInterrupt(), at, after=False)
        assert tokens(run(llm, TEXTS)) == before


def test_a_full_queue_refuses_and_is_usable_again() -> None:
    llm = LLM(max_model_len=64, max_num_seqs=1, num_gpu_blocks_override=20, max_num_queued_reqs=2)
    with pytest.raises(RequestRejectedError, match="max_num_queued_reqs"):
        run(llm, TEXTS)
    assert not llm.llm_engine.has_unfinished_requests()
    assert len(run(llm, TEXTS[:2])) == 2
    llm.shutdown()


def test_one_that_is_refused_does_not_cost_others_their_outputs() -> None:
    args = EngineArgs(max_model_len=64, num_gpu_blocks_override=20, max_num_queued_reqs=2)
    engine = LLMEngine.from_engine_args(args)
    for i in range(4):
        engine.add_request(str(i), TEXTS[i], SamplingParams(max_tokens=1))
    refused, done = [], []
    while engine.has_unfinished_requests():
        try:
            done += [output.request_id for output in engine.step() if output.finished]
        except RequestRejectedError as error:
            refused.append(error.request_id)
    assert (sorted(done), sorted(refused)) == (["0", "1"], ["2", "3"])
    engine.add_request("same", TEXTS[0], FEW)
    with pytest.raises(ValueError, match="running already"):
        engine.add_request("same", TEXTS[0], FEW)
    engine.abort_request("same")
    assert not engine.has_unfinished_requests()
    assert engine.step() == []


def test_outputs_are_the_users_own() -> None:
    """Whoever changes the prompt of an output does not change what is computed of it."""
    engine = LLMEngine.from_engine_args(EngineArgs(max_model_len=64, num_gpu_blocks_override=20))
    said = []
    for meddles in (False, True):
        engine.add_request("r", list(range(10, 30)), FEW)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if meddles:
                    output.prompt_token_ids.append(7)
            engine.core.scheduler.requeue()  # all that is known is given to the workers again
        said.append(output.outputs[0].token_ids)
    assert said[0] == said[1]


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(TypeError):
        LLM(no_such_argument=1)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        LLM("/nowhere/at/all")
    with pytest.raises(ValueError, match="dtype"):
        LLM(dtype="int8")


# ---- outputs ------------------------------------------------------------------------------------


def test_several_outputs(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=2.0, seed=5, max_tokens=6, ignore_eos=True)
    for prompt in ("a", "The code is 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9"):
        (output,) = run(llm, prompt, params)
        assert [o.index for o in output.outputs] == [0, 1, 2]
        assert [len(o.token_ids) for o in output.outputs] == [6, 6, 6]
        assert len({tuple(o.token_ids) for o in output.outputs}) > 1
        (again,) = run(llm, prompt, params)
        assert [o.token_ids for o in again.outputs] == [o.token_ids for o in output.outputs]


def test_a_seed_gives_the_same_in_any_company(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=8, top_p=0.95, ignore_eos=True)
    alone = tokens(run(llm, TEXTS[0], params))
    others = [SamplingParams(temperature=1.0, max_tokens=8, top_k=3) for _ in range(3)]
    assert tokens(run(llm, TEXTS, [params, *others]))[:1] == alone


def test_logprobs(llm: LLM) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=3, logprobs=4, prompt_logprobs=2, ignore_eos=True
    )
    (output,) = run(llm, TEXTS[1], params)
    made = output.outputs[0]
    assert made.logprobs is not None
    assert len(made.logprobs) == 3
    total = 0.0
    for token, position in zip(made.token_ids, made.logprobs, strict=True):
        assert next(iter(position)) == token
        assert 4 <= len(position) <= 5
        assert position[token].rank == 1
        assert sorted(p.rank for p in position.values()) == list(range(1, len(position) + 1))
        assert all(p.logprob <= 0 and p.decoded_token is not None for p in position.values())
        total += position[token].logprob
    assert made.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    for token, told in zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True):
        assert told is not None
        assert next(iter(told)) == token
        assert 2 <= len(told) <= 3


@pytest.mark.parametrize("n", [1, 3])
def test_prompt_logprobs_are_whole_whatever_is_cached(llm: LLM, n: int) -> None:
    prompt = " ".join(TEXTS)
    run(llm, prompt)
    params = SamplingParams(n=n, prompt_logprobs=0, max_tokens=2, logprobs=0)
    (output,) = run(llm, prompt, params)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert [next(iter(p)) for p in output.prompt_logprobs[1:]] == output.prompt_token_ids[1:]
    assert output.num_cached_tokens == 0


def test_the_whole_vocabulary_may_be_asked_for() -> None:
    llm = LLM(max_model_len=64, num_gpu_blocks_override=20, max_logprobs=-1)
    size = llm.llm_engine.config.model.vocab_size
    for asked in (-1, size + 1000):
        params = SamplingParams(max_tokens=1, logprobs=asked, prompt_logprobs=asked)
        (output,) = run(llm, [1, 2], params)
        assert len(output.outputs[0].logprobs[0]) == size
        assert len(output.prompt_logprobs[1]) == size
    llm.shutdown()


def test_reasons_to_end(llm: LLM) -> None:
    (plain,) = run(llm, TEXTS[1])
    ids = plain.outputs[0].token_ids

    def ended(**given: Any) -> tuple[str | None, int | str | None, int]:
        params = SamplingParams(temperature=0, max_tokens=4, **given)
        made = run(llm, TEXTS[1], params)[0].outputs[0]
        return made.finish_reason, made.stop_reason, len(made.token_ids)

    assert ended(ignore_eos=True) == ("length", None, 4)
    at = ids.index(ids[2]) + 1
    assert ended(ignore_eos=True, stop_token_ids=[ids[2]]) == ("stop", ids[2], at)
    # Everything is barred but the end of the text, which needs no reason.
    eos = llm.llm_engine.config.model.eos_token_ids[0]
    assert ended(allowed_token_ids=[eos]) == ("stop", None, 1)
    assert ended(allowed_token_ids=[eos], min_tokens=3)[0:3:2] == ("stop", 3)


def test_a_stop_string_ends_the_text(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    text = run(llm, TEXTS[1], params)[0].outputs[0].text
    stop = text[2:5]
    cut = params.clone()
    cut.stop = [stop]
    made = run(llm, TEXTS[1], cut)[0].outputs[0]
    assert (made.finish_reason, made.stop_reason) == ("stop", stop)
    assert made.text == text[: text.index(stop)]
    cut.include_stop_str_in_output = True
    assert run(llm, TEXTS[1], cut)[0].outputs[0].text == text[: text.index(stop)] + stop


def test_bad_words_do_not_come(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    (plain,) = run(llm, TEXTS[1], params)
    tokenizer = llm.llm_engine.tokenizer
    word = tokenizer.text_of(plain.outputs[0].token_ids[0])
    params.bad_words = [word]
    assert word not in run(llm, TEXTS[1], params)[0].outputs[0].text


def test_times_are_in_order(llm: LLM) -> None:
    for output in run(llm, TEXTS):
        stats = output.metrics
        times = [
            stats.arrival_time,
            stats.queued_ts,
            stats.scheduled_ts,
            stats.first_token_ts,
            stats.last_token_ts,
        ]
        assert times == sorted(times)
        assert times[0] > 0
        assert stats.num_generation_tokens == 4


def test_cached_tokens_are_told_and_can_be_forgotten(llm: LLM) -> None:
    block = llm.llm_engine.config.cache.block_size
    ids = [(7 * i) % 50 + 6 for i in range(3 * block + 1)]
    assert llm.reset_prefix_cache() is True
    assert run(llm, ids)[0].num_cached_tokens == 0
    assert run(llm, ids)[0].num_cached_tokens == 3 * block
    salted = {"prompt_token_ids": ids, "cache_salt": "other"}
    assert run(llm, salted)[0].num_cached_tokens == 0
    assert llm.reset_prefix_cache() is True
    assert run(llm, ids)[0].num_cached_tokens == 0


def test_default_parameters_come_from_the_model() -> None:
    args = EngineArgs(
        max_model_len=64,
        num_gpu_blocks_override=20,
        override_generation_config={"temperature": 0.25, "top_k": 7, "max_new_tokens": 3},
    )
    llm = LLM.from_engine_args(args)
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_k, params.max_tokens) == (0.25, 7, 3)
    assert len(run(llm, "a", None)[0].outputs[0].token_ids) <= 3
    params.top_k = 1
    assert llm.get_default_sampling_params().top_k == 7
    llm.shutdown()


def test_without_a_tokenizer() -> None:
    llm = LLM(max_model_len=64, num_gpu_blocks_override=20, skip_tokenizer_init=True)
    (output,) = run(llm, [1, 2, 3])
    assert output.outputs[0].text == ""
    assert len(output.outputs[0].token_ids) == 4
    with pytest.raises(VLLMValidationError, match="no tokenizer"):
        run(llm, "text")
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        llm.chat([{"role": "user", "content": "a"}], FEW)
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        llm.get_tokenizer()
    llm.shutdown()


def test_what_a_batch_tells_the_cache(llm: LLM) -> None:
    """Keywords are for all prompts; a prompt's own words win."""
    ids = list(range(50, 90))
    run(llm, ids, session_id="all", cache_control={"type": "ephemeral"})
    run(llm, [{"prompt_token_ids": ids[:20], "session_id": "own"}], session_id="all")
    assert llm.cache_session("all", "pin", ttl=60) == 2
    assert llm.cache_session("own", "release") == 1
    for told, named in (
        ({"kv_retention": {"priority": 101}}, "kv_retention.0.priority"),
        ({"cache_control": {"type": "x"}}, "cache_control"),
        ({"session_id": "x" * 200}, "session_id"),
    ):
        with pytest.raises(VLLMValidationError) as caught:
            run(llm, ids, **told)
        assert caught.value.parameter == named
    with pytest.raises(VLLMValidationError, match="verb"):
        llm.cache_session("all", "burn")


def test_the_bar_is_shown_only_on_request(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    run(llm, TEXTS)
    assert capsys.readouterr().err == ""
    llm.generate(TEXTS, FEW)
    assert "Generating" in capsys.readouterr().err
