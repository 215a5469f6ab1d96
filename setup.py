"""Builds the C++: the kernels, `vllm/_cpu.so`, and the shared store, `vllm/_kvstore.so`; all else
about the package is in pyproject.toml.

The CMakeLists.txt are the recipes, this only runs them. Both are optional: without CMake or a
compiler the package installs without them, runs on the reference kernels and has no shared store.
The kernels need torch, the store does not. Torch is not a build requirement, since an isolated
build would download it a second time; install with `--no-build-isolation` once torch is there.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def tool(name: str) -> str | None:
    """A program of the environment that builds, else of the machine."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def folder(module: str) -> Path | None:
    """Where a package is installed."""
    spec = importlib.util.find_spec(module)
    return Path(next(iter(spec.submodule_search_locations))) if spec else None


class Recipe:
    """A CMake project, the library that it makes, and the package that it needs here."""

    def __init__(self, source: str, makes: str, needs: str, options: list[str]) -> None:
        self.source = ROOT / source
        self.needs = needs
        self.makes = makes
        self.options = options
        # Kept between installations: what has not changed is not compiled.
        self.build = ROOT / "build" / Path(makes).stem.lstrip("_")

    def missing(self) -> str | None:
        if not tool("cmake"):
            return "there is no cmake"
        if folder(self.needs) is None:
            return f"{self.needs} is not installed where this is built (use --no-build-isolation)"
        return None

    def run(self, target: Path) -> str | None:
        """Build and copy to `target`'s folder; the reason if that fails."""
        ninja = tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        words = {"needs": folder(self.needs), "build": self.build, "python": sys.executable}
        options = [option.format(**words) for option in self.options]
        configure = [
            *(tool("cmake"), "-S", str(self.source), "-B", str(self.build)),
            *(*generator, *options),
        ]
        if subprocess.run(configure).returncode:
            # What an older cmake or compiler left behind may be why: once more from nothing.
            shutil.rmtree(self.build, ignore_errors=True)
            if subprocess.run(configure).returncode:
                return "cmake found no working compiler (its output is above)"
        if subprocess.run([tool("cmake"), "--build", str(self.build), "--parallel"]).returncode:
            return "it does not compile (the compiler's output is above)"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Aside and renamed: a process that has the old library mapped keeps it.
        aside = target.with_suffix(".new")
        shutil.copy2(self.build / self.makes, aside)
        aside.replace(target)
        return None


RECIPES = {
    "vllm._cpu": Recipe(".", "_cpu.so", "torch", ["-DTORCH_DIR={needs}", "-DOUTPUT_DIR={build}"]),
    "vllm._kvstore": Recipe(
        "csrc/kvstore",
        "_kvstore.so",
        "nanobind",
        [
            "-DKVSTORE_PYTHON=ON",
            "-DKVSTORE_TESTS=OFF",
            "-DPython_EXECUTABLE={python}",
            "-Dnanobind_DIR={needs}/cmake",
        ],
    ),
}


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # no Python version in its name

    def build_extension(self, ext: Extension) -> None:
        recipe = RECIPES[ext.name]
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        reason = recipe.missing() or recipe.run(target)
        if reason:
            print(f"vllm is installed without {ext.name}: {reason}", file=sys.stderr)


# optional: an extension that was not made is not missed.
setup(
    ext_modules=[Extension(name, sources=[], optional=True) for name in RECIPES],
    cmdclass={"build_ext": CMakeBuild},
)
