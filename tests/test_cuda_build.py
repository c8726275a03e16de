"""What the compiled CUDA library is made of, read without a GPU: code for each architecture, and no spills."""

from __future__ import annotations

import collections
import ctypes
import functools
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fastsae import _core

ROOT = Path(__file__).parents[1]
LIBRARY = Path(str(_core.__file__)).with_name("libfastsae_cuda.so")

#: Libraries of the C and C++ run-time; everything else must be found at run time or not at all.
RUNTIME = {
    "libstdc++",
    "libgcc_s",
    "libc",
    "libm",
    "libpthread",
    "libdl",
    "librt",
    "ld-linux-x86-64",
    "ld-linux-aarch64",
}

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="this build has no CUDA backend")


def cuobjdump() -> str:
    """The tool of the toolkit, or that of the PyPI package nvidia-cuda-cuobjdump."""
    found = shutil.which("cuobjdump")
    try:
        files = importlib.metadata.files("nvidia-cuda-cuobjdump") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = found or next((str(path.locate()) for path in files if path.name == "cuobjdump"), None)
    if found is None:
        pytest.skip("needs cuobjdump: pip install nvidia-cuda-cuobjdump")
    return found


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def default_architectures() -> list[str]:
    """What cmake/cuda.cmake builds for where nobody says otherwise, e.g. "80-real"."""
    line = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES (.+)\)", (ROOT / "cmake" / "cuda.cmake").read_text())
    assert line is not None
    return line[1].split()


class Usage(NamedTuple):
    architecture: str
    kernel: str
    registers: int
    stack: int
    local: int


@functools.cache
def usages() -> list[Usage]:
    """Every kernel of every architecture with what it takes."""
    architecture = function = ""
    found = []
    for line in output(cuobjdump(), "--dump-resource-usage", LIBRARY).splitlines():
        if match := re.match(r"arch = sm_(\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            function = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", line):
            found.append(Usage(architecture, function, *map(int, match.groups())))
    if demangle := shutil.which("cu++filt") or shutil.which("c++filt"):
        names = subprocess.run(
            [demangle], input="\n".join(usage.kernel for usage in found), capture_output=True, text=True, check=True
        ).stdout.splitlines()
        found = [usage._replace(kernel=name) for usage, name in zip(found, names, strict=True)]
    return found


def test_every_architecture_has_all_code() -> None:
    """Each source file that holds kernels was compiled for each architecture, and for PTX where PTX was asked for."""
    listing = output(cuobjdump(), "--list-elf", LIBRARY) + output(cuobjdump(), "--list-ptx", LIBRARY)
    counts = collections.Counter(re.findall(r"\.sm_(\w+\.(?:cubin|ptx))", listing))
    wanted = {name.replace("-real", ".cubin").replace("-virtual", ".ptx") for name in default_architectures()}
    assert counts
    assert set(counts) <= wanted, "built for an architecture that cmake/cuda.cmake does not list"
    assert len(set(counts.values())) == 1, counts
    if os.environ.get("FASTSAE_ALL_ARCHITECTURES") == "1":
        assert set(counts) == wanted


def test_every_architecture_has_the_same_kernels() -> None:
    kernels = collections.defaultdict(set)
    for usage in usages():
        # A file's anonymous namespace carries a number of its own.
        kernels[usage.architecture].add(re.sub(r"_GLOBAL__N__\w{8}_|_\w{8}(?=\d+\w+_kernel)", "", usage.kernel))
    assert all(names == next(iter(kernels.values())) for names in kernels.values())
    assert len(next(iter(kernels.values()))) > 100


@pytest.mark.skipif(shutil.which("c++filt") is None and shutil.which("cu++filt") is None, reason="needs c++filt")
def test_kernels_keep_to_registers() -> None:
    """No local arrays, no spills: each is a trip to memory in the innermost place."""
    wrong = [usage for usage in usages() if usage.stack > 0 or usage.local > 0]
    assert not wrong, "\n".join(map(str, wrong))


def test_kernels_that_name_no_block_size_fit_any() -> None:
    """The compiler knows __launch_bounds__; a kernel without it must fit a block of 1024 threads."""
    unbounded = set()
    for path in sorted((ROOT / "cuda").iterdir()):
        for bounds, name in re.findall(
            r"__global__\s+void\s+(__launch_bounds__\([^)]*\)\s+)?(\w+)\(", path.read_text()
        ):
            if not bounds:
                unbounded.add(name)
    for usage in usages():
        if any(re.search(rf"\b{name}\b|\d{name}I?", usage.kernel) for name in unbounded):
            assert usage.registers <= 64, usage
    assert len(unbounded) < 20


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_it_loads_anywhere_and_shows_its_symbols() -> None:
    ctypes.CDLL(str(LIBRARY))  # without a driver too: the run-time is linked statically
    listing = output("nm", "-D", "--defined-only", LIBRARY)
    shown = sorted(line.split()[-1] for line in listing.splitlines())
    assert shown == ["fastsae_cuda_backend", "fastsae_cuda_blas", "fastsae_cuda_devices"]


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_only_the_run_time_is_linked() -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\.so", output("readelf", "-d", LIBRARY))
    assert "libc" in needed
    assert set(needed) <= RUNTIME


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="replaces a library by LD_LIBRARY_PATH")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_driver_that_answers_nothing_is_a_reason(tmp_path: Path) -> None:
    """The library is opened and asked where there is something that only looks like a driver."""
    subprocess.run(["cc", "-shared", "-x", "c", "/dev/null", "-o", tmp_path / "libcuda.so.1"], check=True)
    script = """if True:
        import fastsae
        reason = fastsae.cuda_unavailable_reason()
        try:
            fastsae.Engine(fastsae.Config(1, (fastsae.LayerConfig(1),)), "cuda")
        except fastsae.DeviceError as error:
            assert reason in str(error)
        opened = "libfastsae_cuda" in open("/proc/self/maps").read()
        print(fastsae.devices(), opened, reason)
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("['cpu'] True "), done.stdout
    assert "driver" in done.stdout.lower()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_the_ceilings_program_compiles(tmp_path: Path) -> None:
    """benchmarks/gpu.py builds it on the machine that it measures."""
    source = ROOT / "benchmarks" / "ceilings.cu"
    flags = ["-O3", "-std=c++20", "-arch=sm_90", "-Werror=all-warnings"]
    subprocess.run(["nvcc", *flags, "-o", tmp_path / "ceilings", source], check=True)
    done = subprocess.run([tmp_path / "ceilings"], capture_output=True, text=True, check=False)
    # Without a GPU it says so; with one it prints its figures, which gpu.py reads.
    assert done.returncode == 0 or "cuda" in done.stderr.lower(), done.stderr
