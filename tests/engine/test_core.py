"""The engine core over a worker that only counts, and what it settles before anything is loaded."""

from __future__ import annotations

import itertools

from vllm.config import EngineArgs, VllmConfig
from vllm.core.plan import StepPlan, StepResult
from vllm.core.request import EngineRequest
from vllm.engine.capacity import Capacity
from vllm.engine.core import EngineCore
from vllm.sampling_params import SamplingParams


class Counting:
    """An executor whose n-th token of all is n."""

    def __init__(self, config: VllmConfig, capacity: Capacity) -> None:
        self.capacity = capacity
        self.plans: list[StepPlan] = []
        self.tokens = itertools.count()
        self.down = False

    def execute(self, plan: StepPlan) -> StepResult:
        self.plans.append(plan)
        return StepResult([next(self.tokens) for _ in range(int(plan.sample.sum()))])

    def shutdown(self) -> None:
        self.down = True


def config(**options) -> VllmConfig:
    return EngineArgs(**({"dtype": "float32"} | options)).create_engine_config()


def request(name: str, length: int = 5, max_tokens: int = 3) -> EngineRequest:
    return EngineRequest(
        request_id=name,
        prompt_token_ids=list(range(length)),
        params=SamplingParams(ignore_eos=True),
        max_tokens=max_tokens,
        arrival=0.0,
    )


def core(**options) -> EngineCore:
    times = itertools.count()
    options = {"max_model_len": 64, "num_gpu_blocks_override": 8} | options
    return EngineCore(config(**options), Counting, clock=lambda: float(next(times)))


def test_the_loop():
    engine = core()
    assert not engine.has_work
    engine.add(request("a"))
    assert engine.has_work
    got = []
    last = -1.0
    while engine.has_work:
        step = engine.step()
        assert step.time > last, "the time is that of the core's clock"
        last = step.time
        got += [t for o in step.outputs for t in o.token_ids]
        assert step.stats is not None
        assert engine.check()
    assert got == [0, 1, 2]
    engine.shutdown()
    assert engine.executor.down


def test_a_step_with_nothing_to_do_is_empty():
    engine = core()
    step = engine.step()
    assert step.outputs == []
    assert engine.executor.plans[0].seqs == []


def test_aborts_and_ends_between_steps():
    engine = core()
    for name in "abc":
        engine.add(request(name, max_tokens=20))
    engine.step()
    engine.abort(["a", "z"])
    engine.end([("b", 0), ("b", 7), ("z", 0)])
    step = engine.step()
    assert [o.request_id for o in step.outputs] == ["c"]
    assert sorted(engine.executor.plans[1].forget) == [1, 2]
    engine.abort(["c"])
    assert not engine.has_work
    assert engine.scheduler.kv.usage == 0


def test_reset_prefix_cache():
    engine = core()
    engine.add(request("a", length=33))
    engine.step()
    assert not engine.reset_prefix_cache(), "a request holds some of it"
    while engine.has_work:
        engine.step()
    assert engine.reset_prefix_cache()
    engine.add(request("b", length=33))
    assert engine.step().outputs[0].num_cached_tokens == 0


def test_models_do_not_share_keys(tmp_path):
    """Two engines with one shape and other weights (here: other seeds) start other chains."""
    prints = {
        core(load_format="dummy", seed=seed).scheduler.kv._names.root(None) for seed in (0, 0, 1)
    }
    assert len(prints) == 2
