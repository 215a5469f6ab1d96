"""`LLM` between prompts: sleep, resets, profiles, calls to workers, metrics, what has no answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vllm import LLM, EngineArgs, SamplingParams, VLLMValidationError

from .offline import FEW, TEXTS, run, tokens


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


@pytest.mark.parametrize("name", ["embed", "encode", "score", "classify"])
def test_what_is_absent_says_why(llm: LLM, name: str) -> None:
    with pytest.raises(AttributeError, match=f"LLM.{name}: pooling models"):
        getattr(llm, name)
    with pytest.raises(AttributeError, match="nothing"):
        llm.nothing  # noqa: B018
