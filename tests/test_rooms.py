"""Who may import whom: each room only what stands left of it, and what no file may use at all.

    core | config | observe, grammar, distributed, kernels, kvstore | kv
         | compression, model_executor, scheduler | worker, engine | router, entrypoints

Beside the row stand `simulator` and `prefixlab`, with lists of their own.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vllm

ROOT = Path(__file__).parents[1]

GROUPS = [
    {"core"},
    {"config"},
    {"observe", "grammar", "distributed", "kernels", "kvstore"},
    {"kv"},
    {"compression", "model_executor", "scheduler"},
    {"worker", "engine"},
    {"router", "entrypoints"},
]
PLACE = {room: i for i, rooms in enumerate(GROUPS) for room in rooms}
CORE_MODULES = {"sampling_params", "outputs", "logprobs", "inputs", "version"}  # stand with core
# Old doors: thin re-exports under the paths that users know. They may show any room's names, and no
# room comes in by them.
DOORS = {
    "__init__",
    "__main__",
    "exceptions",
    "tokenizers",
    "utils",
    "v1",
    "engine.arg_utils",
    "engine.async_llm_engine",
    "entrypoints.chat_utils",
    "lora",
    "renderers",
}
PUBLIC = set(vllm.__all__)
ASIDE = {
    "simulator": {"core", "config", "kv", "scheduler", "engine"},
    "prefixlab": {"core", "config", "kv.evict", "kv.lineage"},
}
TORCH_FREE = {
    "core",
    "config",
    "observe",
    "grammar",
    "kv",
    "scheduler",
    "engine",
    "kvstore",
    "simulator",
    "prefixlab",
}
WITH_TORCH = {"kv.arena"}
HEAVY = {"torch", "torchvision", "torchaudio"}

BANNED_MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "unsafe_load"),
    ("yaml", "unsafe_load_all"),
    ("yaml", "full_load"),
    ("yaml", "full_load_all"),
}
BANNED_METHODS = {"recv_pyobj", "send_pyobj", "read_pickle", "to_pickle"}


def module_of(path: Path, root: Path = ROOT) -> str:
    """`vllm/kv/pool.py` is kv.pool, `vllm/kv/__init__.py` is kv, `vllm/__init__.py` is __init__."""
    parts = path.relative_to(root / "vllm").with_suffix("").parts
    if len(parts) > 1 and parts[-1] == "__init__":
        parts = parts[:-1]
    return ".".join(parts)


def imported(tree: ast.AST, module: str, package: bool) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module name, inside a function) of each import, `from a import b` as a.b."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inside.update(child for child in ast.walk(node) if child is not node)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name, node in inside
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["vllm", *module.split(".")]
                up = node.level - package
                parents = parents[: len(parents) - up] if up else parents
                base = ".".join([*parents, *([base] if base else [])])
            for name in node.names:
                yield node.lineno, f"{base}.{name.name}", node in inside


def starts(name: str, prefixes: set[str]) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def room_of(module: str) -> str:
    top = module.split(".")[0]
    return "core" if top in CORE_MODULES else top


def import_fault(module: str, target: str, inside_function: bool) -> str | None:
    """Why `vllm.<module>` may not import `vllm.<target>`, or None."""
    mine, theirs = room_of(module), room_of(target)
    if starts(module, DOORS) or mine == theirs:
        return None
    if mine in ASIDE:
        allowed = {"core"} if theirs == "core" else {target}
        if any(starts(t, ASIDE[mine]) for t in allowed):
            return None
        return f"{mine} may import only {', '.join(sorted(ASIDE[mine]))}"
    if theirs in ASIDE:
        if mine == "entrypoints" and inside_function:
            return None
        return f"only entrypoints may import {theirs}, inside the function that needs it"
    if mine == "entrypoints" and target in PUBLIC:
        return None  # the last room may come in by the front door
    if starts(target, DOORS) or theirs not in PLACE:
        return f"{target} is a door for users, or no room at all"
    if mine not in PLACE:
        return f"{mine} is no room: give it a place in the row"
    if theirs == "kvstore" and module != "kv.tiers.shared" and mine != "entrypoints":
        return "only kv.tiers.shared imports kvstore"
    if PLACE[mine] == PLACE[theirs]:
        return f"{mine} and {theirs} are siblings"
    if PLACE[mine] < PLACE[theirs]:
        return f"{theirs} stands right of {mine}"
    return None


def faults(source: str, module: str, package: bool = False) -> list[tuple[int, str]]:
    """(line, what is wrong) of everything in the source of `vllm.<module>` that breaks a rule."""
    tree = ast.parse(source)
    found: list[tuple[int, str]] = []
    torch_free = room_of(module) in TORCH_FREE and not starts(module, WITH_TORCH)
    for line, name, inside in imported(tree, module, package):
        if name.startswith("vllm."):
            why = import_fault(module, name.removeprefix("vllm."), inside)
            if why:
                found.append((line, f"vllm.{module} imports {name}: {why}"))
        top = name.split(".")[0]
        if top in BANNED_MODULES:
            found.append((line, f"{top} runs what it reads"))
        if torch_free and top in HEAVY:
            found.append((line, f"{room_of(module)} is free of torch"))
        if tuple(name.rsplit(".", 1)) in BANNED_ATTRIBUTES:
            found.append((line, f"{name} runs what it reads"))
    found += [(node.lineno, why) for node in ast.walk(tree) if (why := forbidden(node))]
    return sorted(set(found))


def forbidden(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if (owner, node.attr) in BANNED_ATTRIBUTES:
            return f"{owner}.{node.attr} runs what it reads"
        if node.attr in BANNED_METHODS:
            return f"{node.attr} pickles"
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
            return f"{node.func.id}() runs what it is given"
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and not (
                isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            ):
                return "allow_pickle runs what it reads"
    return None


def sources() -> list[Path]:
    return sorted((ROOT / "vllm").rglob("*.py"))


def test_every_file_keeps_the_rules():
    told = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for path in sources()
        for line, why in faults(
            path.read_text(encoding="utf-8"), module_of(path), path.name == "__init__.py"
        )
    ]
    assert not told, "\n" + "\n".join(told)


def test_the_walk_sees_the_files():
    modules = {module_of(path) for path in sources()}
    assert {"__init__", "kv", "kv.pool", "core.plan", "engine.core", "entrypoints.llm"} <= modules


# ---- the checker itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("kv.pool", "import vllm.scheduler.scheduler", "stands right of kv"),
        ("kv.pool", "from vllm import scheduler", "stands right of kv"),
        ("kv.pool", "from ..engine import core", "stands right of kv"),
        ("kv.evict.lru", "from ...engine.core import EngineCore", "stands right of kv"),
        ("engine.core", "from vllm.worker.runner import ModelRunner", "siblings"),
        ("engine.core", "def f():\n    import vllm.worker.runner", "siblings"),
        ("core.plan", "from vllm.config import EngineArgs", "stands right of core"),
        ("sampling_params", "from vllm.config import EngineArgs", "stands right of core"),
        ("observe.stats", "import vllm.kernels", "siblings"),
        ("kv.manager", "from vllm.kvstore import api", "only kv.tiers.shared"),
        ("kv.manager", "from vllm.utils import FlexibleArgumentParser", "a door for users"),
        ("engine.core", "from vllm import LLM", "a door for users"),
        ("attic.things", "from vllm.core import plan", "no room"),
        ("entrypoints.cli.sim", "import vllm.simulator.run", "inside the function"),
        ("engine.core", "def f():\n    import vllm.prefixlab", "only entrypoints"),
        ("simulator.run", "from vllm.worker.runner import ModelRunner", "may import only"),
        ("prefixlab.replay", "from vllm.kv.manager import KVManager", "may import only"),
        ("prefixlab.replay", "from vllm.kv import manager", "may import only"),
        ("kv.pool", "import torch", "free of torch"),
        ("scheduler.order", "def f():\n    from torch import nn", "free of torch"),
        ("worker.runner", "import pickle", "pickle"),
        ("worker.runner", "from marshal import loads", "marshal"),
        ("worker.runner", "import torch\ntorch.load('x')", "torch.load"),
        ("worker.runner", "from torch import load", "torch.load"),
        ("config.flags", "import yaml\nyaml.load('x')", "yaml.load"),
        ("core.plan", "eval('1')", "eval"),
        ("core.plan", "exec('1')", "exec"),
        ("core.plan", "import numpy as np\nnp.load('x', allow_pickle=True)", "allow_pickle"),
        ("engine.process", "socket.recv_pyobj()", "recv_pyobj"),
    ],
)
def test_the_checker_sees(module, source, says):
    found = faults(source, module)
    assert len(found) == 1, found
    line, why = found[0]
    assert line == source.count("\n") + 1
    assert says in why


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("kv.arena", "import torch"),
        ("kv.manager", "from vllm.core.plan import StepPlan\nfrom vllm.kv import pool"),
        ("kv.tiers.shared", "from vllm.kvstore.client import Client"),
        ("engine.core", "from vllm.scheduler.scheduler import Scheduler"),
        ("entrypoints.cli.sim", "def main():\n    from vllm.simulator import run"),
        ("entrypoints.cli.bench", "from vllm import LLM"),
        ("simulator.run", "from vllm.engine.core import EngineCore\nimport vllm.sampling_params"),
        ("prefixlab.replay", "from vllm.kv.evict import POLICIES\nfrom vllm.kv import lineage"),
        ("worker.runner", "import torch\nmodel.eval()\ntorch.compile(model)"),
        ("config.flags", "import yaml\nyaml.safe_load('x')"),
        ("utils", "from vllm.config.flags import FlexibleArgumentParser"),
    ],
)
def test_the_checker_lets_pass(module, source):
    assert faults(source, module) == []


# ---- at run time, through other people's imports too ------------------------------------------


def light_modules() -> list[str]:
    names = ["vllm.engine.async_llm", "vllm.scheduler.scheduler", "vllm.kv.manager"]
    folder = ROOT / "vllm" / "entrypoints" / "openai"
    names += sorted(f"vllm.{module_of(p)}" for p in folder.glob("*.py") if p.stem != "__init__")
    names += ["vllm.entrypoints.async_llm", "vllm.entrypoints.llm", "vllm.entrypoints.cli.main"]
    names += [f"vllm.{room}" for room in sorted(TORCH_FREE)]
    return [name for name in names if importlib.util.find_spec(name) is not None]


def test_the_front_end_loads_no_torch():
    """One process imports them one by one, and tells which of them brought something heavy in."""
    script = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = sorted({"torch", "transformers"} & set(sys.modules))
    if heavy:
        sys.exit(f"importing {name} loads {', '.join(heavy)}")
"""
    run = subprocess.run(
        [sys.executable, "-c", script, *light_modules()],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
