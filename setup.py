"""Builds the C++ kernels, `vllm/_cpu.so`; all else about the package is in pyproject.toml.

CMakeLists.txt is the recipe, this only runs it. The kernels are optional: without torch, CMake or a
compiler the package installs without them and runs on the reference kernels. Torch is not a build
requirement, since an isolated build would download it a second time; install with
`--no-build-isolation` once torch is there.
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
BUILD = ROOT / "build" / "cpu"  # kept between installations: what has not changed is not compiled


def tool(name: str) -> str | None:
    """A program of the environment that builds, else of the machine."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def missing() -> str | None:
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed where this is built (use --no-build-isolation)"
    return None if tool("cmake") else "there is no cmake"


class CMakeBuild(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # loaded by torch: no Python version in its name

    def build_extension(self, ext: Extension) -> None:
        reason = missing() or self.cmake(Path(self.get_ext_fullpath(ext.name)).resolve())
        if reason:
            notice = f"vllm is installed without its C++ kernels: {reason}"
            print(notice, file=sys.stderr)

    def cmake(self, target: Path) -> str | None:
        """Build and copy to `target`; the reason if that fails."""
        torch = importlib.util.find_spec("torch").submodule_search_locations[0]
        ninja = tool("ninja")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        paths = [f"-DTORCH_DIR={torch}", f"-DOUTPUT_DIR={BUILD}"]
        configure = [tool("cmake"), "-S", str(ROOT), "-B", str(BUILD), *generator, *paths]
        if subprocess.run(configure).returncode:
            # What an older cmake or compiler left behind may be why: once more from nothing.
            shutil.rmtree(BUILD, ignore_errors=True)
            if subprocess.run(configure).returncode:
                return "cmake found no working compiler (its output is above)"
        if subprocess.run([tool("cmake"), "--build", str(BUILD), "--parallel"]).returncode:
            return "they do not compile (the compiler's output is above)"
        target.parent.mkdir(parents=True, exist_ok=True)
        # Aside and renamed: a process that has the old library mapped keeps it.
        aside = target.with_suffix(".new")
        shutil.copy2(BUILD / "_cpu.so", aside)
        aside.replace(target)
        return None


# optional: an extension that was not made is not missed.
setup(
    ext_modules=[Extension("vllm._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
