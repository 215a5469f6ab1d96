"""From the core's tokens to outputs: the three kinds, reasons, logprobs, times."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.made_tokenizers import EOS, folder
from vllm.core.request import (
    EngineRequest,
    EngineStats,
    RequestEnd,
    SequenceOutput,
    StepOutputs,
    TokenLogprobs,
)
from vllm.engine.output import OutputProcessor
from vllm.engine.tokenizer import Tokenizer
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

CUMULATIVE, DELTA, FINAL = RequestOutputKind


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(folder(tmp_path_factory.mktemp("output"), "byte_level"))


class Recorder:
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def step(self, stats: EngineStats) -> None:
        self.told.append(("step", stats.running))

    def first_token(self, seconds: float) -> None:
        self.told.append(("first_token", seconds))

    def inter_token(self, seconds: float, count: int = 1) -> None:
        self.told.append(("inter_token", (seconds, count)))

    def finished(self, end: RequestEnd) -> None:
        self.told.append(("finished", end))

    def rejected(self, reason: str) -> None:
        self.told.append(("rejected", reason))


class Run:
    """One request, driven a token at a time."""

    def __init__(self, tokenizer: Tokenizer | None, recorder: Any = None, **given: Any) -> None:
        self.tokenizer = tokenizer
        self.processor = OutputProcessor(tokenizer, recorder)
        self.params = SamplingParams(**given)
        self.now = 10.0
        self.prompt = [1, 2]
        if tokenizer is not None:
            self.prompt = tokenizer.encode("the", add_special_tokens=False)
        request = EngineRequest(
            request_id="r",
            prompt_token_ids=self.prompt,
            params=self.params,
            max_tokens=100,
            arrival=0.0,
        )
        self.processor.add(request, "the", self.now)
        self.ended: list[tuple[str, int]] = []

    def step(self, token: int | None, index: int = 0, **more: Any) -> RequestOutput | None:
        self.now += 1.0
        tokens = [] if token is None else [token]
        output = SequenceOutput("r", index, tokens, queued=10.5, scheduled=10.75, **more)
        made, ended, rejected = self.processor.process(
            StepOutputs([output], EngineStats(running=1), self.now)
        )
        assert not rejected
        self.ended += ended
        assert len(made) <= 1
        return made[0] if made else None

    def say(self, text: str, **last: Any) -> list[RequestOutput]:
        """A token for each character."""
        assert self.tokenizer is not None
        ids = [self.tokenizer._rust.token_to_id({" ": "Ġ"}.get(c, c)) for c in text]
        made = [self.step(i) for i in ids[:-1]] + [self.step(ids[-1], **last)]
        return [m for m in made if m is not None]


def test_cumulative_outputs_hold_all_so_far(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer)
    made = run.say("abc", finish_reason="length")
    assert [m.outputs[0].text for m in made] == ["a", "ab", "abc"]
    assert [len(m.outputs[0].token_ids) for m in made] == [1, 2, 3]
    assert [m.finished for m in made] == [False, False, True]
    assert [m.outputs[0].finish_reason for m in made] == [None, None, "length"]
    last = made[-1]
    assert (last.request_id, last.prompt, last.prompt_token_ids) == ("r", "the", run.prompt)
    assert last.outputs[0].finished()
    assert last.prompt_logprobs is None
    assert last.outputs[0].logprobs is None
    assert last.outputs[0].cumulative_logprob is None
    assert len(run.processor) == 0


def test_deltas_hold_what_is_new(tokenizer: Tokenizer) -> None:
    made = Run(tokenizer, output_kind=DELTA).say("abc", finish_reason="length")
    assert [m.outputs[0].text for m in made] == ["a", "b", "c"]
    assert [len(m.outputs[0].token_ids) for m in made] == [1, 1, 1]


def test_final_only_is_one_output(tokenizer: Tokenizer) -> None:
    (made,) = Run(tokenizer, output_kind=FINAL).say("abc", finish_reason="length")
    assert (made.finished, made.outputs[0].text) == (True, "abc")


def test_outputs_that_were_given_do_not_change(tokenizer: Tokenizer) -> None:
    first, *_ = Run(tokenizer, logprobs=0).say("abc", finish_reason="length")
    assert first.outputs[0].text == "a"
    assert len(first.outputs[0].token_ids) == 1


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
def test_several_outputs_end_one_by_one(tokenizer: Tokenizer, kind: RequestOutputKind) -> None:
    run = Run(tokenizer, n=2, output_kind=kind)
    a, b = (
        tokenizer.encode("a", add_special_tokens=False),
        tokenizer.encode("b", add_special_tokens=False),
    )
    made = [
        run.step(a[-1], 0),
        run.step(b[-1], 1),
        run.step(a[-1], 0, finish_reason="stop", stop_reason=a[-1]),
        run.step(b[-1], 1, finish_reason="length"),
    ]
    final = made[-1]
    assert final is not None
    assert final.finished
    assert [m.finished for m in made if m] == [False] * (len([m for m in made if m]) - 1) + [True]
    if kind is DELTA:
        assert [[o.index for o in m.outputs] for m in made] == [[0], [1], [0], [1]]
    else:
        assert [(o.index, o.text) for o in final.outputs] == [(0, "a"), (1, "bb")]
        assert [o.finish_reason for o in final.outputs] == ["stop", "length"]
    if kind is FINAL:
        assert made[:-1] == [None] * 3


# ---- why it ended -----------------------------------------------------------------------------


def test_the_end_of_text_has_no_stop_reason_and_no_text(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, skip_special_tokens=False)
    run.say("ab")
    made = run.step(tokenizer.eos_token_id, finish_reason="stop")
    assert made is not None
    output = made.outputs[0]
    assert (output.finish_reason, output.stop_reason, output.text) == ("stop", None, "ab")
    assert output.token_ids[-1] == tokenizer.eos_token_id


def test_a_stop_token_is_the_reason(tokenizer: Tokenizer) -> None:
    for include, text in ((False, "a"), (True, "ab")):
        run = Run(tokenizer, include_stop_str_in_output=include)
        token = tokenizer._rust.token_to_id("b")
        made = run.say("ab", finish_reason="stop", stop_reason=token)[-1].outputs[0]
        assert (made.finish_reason, made.stop_reason, made.text) == ("stop", token, text)
        assert made.token_ids[-1] == token


@pytest.mark.parametrize("kind", [CUMULATIVE, DELTA, FINAL])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_is_the_reason_and_the_core_is_told(
    tokenizer: Tokenizer, kind: RequestOutputKind, include: bool
) -> None:
    run = Run(
        tokenizer, stop=["never", "STOP"], include_stop_str_in_output=include, output_kind=kind
    )
    made = run.say("so STOP")
    text = "".join(m.outputs[0].text for m in made) if kind is DELTA else made[-1].outputs[0].text
    assert text == ("so STOP" if include else "so ")
    assert made[-1].outputs[0].finish_reason == "stop"
    assert made[-1].outputs[0].stop_reason == "STOP"
    assert run.ended == [("r", 0)]
    assert len(run.processor) == 0
    # The core may have one more step on its way.
    assert run.step(5) is None


def test_a_stop_string_on_the_last_token_beats_its_length(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["b"])
    made = run.say("ab", finish_reason="length")[-1].outputs[0]
    assert (made.finish_reason, made.stop_reason, made.text) == ("stop", "b", "a")
    assert run.ended == []  # the core has ended it itself


def test_held_back_text_comes_at_the_end(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, stop=["STOP"], output_kind=DELTA)
    made = run.say("say STO", finish_reason="length")
    assert [m.outputs[0].text for m in made] == ["", "", "", "s", "a", "y", " STO"]
    half = Run(tokenizer)
    ids = tokenizer.encode("🤖", add_special_tokens=False)
    half.step(ids[0])
    last = half.step(ids[1], finish_reason="length")
    assert last is not None
    assert last.outputs[0].text == "\ufffd"


def test_abort_tells_all_there_is(tokenizer: Tokenizer) -> None:
    recorder = Recorder()
    run = Run(tokenizer, recorder, stop=["STOP"], n=2)
    run.say("ST")
    made = run.processor.abort("r", 20.0)
    assert made is not None
    assert made.finished
    assert [(o.text, o.finish_reason) for o in made.outputs] == [("ST", "abort"), ("", "abort")]
    assert len(run.processor) == 0
    assert run.processor.abort("r", 21.0) is None
    assert recorder.told[-1][1].reason == "abort"
    partial = Run(tokenizer)
    partial.step(tokenizer.encode("🤖", add_special_tokens=False)[0])
    assert partial.processor.abort("r", 20.0).outputs[0].text == "\ufffd"


def test_a_dropped_request_is_forgotten(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, Recorder())
    run.say("a")
    run.processor.drop("r")
    run.processor.drop("r")
    assert len(run.processor) == 0
    assert run.step(5) is None


def test_refusals_are_told_and_forgotten(tokenizer: Tokenizer) -> None:
    recorder = Recorder()
    run = Run(tokenizer, recorder)
    refusal = SequenceOutput(
        "r", 0, [], finish_reason="rejected", stop_reason="max_num_queued_reqs"
    )
    made, ended, rejected = run.processor.process(StepOutputs([refusal]))
    assert (made, ended, len(run.processor)) == ([], [], 0)
    assert (rejected[0].request_id, rejected[0].reason) == ("r", "rejected")
    assert str(rejected[0]) == "max_num_queued_reqs"
    assert recorder.told == [("rejected", "max_num_queued_reqs")]


def test_an_id_is_used_once(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer)
    again = EngineRequest(
        request_id="r", prompt_token_ids=[1], params=run.params, max_tokens=1, arrival=0.0
    )
    with pytest.raises(ValueError, match="running already"):
        run.processor.add(again, None, 1.0)


# ---- text off ---------------------------------------------------------------------------------


def test_without_a_tokenizer_or_wish_there_is_no_text(tokenizer: Tokenizer) -> None:
    for run in (Run(None, logprobs=1), Run(tokenizer, detokenize=False, logprobs=1)):
        logprobs = [TokenLogprobs([7, 7], [-0.1, -0.1], 1)]
        made = run.step(7, finish_reason="length", logprobs=logprobs)
        assert made is not None
        assert (made.outputs[0].text, made.outputs[0].token_ids) == ("", [7])
        decoded = made.outputs[0].logprobs[0][7].decoded_token
        assert decoded == (None if run.tokenizer is None else tokenizer.text_of(7))


def test_special_tokens_are_shown_on_request(tokenizer: Tokenizer) -> None:
    for skip, text in ((True, ""), (False, EOS)):
        made = Run(tokenizer, skip_special_tokens=skip).step(tokenizer.eos_token_id)
        assert made is not None
        assert made.outputs[0].text == text


# ---- logprobs ---------------------------------------------------------------------------------


def test_logprobs_begin_with_the_sampled_token(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, logprobs=2)
    outside = TokenLogprobs([9, 4, 5], [-5.0, -0.5, -1.0], 7)
    inside = TokenLogprobs([5, 4, 5], [-1.0, -0.5, -1.0], 2)
    run.step(9, logprobs=[outside])
    made = run.step(5, logprobs=[inside], finish_reason="length")
    assert made is not None
    first, second = made.outputs[0].logprobs
    assert [(t, p.logprob, p.rank) for t, p in first.items()] == [
        (9, -5.0, 7),
        (4, -0.5, 1),
        (5, -1.0, 2),
    ]
    assert list(second) == [5, 4]
    assert (second[5].rank, second[4].rank) == (2, 1)
    assert first[4].decoded_token == tokenizer.text_of(4)
    assert made.outputs[0].cumulative_logprob == -6.0


def test_a_sampled_token_keeps_its_own_rank_among_equals(tokenizer: Tokenizer) -> None:
    made = Run(tokenizer, logprobs=2).step(5, logprobs=[TokenLogprobs([5, 4, 5], [-1.0] * 3, 1)])
    assert made is not None
    assert {t: p.rank for t, p in made.outputs[0].logprobs[0].items()} == {5: 1, 4: 1}


def test_deltas_have_their_own_logprobs(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, logprobs=0, output_kind=DELTA)
    made = [run.step(t, logprobs=[TokenLogprobs([t], [-1.0], 1)]) for t in (5, 6)]
    assert [[list(p) for p in m.outputs[0].logprobs] for m in made] == [[[5]], [[6]]]
    assert [m.outputs[0].cumulative_logprob for m in made] == [-1.0, -2.0]


def test_prompt_logprobs_begin_with_none(tokenizer: Tokenizer) -> None:
    run = Run(tokenizer, prompt_logprobs=1)
    assert run.step(None, prompt_logprobs=[TokenLogprobs([3, 4], [-2.0, -1.0], 2)]) is None
    made = run.step(5, prompt_logprobs=[TokenLogprobs([6, 6], [-1.0, -1.0], 1)])
    assert made is not None
    none, second, third = made.prompt_logprobs
    assert none is None
    assert (list(second), list(third)) == ([3, 4], [6])


def test_prompt_logprobs_are_told_once_for_several_outputs(tokenizer: Tokenizer) -> None:
    """The other outputs share the prompt's full blocks and compute the last one again."""
    run = Run(tokenizer, prompt_logprobs=0, n=2)
    told = [TokenLogprobs([3], [-2.0], 1)]
    run.step(5, 0, prompt_logprobs=told)
    made = run.step(5, 1, prompt_logprobs=told)
    assert made is not None
    assert len(made.prompt_logprobs) == 2


# ---- times ------------------------------------------------------------------------------------


def test_times_and_counts(tokenizer: Tokenizer) -> None:
    recorder = Recorder()
    run = Run(tokenizer, recorder, max_tokens=7)
    run.step(5, num_cached_tokens=16, preemptions=0)
    run.step(6, num_cached_tokens=16, preemptions=2)
    made = run.step(7, finish_reason="length", preemptions=2)
    assert made is not None
    stats = made.metrics
    assert stats is not None
    times = [
        stats.arrival_time,
        stats.queued_ts,
        stats.scheduled_ts,
        stats.first_token_ts,
        stats.last_token_ts,
    ]
    assert times == sorted(times) == [10.0, 10.5, 10.75, 11.0, 13.0]
    assert stats.first_token_latency == 1.0
    assert (stats.num_generation_tokens, stats.num_preemptions) == (3, 2)
    assert made.num_cached_tokens == 16
    kinds = [kind for kind, _ in recorder.told if kind != "step"]
    assert kinds == ["first_token", "inter_token", "inter_token", "finished"]
    assert recorder.told[-1][1] == RequestEnd(
        reason="length",
        prompt_tokens=len(run.prompt),
        generation_tokens=3,
        longest_output=3,
        cached_tokens=16,
        e2e=3.0,
        queue=0.25,
        prefill=0.25,
        decode=2.0,
        n=1,
        max_tokens=7,
        preemptions=2,
    )
