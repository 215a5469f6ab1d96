"""Swarms: no cycles, everybody hears whom the graph says, and good edges are learnt."""

from __future__ import annotations

import random

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.agents.graph import Agent, Swarm, majority


def echo(name: str) -> Agent:
    async def speak(task: str, heard: list[str]) -> str:
        return f"{name}({','.join(heard)})"

    return speak


def swarm(count: int, probability: float = 0.5) -> Swarm:
    return Swarm.complete({name: echo(name) for name in "abcdefgh"[:count]}, probability)


@given(seed=st.integers(0, 1000), count=st.integers(1, 6), chance=st.floats(0.1, 0.9))
def test_a_drawn_graph_has_no_cycle(seed: int, count: int, chance: float) -> None:
    graph = swarm(count, chance).draw(random.Random(seed))
    assert nx.is_directed_acyclic_graph(graph)
    assert set(graph.nodes) == set("abcdefgh"[:count])


def test_more_likely_edges_come_more_often() -> None:
    rng = random.Random(0)
    sizes = [
        sum(swarm(4, chance).draw(rng).number_of_edges() for _ in range(100))
        for chance in (0.1, 0.5, 0.9)
    ]
    assert sizes[0] < sizes[1] < sizes[2]


async def test_an_agent_hears_its_predecessors() -> None:
    agents = swarm(4)
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from("abcd")
    graph.add_edges_from([("d", "b"), ("c", "b"), ("b", "a")])
    said = await agents.run("task", graph)
    assert said == {"a": "a(b(c(),d()))", "b": "b(c(),d())", "c": "c()", "d": "d()"}


def test_edges_of_good_graphs_become_likelier() -> None:
    agents, rng = swarm(3), random.Random(0)
    for _ in range(200):
        drawn = [agents.draw(rng) for _ in range(8)]
        agents.learn((g, float(g.has_edge("a", "b"))) for g in drawn)
    assert agents.probability(("a", "b")) > 0.9
    assert agents.probability(("b", "a")) < 0.3, "it stands in the way of the good one"


def test_equal_utilities_teach_nothing() -> None:
    agents = swarm(3)
    before = dict(agents.edges)
    agents.learn([(agents.draw(random.Random(i)), 1.0) for i in range(5)])
    agents.learn([])
    assert agents.edges == pytest.approx(before)


@pytest.mark.parametrize(
    ("answers", "chosen"), [(["x", "y", "y "], "y"), (["x", "y"], "x"), ([], "")]
)
def test_majority(answers: list[str], chosen: str) -> None:
    assert majority(answers) == chosen


async def test_only_voters_count() -> None:
    agents = swarm(3)
    agents.voters = ["c"]
    assert agents.decide({"a": "x", "b": "x", "c": "y"}) == "y"
