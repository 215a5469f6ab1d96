"""`LLM` on the demo model: what users give and get. Nothing here knows what the model says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm import LLM, EngineArgs, LLMEngine, SamplingParams, VLLMValidationError
from vllm.engine.output import RequestRejectedError
from vllm.outputs import RequestOutput

FEW = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
TEXTS = ["The code is", "Count with me: 1 2 3", "What is the capital?", "Once more"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    llm = LLM(max_model_len=128, max_num_seqs=8, num_gpu_blocks_override=200, kernels="reference")
    yield llm
    llm.shutdown()


@pytest.fixture(autouse=True)
def left_clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the engine with no request and no held block."""
    yield
    if "llm" in request.fixturenames:
        engine = request.getfixturevalue("llm").llm_engine
        assert not engine.has_unfinished_requests()
        engine.core.check()
        assert engine.core.scheduler.kv.usage == 0


def run(llm: LLM, prompts: Any, params: Any = FEW, **more: Any) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False, **more)


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [o.outputs[0].token_ids for o in outputs]


# ---- prompts and their order ------------------------------------------------------------------


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


# ---- what can go wrong ------------------------------------------------------------------------


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


def test_arguments_that_cannot_work() -> None:
    with pytest.raises(TypeError):
        LLM(no_such_argument=1)
    with pytest.raises(ValueError, match="neither a folder nor a hub id"):
        LLM("/nowhere/at/all")
    with pytest.raises(ValueError, match="dtype"):
        LLM(dtype="int8")


# ---- outputs ----------------------------------------------------------------------------------


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


# ---- sleep, profiles, calls ---------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_sleep_gives_memory_back_and_changes_no_answer(level: int) -> None:
    llm = LLM(max_model_len=2048, num_gpu_blocks_override=2000, kernels="reference")
    worker = llm.llm_engine.core.executor
    expected = tokens(run(llm, TEXTS))
    worker.model_runner.kv.fill_(0.5)  # as if it had been full once
    before = resident()
    llm.sleep(level)
    with pytest.raises(RuntimeError, match="wake_up"):
        run(llm, TEXTS)
    saved, usage = before - resident(), llm.llm_engine.core.executor.memory_usage()
    arena = usage["kv_cache"]
    assert arena > 30 << 20
    assert saved > 0.9 * arena if level else saved < 0.1 * arena
    assert (usage["weights"] == 0) is (level == 2)
    if level == 2:
        with pytest.raises(RuntimeError, match="asleep"):
            llm.collective_rpc("check_health")
    assert llm.wake_up(["kv_cache"]) is False
    assert llm.wake_up() is True
    assert llm.collective_rpc("check_health") == [True]
    assert tokens(run(llm, TEXTS)) == expected
    llm.shutdown()


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
def test_what_becomes_of_queued_prompts(llm: LLM, mode: str) -> None:
    expected = tokens(run(llm, TEXTS))
    llm.enqueue(TEXTS, FEW)
    llm.llm_engine.step()
    llm.sleep(1, mode)
    llm.wake_up()
    done = llm.wait_for_completion(use_tqdm=False)
    assert tokens(done) == ([] if mode == "abort" else expected)
    assert all(output.outputs[0].finish_reason == "length" for output in done)


def test_sleeping_twice_and_waking_in_parts(llm: LLM) -> None:
    core = llm.llm_engine.core
    llm.sleep(1)
    llm.sleep(2)
    assert llm.wake_up(["scheduling"]) is False, "memory first"
    assert llm.wake_up(["weights"]) is False
    llm.sleep(0)
    assert core.is_sleeping()
    assert llm.wake_up(["kv_cache"]) is True
    assert not core.is_sleeping()
    assert run(llm, TEXTS[0])[0].finished
    for call in (lambda: llm.sleep(3), lambda: llm.wake_up(["all"])):
        with pytest.raises(VLLMValidationError):
            call()
    with pytest.raises(VLLMValidationError, match="mode"):
        llm.sleep(1, "at once")
    assert not core.is_sleeping()


def test_a_reset_while_requests_run(llm: LLM) -> None:
    long = [[(i * k) % 50 + 6 for i in range(60)] for k in (3, 7)]
    expected = tokens(run(llm, long))
    llm.enqueue(long, FEW)
    llm.llm_engine.step()
    assert llm.reset_prefix_cache() is False
    assert llm.reset_prefix_cache(reset_running_requests=True) is True
    assert tokens(llm.wait_for_completion(use_tqdm=False)) == expected


def test_a_profile_is_a_trace(tmp_path: Path) -> None:
    config = {"torch_profiler_dir": str(tmp_path), "max_iterations": 3}
    llm = LLM(max_model_len=64, num_gpu_blocks_override=20, profiler_config=config)
    assert llm.start_profile() == str(tmp_path)
    with pytest.raises(VLLMValidationError, match="already"):
        llm.start_profile()
    run(llm, TEXTS[0], SamplingParams(max_tokens=8, ignore_eos=True))
    path = Path(llm.stop_profile())
    assert path.parent == tmp_path
    names = {event.get("name") for event in json.loads(path.read_text())["traceEvents"]}
    assert any(str(name).startswith("aten::") for name in names)
    with pytest.raises(VLLMValidationError, match="no profile"):
        llm.stop_profile()
    llm.shutdown()


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"torch_profiler_dir": "x", "depth": 3}, "depth"),
        ({"torch_profiler_dir": "x", "max_iterations": 0}, "max_iterations"),
        ({"torch_profiler_dir": "x", "torch_profiler_with_stack": 1}, "with_stack"),
        ({"max_iterations": 3}, "torch_profiler_dir"),
        ({"profiler": "cuda", "torch_profiler_dir": "x"}, "profiler"),
    ],
)
def test_profiler_configurations_that_cannot_work(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        EngineArgs(profiler_config=config).create_engine_config()


def test_calls_to_workers(llm: LLM) -> None:
    [usage] = llm.collective_rpc("memory_usage")
    assert usage["weights"] == sum(llm.apply_model(lambda m: sum(p.nbytes for p in m.parameters())))
    assert llm.collective_rpc(lambda worker, a, b: (a, b), args=(1,), kwargs={"b": 2}) == [(1, 2)]
    [table] = llm.collective_rpc("kernel_table")
    assert set(table.values()) == {"reference"}
    for name in ("execute", "shutdown", "__init__", "no such thing"):
        with pytest.raises(VLLMValidationError, match="check_health"):
            llm.collective_rpc(name)
    with pytest.raises(VLLMValidationError, match="no arguments"):
        llm.collective_rpc("check_health", args=(1,))
    with pytest.raises(VLLMValidationError, match="VLLM_TORCH_PROFILER_DIR"):
        llm.start_profile()


# ---- chat -------------------------------------------------------------------------------------

CHAT = [{"role": "user", "content": "What is the code?"}]


def test_chat_is_generate_on_the_rendered_text(llm: LLM) -> None:
    (one,) = llm.chat(CHAT, FEW, use_tqdm=False)
    text = llm.llm_engine.tokenizer.render_chat(CHAT)
    assert one.prompt == text
    same = llm.get_tokenizer().apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert text == same
    ids = llm.llm_engine.tokenizer.encode(text, add_special_tokens=False)
    assert one.prompt_token_ids == ids
    assert tokens([one]) == tokens(run(llm, ids))


def test_several_conversations(llm: LLM) -> None:
    other = [*CHAT, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "Why?"}]
    outputs = llm.chat([CHAT, other], [FEW, FEW], use_tqdm=False)
    assert [o.prompt for o in outputs] == [
        llm.llm_engine.tokenizer.render_chat(c) for c in (CHAT, other)
    ]


def test_chat_options(llm: LLM) -> None:
    def prompt(messages: Any, **given: Any) -> str | None:
        return llm.chat(messages, FEW, use_tqdm=False, **given)[0].prompt

    template = "{{ messages[0].content }}{{ tools | tojson if tools }}{{ flavour }}"
    given = {
        "chat_template": template,
        "tools": [{"a": 1}],
        "chat_template_kwargs": {"flavour": "!"},
    }
    assert prompt(CHAT, **given) == 'What is the code?[{"a": 1}]!'
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "the code?"}]
    assert (
        prompt([{"role": "user", "content": parts}], chat_template=template) == "What is\nthe code?"
    )
    last = [*CHAT, {"role": "assistant", "content": "The code is"}]
    text = prompt(last, add_generation_prompt=False, continue_final_message=True)
    assert text is not None
    assert text.endswith("The code is")


@pytest.mark.parametrize(
    "messages",
    [
        "hello",
        [["hello"]],
        [CHAT, "hello"],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": ["hello"]}],
    ],
)
def test_what_is_no_conversation_is_refused(llm: LLM, messages: Any) -> None:
    with pytest.raises(VLLMValidationError) as caught:
        llm.chat(messages, FEW, use_tqdm=False)
    assert caught.value.parameter == "messages"


# ---- the rest ---------------------------------------------------------------------------------


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
        llm.chat(CHAT, FEW)
    with pytest.raises(ValueError, match="skip_tokenizer_init"):
        llm.get_tokenizer()
    llm.shutdown()


def test_metrics_count_what_was_done(llm: LLM) -> None:
    def counters() -> dict[str, int]:
        return {
            m.name: m.value
            for m in llm.get_metrics()
            if hasattr(m, "value") and "engine" in m.labels and len(m.labels) == 2
        }

    before = counters()
    run(llm, TEXTS)
    after = counters()
    name = next(n for n in after if n.startswith("vllm:generation_tokens"))
    assert after[name] - before[name] == 16
    assert after["vllm:num_requests_running"] == 0


def test_no_metrics_where_none_are_kept() -> None:
    llm = LLM(max_model_len=64, num_gpu_blocks_override=20, disable_log_stats=True)
    with pytest.raises(ValueError, match="disable_log_stats"):
        llm.get_metrics()
    llm.shutdown()


def test_the_bar_is_shown_only_on_request(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    run(llm, TEXTS)
    assert capsys.readouterr().err == ""
    llm.generate(TEXTS, FEW)
    assert "Generating" in capsys.readouterr().err


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


@pytest.mark.parametrize("name", ["embed", "encode", "score", "classify"])
def test_what_is_absent_says_why(llm: LLM, name: str) -> None:
    with pytest.raises(AttributeError, match=f"LLM.{name}: pooling models"):
        getattr(llm, name)
    with pytest.raises(AttributeError, match="nothing"):
        llm.nothing  # noqa: B018


def test_chats_arguments_may_be_positional(llm: LLM) -> None:
    chat = [{"role": "user", "content": "hi"}]
    params = SamplingParams(temperature=0, max_tokens=3)
    [named] = llm.chat(chat, params, use_tqdm=False)
    [placed] = llm.chat(chat, params, False, None, None, None, "auto", True, False)
    assert placed.outputs[0].text == named.outputs[0].text
    with pytest.raises(VLLMValidationError, match="contents as text"):
        llm.chat(chat, params, chat_template_content_format="openai")  # type: ignore[arg-type]
