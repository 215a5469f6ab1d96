"""Failures that are asked for: which ones come, and that nothing is lost beside them."""

from __future__ import annotations

from typing import Any

import pytest

from vllm import LLM, SamplingParams
from vllm.outputs import RequestOutput

VIRTUAL: dict[str, Any] = {
    "simulator": "random",
    "simulator_clock": "virtual",
    "num_gpu_blocks_override": 400,
    "max_model_len": 256,
    "skip_tokenizer_init": True,
}


def ask(failures: str, count: int = 300, **more: Any) -> tuple[LLM, list[RequestOutput]]:
    llm = LLM(simulator_failures=failures, **VIRTUAL, **more)
    prompts = [{"prompt_token_ids": [i, 7, 8]} for i in range(count)]
    return llm, llm.generate(prompts, SamplingParams(max_tokens=4), use_tqdm=False)


def test_requests_fail_at_once_or_under_way() -> None:
    llm, outputs = ask("request=0.2,stream=0.25")
    made = [(o.outputs[0].finish_reason, len(o.outputs[0].token_ids)) for o in outputs]
    assert set(made) == {("error", 0), ("error", 1), ("length", 4)}
    assert 0.14 < made.count(("error", 0)) / 300 < 0.26, "a fifth"
    assert 0.14 < made.count(("error", 1)) / 300 < 0.26, "a quarter of the rest"
    llm.llm_engine.core.check()
    assert llm.llm_engine.core.scheduler.kv.usage == 0
    ended = {
        m.labels["finished_reason"]: m.value
        for m in llm.get_metrics()
        if m.name == "vllm:request_success"
    }
    assert ended["error"] == sum(reason == "error" for reason, _ in made)


def test_which_fail_is_the_seeds_choice() -> None:
    def failed(outputs: list[RequestOutput]) -> list[int]:
        return [i for i, o in enumerate(outputs) if o.outputs[0].finish_reason == "error"]

    _, first = ask("request=0.1")
    _, again = ask("request=0.1", max_num_seqs=3)
    _, other = ask("request=0.1", seed=1)
    assert failed(first) == failed(again), "whatever else runs beside it"
    assert failed(first) != failed(other)


def test_one_of_several_outputs_fails_alone() -> None:
    llm = LLM(simulator_failures="request=0.5", **VIRTUAL)
    params = SamplingParams(n=32, max_tokens=3)
    [output] = llm.generate({"prompt_token_ids": [5] * 40}, params, use_tqdm=False)
    reasons = [o.finish_reason for o in output.outputs]
    assert set(reasons) == {"error", "length"}
    llm.llm_engine.core.check()


def test_stalls_take_their_time() -> None:
    calm, _ = ask("", count=20)
    stalled, _ = ask("stall=1,seconds=3", count=20)
    steps = 4
    busy = [llm.llm_engine.core.executor.busy_seconds for llm in (calm, stalled)]  # type: ignore[attr-defined]
    assert busy[1] - busy[0] == pytest.approx(3 * steps)


def test_a_crash_is_one() -> None:
    llm = LLM(simulator_failures="crash=3", **VIRTUAL)
    with pytest.raises(RuntimeError, match="step 3"):
        llm.generate({"prompt_token_ids": [5]}, SamplingParams(max_tokens=4), use_tqdm=False)
    [output] = llm.generate({"prompt_token_ids": [5]}, SamplingParams(max_tokens=4), use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 4, "the engine of this process goes on"


def test_both_clocks_give_the_same_results() -> None:
    prompts = [{"prompt_token_ids": [i % 3] * 40 + [i]} for i in range(12)]
    params = SamplingParams(max_tokens=6)
    told = []
    for clock in ("wall", "virtual"):
        args = VIRTUAL | {"simulator_clock": clock, "simulator_latency": "constant:step=0.001"}
        llm = LLM(max_num_seqs=2, simulator_failures="request=0.2", **args)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        told.append([(o.num_cached_tokens, o.outputs[0].token_ids) for o in outputs])
    assert told[0] == told[1]
    assert sum(cached for cached, _ in told[0]) > 0
