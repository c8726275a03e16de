"""The rules of ARCHITECTURE.md that a compiler does not enforce."""

from __future__ import annotations

import ast
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastsae import _core

ROOT = Path(__file__).parents[1]
CPP = ROOT / "cpp"
CUDA = ROOT / "cuda"
PYTHON = ROOT / "python" / "fastsae"

# Each folder may include itself and what is right of it; a device includes backend and what is right of that.
LAYERS = ("bindings", "engine", "models", "backend", "kernels", "math", "core")
DEVICES = ("cpu", "cuda")
GENERATED = {"fastsae_blas_config.h": "cpu/blas.cpp", "fastsae_contract.h": "backend/plugin.h"}

# Files that may choose at compile time, and between what.
CONDITIONAL = {
    "core/host_device.h": "host or device compiler",
    "core/library.cpp": "RTLD_DEEPBIND, which not every system has and the sanitizers refuse",
    "core/random.h": "words as wide as the products of the host's vectors, or of the device",
    "cpu/bf16.cpp": "instruction sets of the processor",
    "cpu/cpu_backend.cpp": "large pages, which Linux has",
    "cpu/float_mode.h": "control register of the processor",
    "cpu/panels.cpp": "instruction sets of the processor",
    "cpu/levels.h": "instruction sets of the processor",
    "cpu/loops.cpp": "instruction sets of the processor",
    "cpu/pool.cpp": "CPU affinity, which Linux has",
    "cpu/select_filter.cpp": "instruction sets of the processor",
    "cuda/jobs.h": "a loop that the device compiler must not unroll",
    "cuda/recording.h": "CUDA 13 gave two functions of graphs more arguments",
    "cuda/team.h": "a block of the device, or one thread that plays it",
}
MACROS = {"FS_HD", "FS_UNROLL", "FS_NO_UNROLL", "FS_REQUIRE", "FS_CUDA"}

MAX_LINES = 400
LONG_FILES = {  # path: why it is one file
    "cpp/models/layered.cpp": "one step, read from top to bottom",
    "cuda/cuda_backend.cu": "one class, the device's side of the contract",
    "python/fastsae/config.py": "every option of a model and its training with its meaning",
    "python/fastsae/deep.py": "one class with its manual",
    "python/fastsae/dictionaries.py": "what all dictionaries share, with its manual",
    "python/fastsae/reference/layered.py": "one step in NumPy, read from top to bottom",
    "python/fastsae/base.py": "what all estimators share, with its manual",
    "python/fastsae/engine.py": "one class, whose docstrings are the manual of the low level",
    "python/fastsae/sparse_code.py": "every option of a dictionary with its meaning",
    "python/fastsae/trainer.py": "one loop with its state and its checks",
}


def sources(*folders: Path) -> list[Path]:
    kinds = {".h", ".cpp", ".cu", ".cuh", ".py"}
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in kinds)


def native() -> list[tuple[str, str]]:
    """Path from its root, as an include names it, and text of every native source."""
    inside = [(path.relative_to(CPP).as_posix(), path.read_text()) for path in sources(CPP)]
    return inside + [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in sources(CUDA)]


def may_include(file: str, header: str) -> bool:
    """The include rule."""
    layer, target = file.split("/")[0], header.split("/")[0] if "/" in header else "cuda"
    if target in DEVICES:
        return layer == target or (file == "backend/make_backend.cpp" and target == "cpu")
    first = "backend" if layer in DEVICES else layer
    return LAYERS.index(target) >= LAYERS.index(first)


def test_includes_go_one_way() -> None:
    seen = 0
    for file, text in native():
        for header in re.findall(r'^\s*#\s*include "([^"]+)"', text, re.MULTILINE):
            seen += 1
            assert GENERATED.get(header) == file or may_include(file, header), f"{file} must not include {header}"
    assert seen > 50


def test_every_header_is_used() -> None:
    text = "\n".join(text for _, text in native())
    for file, _ in native():
        if file.endswith((".h", ".cuh")):
            assert f'#include "{file.removeprefix("cuda/")}"' in text, f"nothing includes {file}"


def test_compile_time_choices_are_few() -> None:
    for file, text in native():
        if re.search(r"^\s*#\s*(if|ifdef|ifndef)\b", text, re.MULTILINE):
            assert file in CONDITIONAL, f"{file} chooses at compile time: give the reason in CONDITIONAL"
        for name in re.findall(r"^\s*#\s*define\s+(\w+)", text, re.MULTILINE):
            assert name in MACROS, f"{file} defines the macro {name}"


def test_libraries_are_opened_in_one_place() -> None:
    for file, text in native():
        if file != "core/library.cpp":
            assert not re.search(r"\bdl(open|sym|addr|close)\s*\(", text), f"{file}: use core/library.h"


def test_no_floating_point_atomics() -> None:
    for file, text in native():
        assert not re.search(r"atomic<\s*(float|double)\s*>|atomicAdd(?!\(to, 1u\))", text), file


def test_build_flags_are_the_same_for_every_file() -> None:
    # A template compiled in two files with different flags links to either one: SIGILL on old processors.
    files = [ROOT / "CMakeLists.txt", ROOT / "CMakePresets.json", ROOT / "pyproject.toml"]
    for path in files + sorted((ROOT / "cmake").glob("*")):
        flags = re.findall(r"-m(?:avx|arch|fma|sse)\S*|-ffast-math|-Ofast|-funsafe\S*", path.read_text())
        assert not flags, f"{path.name}: {flags}"


def kernel_structs() -> list[str]:
    structs = []
    for path in (CPP / "kernels").glob("*.h"):
        text = path.read_text()
        structs += re.findall(r"^struct (\w+) \{\n  using Scalar = ", text, re.MULTILINE)
        structs += re.findall(r"^struct (\w+) : (?:EachElement|SumsColumns)<", text, re.MULTILINE)
    return [name for name in structs if name not in ("EachElement", "SumsColumns")]  # what kernels begin with


def test_every_kernel_is_listed_and_used() -> None:
    listed = (CPP / "kernels" / "list.h").read_text()
    users = "\n".join(path.read_text() for path in sources(CPP / "models", CPP / "engine"))
    structs = kernel_structs()
    assert len(structs) >= 8
    for struct in structs:
        assert re.search(rf"\b{struct}\b", listed), f"{struct} is not in kernels/list.h"
        assert re.search(rf"\b{struct}\b", users), f"no model and no optimiser uses {struct}"


def test_every_formula_is_in_a_list() -> None:
    # The lists are what tests walk: a formula outside them would have no parity test.
    names = {name for group in _core.kernel_names().values() for name in group}
    for path in (CPP / "math").glob("*.h"):
        for name in re.findall(r'\bname = "(\w+)"', path.read_text()):
            assert name in names, f"math/{path.name}: {name!r} is in no list"


def test_files_are_short() -> None:
    # Tests are left out: they grow by cases.
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources(CPP, CUDA, PYTHON)
    }
    long = {path: lines for path, lines in lengths.items() if lines > MAX_LINES}
    assert set(long) <= set(LONG_FILES), f"split, or give the reason in LONG_FILES: {long}"
    assert set(LONG_FILES) <= set(lengths)


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_reference_is_independent_of_the_engine() -> None:
    for path in sources(PYTHON / "reference"):
        for name in imports_of(path):
            options = ("fastsae.config", "fastsae.optimizer", "fastsae.sparse_code")
            allowed = name.startswith(("fastsae.reference", *options)) or not name.startswith("fastsae")
            assert allowed, f"{path.name} imports {name}"
            assert name.split(".")[0] not in ("sklearn", "scipy", "torch"), f"{path.name} imports {name}"


def test_the_package_needs_nothing_outside_itself() -> None:
    declared = {"numpy", "sklearn", "scipy", "safetensors", "tqdm", "matplotlib"}
    declared |= {"typing_extensions"}  # for type checkers alone, which bring it
    for path in sources(PYTHON):
        text = path.read_text()
        assert "shared/" not in text, path.name
        assert "sys.path" not in text, path.name
        for name in imports_of(path):
            known = declared | {"fastsae"} | sys.stdlib_module_names
            assert name.split(".")[0] in known, f"{path.name} imports {name}"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instruction sets of x86-64")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
def test_vector_instructions_stay_in_their_wrappers() -> None:
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", _core.__file__], capture_output=True, text=True, check=True
    ).stdout
    function, wrappers, outside = "", set(), set()
    for line in listing.splitlines():
        if line.endswith(">:"):
            function = line.split("<", 1)[1][:-2]
        # Every AVX instruction begins with v; of the others that a compiler writes, none does.
        elif re.match(r"\s*[0-9a-f]+:\s+v", line):
            (wrappers if re.search(r"\d+run_avx(2|512)[IE]", function) else outside).add(function)
    assert len(wrappers) > 100, "the module has no symbols: was it stripped?"
    assert not outside, sorted(outside)[:5]
