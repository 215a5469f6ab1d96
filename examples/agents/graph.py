"""Agents as a graph: who hears whom is drawn by chance, and the chances are learnt.

The idea is GPTSwarm's (Zhuge et al., ICML'24): nodes are agents, each possible edge has a
probability, a run draws a graph without cycles from them, and REINFORCE (Williams, 1992) raises the
probability of edges in graphs that did well. Their package pins web frameworks and clients of years
ago and brings a browser's worth of others, so here are the few lines that are needed, on networkx.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import networkx as nx

Agent = Callable[[str, list[str]], Awaitable[str]]
"""An agent: the task, and what its predecessors said, to what it says."""

Edge = tuple[str, str]


@dataclass
class Swarm:
    """`agents` by name, in the order that breaks ties. `edges`: the possible ones, as logits."""

    agents: dict[str, Agent]
    edges: dict[Edge, float] = field(default_factory=dict)
    voters: list[str] = field(default_factory=list)  # whose answers are counted; empty: everybody's

    @classmethod
    def complete(cls, agents: dict[str, Agent], probability: float = 0.5) -> Swarm:
        """Everybody may hear everybody else, with this probability at first."""
        logit = math.log(probability / (1 - probability))
        return cls(agents, {(a, b): logit for a in agents for b in agents if a != b})

    def probability(self, edge: Edge) -> float:
        return 1 / (1 + math.exp(-self.edges[edge]))

    def draw(self, rng: random.Random) -> nx.DiGraph[str]:
        """A graph without cycles: edges in random order, leaving out what would close one."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.agents)
        order = list(self.edges)
        rng.shuffle(order)
        for a, b in order:
            if rng.random() < self.probability((a, b)) and not nx.has_path(graph, b, a):
                graph.add_edge(a, b)
        return graph

    async def run(self, task: str, graph: nx.DiGraph[str] | None = None) -> dict[str, str]:
        """What each agent said; an agent speaks as soon as all that it hears have spoken.

        Without a graph nobody hears anybody.
        """
        said: dict[str, asyncio.Task[str]] = {}
        rank = {name: i for i, name in enumerate(self.agents)}

        async def speak(name: str) -> str:
            hears = [] if graph is None else sorted(graph.predecessors(name), key=rank.__getitem__)
            return await self.agents[name](task, [await said[other] for other in hears])

        # Whom one hears is there before one speaks.
        for name in self.agents if graph is None else nx.topological_sort(graph):
            said[name] = asyncio.create_task(speak(name))
        return {name: await said[name] for name in self.agents}

    def decide(self, said: dict[str, str]) -> str:
        """Majority vote; of equals the answer that came first."""
        return majority(said[name] for name in self.voters or self.agents)

    def learn(self, drawn: Iterable[tuple[nx.DiGraph[str], float]], rate: float = 0.4) -> None:
        """One step of REINFORCE over graphs and their utilities, with the mean as baseline."""
        batch = list(drawn)
        if not batch:
            return
        baseline = sum(utility for _, utility in batch) / len(batch)
        for edge in self.edges:
            chance = self.probability(edge)
            gradient = sum(
                (utility - baseline) * (graph.has_edge(*edge) - chance) for graph, utility in batch
            )
            self.edges[edge] += rate * gradient / len(batch)


def majority(answers: Iterable[str]) -> str:
    """The most frequent answer, the earliest of equals; "" of none."""
    counts = Counter(answer.strip() for answer in answers)
    return max(counts, key=lambda a: counts[a], default="")
