"""What is installed, what importing it costs, and a short run that the sanitizers repeat."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastsae
from fastsae import Config, Engine, LayerConfig, _core

ROOT = Path(__file__).parents[1]
MAX_IMPORT_SECONDS = 0.2


def python(code: str) -> str:
    """What a new interpreter prints."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def test_import_is_cheap() -> None:
    code = "import numpy, time; start = time.perf_counter(); import fastsae; print(time.perf_counter() - start)"
    seconds = min(float(python(code)) for _ in range(5))
    assert seconds < MAX_IMPORT_SECONDS, f"import fastsae took {seconds:.3f} s over numpy's"


def test_import_leaves_heavy_packages_alone() -> None:
    loaded = python("import sys, fastsae; print(*sys.modules)").split()
    assert "fastsae._core" in loaded
    assert not {"sklearn", "scipy", "matplotlib", "pandas", "torch"} & {name.split(".")[0] for name in loaded}
    assert "sklearn" in python("import sys, fastsae; fastsae.SparseAutoencoder; print(*sys.modules)").split()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_blas_is_opened_on_first_use_only() -> None:
    code = """if True:
        import numpy as np
        import fastsae
        opened = lambda: "libfastsae_blas" in open("/proc/self/maps").read()
        engine = fastsae.Engine(fastsae.Config(2, (fastsae.LayerConfig(4), fastsae.LayerConfig(2))))
        before = opened()
        engine.encode(np.ones((2, 2), np.float32))
        print(before, opened())
    """
    if _core.blas() in ("OpenBLAS", "MKL"):
        assert python(code) == "False True"


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python, one after the other."""
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["sae"].n_steps_ == 20
    assert names["codes"].nnz <= 5000 * 32
    assert names["activations"].shape == (5000, 32)


def test_the_page_of_dictionaries_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "dictionaries.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["sae"].k == 8
    assert names["y"].shape == (20000, 10)


def test_public_names_exist() -> None:
    for name in fastsae.__all__:
        assert getattr(fastsae, name) is not None
    assert set(fastsae.__all__) <= set(dir(fastsae))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = fastsae.no_such_name


def test_version_is_the_projects() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert fastsae.__version__ == declared[1]


def installed_files() -> list[str]:
    """Paths of the installed package, or a skip where it runs from the source tree."""
    folder = Path(fastsae.__file__).parent
    try:
        files = importlib.metadata.files("fastsae") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    if not any(Path(str(path.locate())).resolve() == folder / "__init__.py" for path in files):
        pytest.skip("fastsae is not installed from a wheel")
    return [path.as_posix() for path in files if "__pycache__" not in path.parts]


def test_wheel_holds_what_it_should() -> None:
    files = [path for path in installed_files() if path.startswith("fastsae/")]
    for needed in ("py.typed", "_core.pyi", "__init__.py", "reference/__init__.py"):
        assert f"fastsae/{needed}" in files
    libraries = sorted(path for path in files if path.endswith(".so"))
    assert libraries[0].startswith("fastsae/_core.")
    expected = ["fastsae/libfastsae_blas.so"] if _core.blas() in ("OpenBLAS", "MKL") else []
    if fastsae.cuda_unavailable_reason() != "this build has no CUDA backend":
        expected.append("fastsae/libfastsae_cuda.so")
    assert libraries[1:] == expected
    if _core.blas() == "OpenBLAS":
        assert "fastsae/LICENSE.openblas.txt" in files
    assert any(path.endswith("licenses/LICENSE") for path in installed_files())
    stray = [path for path in files if not path.endswith((".py", ".pyi", ".so", "py.typed", "LICENSE.openblas.txt"))]
    assert not stray


def test_stub_is_that_of_the_module(tmp_path: Path) -> None:
    pytest.importorskip("pybind11_stubgen")
    subprocess.run([sys.executable, "-m", "pybind11_stubgen", "fastsae._core", "-o", str(tmp_path)], check=True)
    made = (tmp_path / "fastsae" / "_core.pyi").read_text()
    kept = (ROOT / "python" / "fastsae" / "_core.pyi").read_text()
    assert made == kept, "regenerate it: pybind11-stubgen fastsae._core -o python"


def small_engine(dtype: str = "float32") -> Engine:
    layers = (LayerConfig(12, penalty="kl"), LayerConfig(20, activation="identity"))
    engine = Engine(Config(20, layers, dtype=dtype, learning_rate=0.01))
    random = np.random.default_rng(0)
    for name in ("W1", "W2"):
        engine.set(name, random.normal(0, 0.1, engine.get(name).shape))
    return engine


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_engine_trains(dtype: str) -> None:
    X = np.random.default_rng(1).normal(size=(300, 20)).astype(dtype)
    engine = small_engine(dtype)
    before = engine.evaluate(X)["loss"]
    for _ in range(3):
        engine.run_epoch(X, order=np.arange(300)[::-1], batch_size=64)
    assert engine.evaluate(X)["loss"] < before
    assert engine.steps == 15
    copy = small_engine(dtype)
    for name in engine.names():
        copy.set(name, engine.get(name))
    np.testing.assert_array_equal(copy.encode(X), engine.encode(X))
    np.testing.assert_array_equal(copy.decode(copy.encode(X)), engine.reconstruct(X))
    assert engine.score(X).shape == (300,)


@pytest.mark.sanitize
def test_engine_reads_any_layout() -> None:
    X = np.random.default_rng(1).normal(size=(40, 60))
    engine = small_engine("float64")
    expected = engine.encode(np.ascontiguousarray(X[::2, 20:40]))
    for view in (X[::2, 20:40], np.asfortranarray(X)[::2, 20:40], X[::2, 20:40].astype(">f8")):
        np.testing.assert_array_equal(engine.encode(view), expected)
    assert engine.encode(X[:0, :20]).shape == (0, 12)


@pytest.mark.sanitize
def test_engine_survives_bad_input() -> None:
    engine = small_engine()
    X = np.ones((5, 20), np.float32)
    before = engine.encode(X)
    for bad in (X[:, :19], X[0], X.astype(object), X.astype(complex), np.full_like(X, np.nan)):
        with pytest.raises(ValueError, match="X"):
            engine.run_epoch(bad)
    with pytest.raises(ValueError, match="order"):
        engine.run_epoch(X, order=[0, 5])
    with pytest.raises(ValueError, match="order"):
        engine.run_epoch(X, order=[-1])
    with pytest.raises(ValueError, match="sample_weight"):
        engine.run_epoch(X, sample_weight=np.ones(4))
    with pytest.raises(ValueError, match="out"):
        engine.encode(X, out=np.empty((5, 11), np.float32))
    with pytest.raises(ValueError, match="W3"):
        engine.get("W3")
    with pytest.raises(ValueError, match="W1"):
        engine.set("W1", np.zeros((1, 1)))
    np.testing.assert_array_equal(engine.encode(X), before)
