"""Several simulated engines behind a router: routing, the shared store, and the figures."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm import EngineArgs
from vllm.config import VllmConfig
from vllm.entrypoints.cli.main import main
from vllm.simulator.cluster import ROUTES, Cluster, jain
from vllm.simulator.run import Ask, Simulation
from vllm.simulator.store import SharedStore

BLOCK = 16


def config(**args: Any) -> VllmConfig:
    given: dict[str, Any] = {
        "simulator": "random",
        "simulator_clock": "virtual",
        "simulator_latency": "linear:step=1e-3,prefill=1e-3,sequence=1e-4,kv=0",
        "num_gpu_blocks_override": 40,
        "max_model_len": 256,
        "block_size": BLOCK,
    }
    return EngineArgs(**given | args).create_engine_config()


def made(seed: int, count: int = 30, rate: float = 20.0) -> list[Ask]:
    """Prompts of a few families, which share their beginnings."""
    draw = random.Random(seed)
    families = [[draw.randrange(1000) for _ in range(160)] for _ in range(4)]
    at, asks = 0.0, []
    for _ in range(count):
        at += draw.expovariate(rate)
        prompt = [*draw.choice(families)[: draw.randrange(20, 160)], draw.randrange(1000)]
        asks.append(Ask(at, prompt, draw.randrange(1, 8)))
    return asks


@pytest.mark.parametrize("routing", ROUTES)
def test_one_replica_is_a_simulation(routing: str) -> None:
    alone = Simulation(config()).run(made(1))
    assert Cluster(config(), 1, routing).run(made(1)).done == alone


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1000), routing=st.sampled_from(list(ROUTES)), blocks=st.integers(1, 60))
def test_the_same_requests_give_the_same_results(seed: int, routing: str, blocks: int) -> None:
    """With a store of any size: nothing is lost, and the store keeps its bounds."""

    def run() -> tuple[list[Any], dict[str, Any]]:
        store = SharedStore(blocks, 1e7)
        cluster = Cluster(config(), 3, routing, store)
        outcome = cluster.run(made(seed))
        store.check()
        assert sum(cluster.counts) == len(outcome.done) == 30
        return outcome.done, outcome.row()

    (done, row), again = run(), run()
    assert (done, row) == again
    for told in done:
        assert told.output_tokens == told.ask.max_tokens
        assert told.ask.arrival <= told.first_token <= told.finished
        assert sum(told.sources.values()) == told.cached_tokens
    assert 0 <= row["store_hit_rate"] <= row["token_hit_rate"] <= 1


def test_round_robin_and_least_loaded() -> None:
    asks = [Ask(0.0, [i] * 200, 50 if i == 0 else 1) for i in range(4)]
    cluster = Cluster(config(), 2, "round-robin")
    cluster.run(asks)
    assert cluster.counts == [2, 2]
    # The first replica works for half a second; those that come later find the second one free.
    long = config(num_gpu_blocks_override=60, max_model_len=600)
    cluster = Cluster(long, 2, "least-loaded")
    asks = [Ask(0.14 * i, [i] * 100, 1 if i else 400) for i in range(4)]
    outcome = cluster.run(asks)
    assert cluster.counts == [1, 3]
    assert outcome.row()["fairness_load"] < 1


def test_prefix_sends_equal_beginnings_to_one_replica() -> None:
    outcome = Cluster(config(), 3, "prefix").run(
        [Ask(float(i), [i % 5] * 100, 1) for i in range(40)]
    )
    places = {}
    for told in outcome.done:
        assert places.setdefault(told.ask.prompt[0], told.replica) == told.replica
    assert len(set(places.values())) > 1


def test_cost_weighs_hits_against_load() -> None:
    """A free replica that has the prompt gets it; one that is busy for longer does not."""
    prompt, other = [5] * 200, [6] * 250
    cluster = Cluster(config(), 2, "cost")
    asks = [Ask(0.0, prompt, 1), Ask(1.0, prompt, 1), Ask(2.0, other, 1), Ask(3.0, prompt, 1)]
    done = cluster.run(asks).done
    assert [t.replica for t in done] == [0, 0, 1, 0]
    assert [t.cached_tokens for t in done] == [0, 192, 0, 192]
    busy = Cluster(config(max_num_seqs=1), 2, "cost")
    waiting = [Ask(1.0 + i * 1e-4, [7 + i] * 240, 1) for i in range(2)]
    done = busy.run([Ask(0.0, prompt, 1), *waiting, Ask(1.001, prompt, 1)]).done
    assert {t.replica for t in done if t.ask.arrival >= 1.0} == {0, 1}


def test_what_one_engine_stored_another_finds() -> None:
    """Each replica has room for one prompt; the store has room for all."""
    prompts = [[i] * 200 for i in range(4)]
    asks = [Ask(float(i), prompts[i % 4], 1) for i in range(12)]
    small = config(num_gpu_blocks_override=16)
    alone = Cluster(small, 3, "round-robin").run(asks)
    store = SharedStore(100, 1e9)
    shared = Cluster(small, 3, "round-robin", store).run(asks)
    assert alone.row()["store_hit_rate"] == 0 == alone.row()["store_gib_loaded"]
    loaded = [t for t in shared.done if t.sources.get("shared")]
    assert len(loaded) == 8, "every prompt that was computed somewhere before"
    assert {t.cached_tokens for t in loaded} == {192}
    spec = Simulation(small).core.capacity.spec
    tokens = sum(t.sources["shared"] for t in loaded)
    assert shared.bytes_loaded == tokens // BLOCK * spec.block_bytes
    assert shared.bytes_stored == 4 * 12 * spec.block_bytes, "each block once, by whoever had it"
    assert shared.row()["mean_ttft"] < alone.row()["mean_ttft"]
    store.check()


def test_a_slow_store_is_not_waited_for() -> None:
    """Loading would take longer than computing: the engine's own choice."""
    asks = [Ask(60.0 * i, [i % 4] * 200, 1) for i in range(12)]
    outcome = Cluster(
        config(num_gpu_blocks_override=16), 3, "round-robin", SharedStore(100, 1e4)
    ).run(asks)
    fast = Cluster(config(num_gpu_blocks_override=16), 3, "round-robin", SharedStore(100, 1e9)).run(
        asks
    )
    assert outcome.row()["store_hit_rate"] < fast.row()["store_hit_rate"]
    assert outcome.row()["p99_ttft"] < 5


def test_jain() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1.0)
    assert jain([3.0, 0.0, 0.0]) == pytest.approx(1 / 3)
    assert jain([0.0]) == 1.0


@pytest.mark.parametrize(
    ("args", "replicas", "routing", "says"),
    [
        ({}, 0, "cost", "replicas"),
        ({}, 2, "luck", "routing"),
        ({"enable_prefix_caching": False}, 2, "cost", "enable_prefix_caching"),
        ({"simulator_clock": "wall"}, 2, "cost", "virtual"),
    ],
)
def test_what_cannot_be_is_told(
    args: dict[str, Any], replicas: int, routing: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Cluster(config(**args), replicas, routing, SharedStore(10, 1e9))
    for blocks, bandwidth in ((0, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(ValueError, match="store"):
            SharedStore(blocks, bandwidth)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [
        {
            "timestamp": 100 * i,
            "input_length": 1500,
            "output_length": 3,
            "hash_ids": [i % 3, 10 + i % 3, 20 + i],
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["lab", "cluster", "--trace", str(path), "--replicas", "2"]
    assert main([*words, "--store-blocks", "50", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["routing"], row["shared_store"]) for row in rows] == [
        (routing, store) for store in (False, True) for routing in ROUTES
    ]
    assert all(row["requests"] == 12 and row["replicas"] == 2 for row in rows)
    by_routing = {row["routing"]: row for row in rows if not row["shared_store"]}
    assert by_routing["prefix"]["token_hit_rate"] == pytest.approx(9 * 1024 / (12 * 1500))
    assert main([*words, "--routing", "cost", "--requests", "4"]) == 0
    assert "4 requests, 2 replicas" in capsys.readouterr().out
    for wrong, says in ((["--speed", "0"], "speed"), (["--max-model-len", "100"], "no request")):
        with pytest.raises(SystemExit):
            main([*words, *wrong])
        assert says in capsys.readouterr().err
