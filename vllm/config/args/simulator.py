"""The flags of an engine without a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.config.engine import SimulatorConfig
from vllm.config.failures import parse_failures
from vllm.config.flags import flag
from vllm.config.geometries import geometry


@dataclass(kw_only=True)
class SimulatorArgs:
    simulator: str | None = flag(
        None,
        "Simulator",
        "Run without a model: tokens echo the prompt, are random, or follow a trace's lengths.",
        choices=("echo", "random", "trace"),
    )
    simulator_model: str | None = flag(
        None, "Simulator", "A well-known model whose sizes to take, as llama-3-8b."
    )
    simulator_latency: str = flag(
        "linear",
        "Simulator",
        "How long a step takes: constant, linear, roofline (each with :name=number,...), or "
        "table:PATH.",
    )
    simulator_clock: str = flag(
        "wall",
        "Simulator",
        "Wall: steps take their time. Virtual: they do not, the same results come at once.",
        choices=("wall", "virtual"),
    )
    simulator_trace: str | None = flag(
        None, "Simulator", "JSONL whose k-th line has the k-th request's output_length."
    )
    simulator_host_bandwidth: float = flag(
        20e9, "Simulator", "Bytes a second between the device and the host tier."
    )
    simulator_disk_bandwidth: float = flag(
        2e9, "Simulator", "Bytes a second between the disk tier and the others."
    )
    simulator_failures: str = flag(
        "",
        "Simulator",
        "What goes wrong: name=number,... with the shares tier (reads and writes of tiers), "
        "request, stream (outputs that end with an error, at once or under way), stall (steps "
        "that take seconds longer), and crash (the step at which the engine dies).",
    )

    def shape(self) -> dict[str, Any]:
        """Entries of config.json that the simulated model has, whatever folder is named."""
        if self.simulator_model is None:
            return {}
        if self.simulator is None:
            raise ValueError("simulator_model needs simulator")
        return geometry(self.simulator_model)

    def make_simulator(self) -> SimulatorConfig | None:
        """None for an engine with a model. Raises ValueError naming the argument at fault."""
        if self.simulator is None:
            return None
        if (self.simulator == "trace") != (self.simulator_trace is not None):
            raise ValueError("simulator trace and simulator_trace need each other")
        for name in ("simulator_host_bandwidth", "simulator_disk_bandwidth"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0")
        return SimulatorConfig(
            mode=self.simulator,
            latency=self.simulator_latency,
            clock=self.simulator_clock,
            trace=self.simulator_trace,
            host_bandwidth=self.simulator_host_bandwidth,
            disk_bandwidth=self.simulator_disk_bandwidth,
            failures=parse_failures(self.simulator_failures),
        )
