"""`precision`: rounded factors of products, refused and left behind where a device has none."""

from __future__ import annotations

import dataclasses
import pickle
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEVICES
from sklearn.base import clone
from test_determinism import SHAPES as CUT_SHAPES
from test_determinism import THREADS, bits
from test_engine import python
from test_parity import assert_near, data, make_engine, make_reference, parameters_for, single, two_layers
from tolerances import SPACING, rounded_bound

import fastsae
from fastsae import Config, Engine, LayerConfig, SparseAutoencoder, TopKEncoder, _core
from fastsae import config as options
from fastsae.reference import Layered

LOW = [precision for precision in options.PRECISIONS if precision != "full"]
ON_CPU = _core.bf16_unit() is not None
needs_bf16 = pytest.mark.skipif(not ON_CPU, reason="this processor has no products of bfloat16")


@pytest.fixture(params=[("cuda", "tf32"), ("cuda", "bf16"), ("cpu", "bf16")], ids="-".join, scope="session")
def low(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each device with a precision that it has."""
    device, precision = request.param
    if device not in DEVICES:
        pytest.skip(f"needs a GPU: {fastsae.cuda_unavailable_reason()}")
    if device == "cpu" and not ON_CPU:
        pytest.skip("this processor has no products of bfloat16")
    return device, precision


def test_the_tolerances_know_every_precision() -> None:
    assert set(SPACING) == set(LOW)


# --- the option ---


@pytest.mark.parametrize("precision", ["", "fp32", "BF16", "half", None, 16, True])
def test_unknown_precisions_are_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match="precision: expected one of 'full', 'tf32', 'bf16'"):
        two_layers(precision=precision).validate()
    with pytest.raises(ValueError, match="precision: expected one of 'full', 'tf32', 'bf16'"):
        SparseAutoencoder(2, precision=precision, max_epochs=1).fit(np.eye(3))


@pytest.mark.parametrize("precision", LOW)
def test_low_precision_needs_float32(precision: str) -> None:
    two_layers(precision=precision).validate()
    with pytest.raises(ValueError, match=f"precision='{precision}' needs dtype='float32', got 'float64'"):
        two_layers(precision=precision, dtype="float64").validate()
    with pytest.raises(ValueError, match=f"precision='{precision}' needs dtype='float32', got 'float64'"):
        SparseAutoencoder(2, precision=precision, dtype="float64", max_epochs=1).fit(np.eye(3))


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize("precision", ["tf32"] if ON_CPU else LOW)
def test_the_cpu_refuses_what_it_lacks(precision: str, device: str) -> None:
    if device == "auto" and len(fastsae.devices()) > 1:
        pytest.skip("device='auto' may be the GPU here")
    with pytest.raises(fastsae.DeviceError, match=f"device='{device}'.*precision='full'.*'{precision}'"):
        Engine(two_layers(precision=precision), device)
    sae = SparseAutoencoder(2, precision=precision, device=device, max_epochs=1)
    with pytest.raises(fastsae.DeviceError, match="precision='full'"):
        sae.fit(np.eye(3))
    assert not hasattr(sae, "components_")
    sae.set_params(precision="full").fit(np.eye(3))


def test_the_cpu_has_bf16_where_the_processor_has() -> None:
    if not Path("/proc/cpuinfo").exists() or platform.machine() != "x86_64":
        pytest.skip("asks Linux what an x86-64 processor has")
    flags = set(Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split())
    expected: set[str | None] = {None}
    if _core.isa() == "avx512" and "avx512_bf16" in flags:
        expected = {"avx512_bf16"}
        if {"amx_tile", "amx_bf16"} <= flags:
            expected.add("amx")  # unless the system refuses the tiles
    assert _core.bf16_unit() in expected


REFUSED = """
import json, pickle
import numpy as np, fastsae
from fastsae import _core, Config, Engine, LayerConfig
assert _core.bf16_unit() is None
try:
    Engine(Config(2, (LayerConfig(2),), precision="bf16"), "cpu")
except fastsae.DeviceError as error:
    print(error)
sae = pickle.load(open(FILE, "rb"))
assert (sae.device, sae.precision, sae._engine.config.precision) == ("auto", "full", "full")
sae = fastsae.load(FILE + ".safetensors")
assert (sae.device, sae.precision, sae._engine.config.precision) == ("auto", "full", "full")
sae.partial_fit(np.eye(6)[:, :6])
"""


@needs_bf16
def test_a_lower_instruction_set_turns_it_off(tmp_path: Path) -> None:
    """A model with bf16 comes to such a processor as one without."""
    sae = SparseAutoencoder(3, max_epochs=1, device="cpu", precision="bf16", verbose=False).fit(X)
    assert pickle.loads(pickle.dumps(sae)).precision == "bf16"
    (tmp_path / "model").write_bytes(pickle.dumps(sae))
    sae.save(tmp_path / "model.safetensors")
    assert fastsae.load(tmp_path / "model.safetensors").precision == "bf16"
    done = python(f"FILE = {str(tmp_path / 'model')!r}\n{REFUSED}", FASTSAE_ISA="avx2")
    assert done.returncode == 0, done.stderr
    assert "precision='bf16' needs AVX512_BF16" in done.stdout
    assert "FASTSAE_ISA" in done.stdout


def test_the_option_goes_its_way() -> None:
    config = two_layers(precision="bf16")
    assert config.to_dict()["precision"] == "bf16"
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({key: v for key, v in config.to_dict().items() if key != "precision"}).precision == "full"
    sae = SparseAutoencoder(3, precision="tf32")
    assert clone(sae).get_params()["precision"] == "tf32"
    assert sae._config(4).precision == "tf32"
    assert SparseAutoencoder()._config(4).precision == "full"


# --- models that come from a GPU to a machine without it ---

X = np.random.default_rng(0).random((40, 6), dtype=np.float32)


def of_a_gpu(precision: str) -> SparseAutoencoder:
    """A model as a GPU that no machine has would have left it."""
    sae = SparseAutoencoder(3, max_epochs=2, batch_size=8, random_state=0, verbose=False).fit(X)
    sae.set_params(device="cuda:999", precision=precision)
    sae._engine._config = dataclasses.replace(sae._engine.config, precision=precision)
    sae._engine.device = "cuda:999"
    return sae


def same(loaded: SparseAutoencoder, sae: SparseAutoencoder) -> None:
    """The same model on another device, which goes on learning there."""
    assert (loaded.device, loaded.precision) == ("auto", "full")
    assert (loaded._engine.device, loaded._engine.config.precision) == ("auto", "full")
    for name in sae._engine.state_names():
        np.testing.assert_array_equal(loaded._engine.get(name), sae._engine.get(name))
    np.testing.assert_array_equal(loaded.transform(X), sae.transform(X))
    assert loaded.n_iter_ == 2
    loaded.set_params(max_epochs=3).resume(X)
    assert loaded.n_iter_ == 3
    loaded.partial_fit(X)
    clone(loaded).fit(X)


@pytest.mark.parametrize("precision", options.PRECISIONS)
def test_a_checkpoint_of_a_gpu_loads_anywhere(precision: str, tmp_path: Path) -> None:
    sae = of_a_gpu(precision)
    sae.save(tmp_path / "model.safetensors")
    same(fastsae.load(tmp_path / "model.safetensors"), sae)


@pytest.mark.parametrize("precision", options.PRECISIONS)
def test_a_pickle_of_a_gpu_loads_anywhere(precision: str) -> None:
    sae = of_a_gpu(precision)
    same(pickle.loads(pickle.dumps(sae)), sae)
    engine = pickle.loads(pickle.dumps(sae._engine))
    assert (engine.device, engine.config.precision) == ("auto", "full")


def test_a_pickle_keeps_a_device_that_is_here() -> None:
    sae = SparseAutoencoder(3, max_epochs=1, random_state=0, device="cpu", verbose=False).fit(X)
    copy = pickle.loads(pickle.dumps(sae))
    assert (copy.device, copy._engine.device, copy.precision) == ("cpu", "cpu", "full")
    unfitted = pickle.loads(pickle.dumps(SparseAutoencoder(3, device="cuda:999", precision="bf16")))
    assert (unfitted.device, unfitted.precision) == ("cuda:999", "bf16")


# --- what it does ---


def rounded(a: np.ndarray, precision: str) -> np.ndarray:
    """float32 numbers rounded to nearest, ties to even, to the mantissa that a tensor core reads."""
    drop = {"tf32": 13, "bf16": 16}[precision]
    bits = np.ascontiguousarray(a, np.float32).view(np.uint32).astype(np.uint64)
    bits += (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
    return (bits >> drop << drop).astype(np.uint32).view(np.float32)


class RoundedFactors(np.ndarray):
    """float32 whose matrix products round both factors first."""

    precision: str = "full"

    def __array_finalize__(self, source: object) -> None:
        self.precision = getattr(source, "precision", "full")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **rest: Any) -> Any:
        def plainly(values: Any) -> list[Any]:
            return [np.asarray(value) if isinstance(value, RoundedFactors) else value for value in values]

        plain = plainly(inputs)
        if "out" in rest:
            rest["out"] = tuple(plainly(rest["out"]))
        # The products with a vector are sums over rows, which every device takes in full.
        if ufunc is np.matmul and all(np.ndim(value) == 2 for value in plain):
            plain = [rounded(value, self.precision) for value in plain]
        result = getattr(ufunc, method)(*plain, **rest)
        return with_rounded_factors(result, self.precision) if isinstance(result, np.ndarray) else result


def with_rounded_factors(a: np.ndarray, precision: str) -> RoundedFactors:
    view = np.asarray(a).view(RoundedFactors)
    view.precision = precision
    return view


def twin(config: Config, parameters: dict[str, np.ndarray]) -> Layered:
    """The reference in float32 whose products round their factors."""
    reference = make_reference(config, parameters, "float32")
    reference.parameters = {
        name: with_rounded_factors(value, config.precision) for name, value in reference.parameters.items()
    }
    return reference


def test_rounding_is_to_nearest_even() -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-9, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(rounded(values, "bf16"), [1, 1 + 2**-6, 1 + 2**-7, -1, 0, 3])
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-10], np.float32)
    np.testing.assert_array_equal(rounded(values, "tf32"), [1, 1 + 2**-9, 1 + 2**-10])


@pytest.mark.parametrize("precision", LOW)
def test_the_twin_rounds_its_factors(precision: str) -> None:
    """And only them: between the error of float32 and that of the bound."""
    config = two_layers("sigmoid", "kl", d=96, h=64, precision=precision)
    parameters, X = parameters_for(config), data(80, 96)
    exact = make_reference(config, parameters, "float64").value_and_gradient(X)[1]
    plain = make_reference(config, parameters, "float32").value_and_gradient(X)[1]
    low = twin(config, parameters).value_and_gradient(X)[1]
    for name, value in exact.items():
        drift = np.abs(np.asarray(low[name]) - value).max()
        assert drift > 4 * np.abs(plain[name] - value).max(), name
        assert drift < SPACING[precision] * np.abs(value).max(), name


SHAPES: list[Any] = [(100, 64, 25), (256, 784, 196), (64, 256, 512), (1, 17, 9), (50, 1, 3), (1, 1, 1)]
SHAPES.append(pytest.param(33, 65, 129, marks=pytest.mark.gpu_sanitize))


@pytest.mark.parametrize(("rows", "d", "h"), SHAPES)
def test_low_precision_is_near(rows: int, d: int, h: int, low: tuple[str, str]) -> None:
    device, precision = low
    config = two_layers("sigmoid", "kl", d=d, h=h, precision=precision, optimizer="momentum")
    parameters, X = parameters_for(config), data(rows, d)
    engine = make_engine(config, parameters, device)
    exact, rounding = make_reference(config, parameters, "float64"), twin(config, parameters)

    def check(name: str, actual: Any, exactly: Any, roundedly: Any) -> None:
        difference = np.abs(np.asarray(actual, np.float64) - exactly).max()
        allowed = rounded_bound(exactly, roundedly, precision)
        assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"

    check("encode", engine.encode(X), exact.encode(X), rounding.encode(X))
    check("reconstruct", engine.reconstruct(X), exact.reconstruct(X), rounding.reconstruct(X))
    check("score", engine.score(X), exact.row_losses(X), rounding.row_losses(X))
    parts = engine.gradient(X)
    exact_parts, exact_gradients = exact.value_and_gradient(X)
    low_parts, low_gradients = rounding.value_and_gradient(X)
    check("loss", parts["loss"], exact_parts["loss"], low_parts["loss"])
    for name, value in exact_gradients.items():
        check(name, engine.get("gradient." + name), value, low_gradients[name])
    for _ in range(3):
        for each in (engine, exact, rounding):
            each.step(X)
    for name, value in exact.parameters.items():
        check(name, engine.get(name), value, rounding.parameters[name])


def test_low_precision_is_not_ignored(low: tuple[str, str]) -> None:
    """Its error is of its own size, and not that of float32."""
    device, precision = low
    config = Config(256, (LayerConfig(128, penalty="kl"), LayerConfig(256)), precision=precision)
    parameters, X = parameters_for(config), data(192, 256)
    engine = make_engine(config, parameters, device)
    exact = make_reference(config, parameters, "float64").encode(X)
    error = np.abs(engine.encode(X) - exact).max()
    assert error > SPACING[precision] / 64 * np.abs(exact).max()


def test_shadows_follow_their_tensors(low: tuple[str, str]) -> None:
    """Parameters that are set, steps that are taken and rows that come are all seen by the next product."""
    device, precision = low
    config = two_layers("sigmoid", "kl", d=65, h=33, precision=precision)
    parameters = parameters_for(config)
    engine = make_engine(config, parameters_for(config, 1), device)
    for seed in range(3):
        engine.step(data(40, 65, seed))
    moved = engine.get_parameters()
    np.testing.assert_array_equal(engine.encode(data(40, 65)), make_engine(config, moved, device).encode(data(40, 65)))
    engine.set_parameters(parameters)
    np.testing.assert_array_equal(
        engine.reconstruct(data(90, 65)), make_engine(config, parameters, device).reconstruct(data(90, 65))
    )


def test_full_precision_is_the_default(device: str) -> None:
    config = two_layers("sigmoid", "kl", d=256, h=128)
    parameters, X = parameters_for(config), data(64, 256)
    exact, plain = (make_reference(config, parameters, dtype).encode(X) for dtype in ("float64", "float32"))
    assert_near("encode", make_engine(config, parameters, device).encode(X), exact, plain, "float32")


# --- what it does on the CPU ---


@needs_bf16
def test_the_cpu_rounds_to_nearest_even() -> None:
    """Each factor in turn, bit for bit: times 1, nothing else is rounded."""
    random = np.random.default_rng(0)
    values = (random.normal(size=2000) * 10.0 ** random.integers(-30, 30, 2000)).astype(np.float32)
    ties = np.float32(1) + np.arange(64, dtype=np.float32) * np.float32(2**-8)
    values = np.concatenate([values, ties, -ties, [0, np.finfo(np.float32).max]]).astype(np.float32)
    engine = Engine(Config(1, (LayerConfig(len(values), "identity"), LayerConfig(1)), precision="bf16"), "cpu")
    engine.set("W1", values[:, None])
    np.testing.assert_array_equal(engine.encode(np.ones((1, 1)))[0], rounded(values, "bf16"))
    engine = Engine(Config(1, (LayerConfig(1, "identity"), LayerConfig(1)), precision="bf16"), "cpu")
    engine.set("W1", np.ones((1, 1)))
    np.testing.assert_array_equal(engine.encode(values[:, None])[:, 0], rounded(values, "bf16"))


@needs_bf16
@pytest.mark.parametrize("shape", CUT_SHAPES, ids=str)
def test_bits_on_the_cpu_do_not_depend_on_threads(shape: tuple[int, int, int], threads: None) -> None:
    d, h, rows = shape
    config = two_layers("sigmoid", "kl", d=d, h=h, precision="bf16")
    X, results = data(2 * rows, d), []
    for count in THREADS:
        fastsae.set_num_threads(count)
        engine = make_engine(config, parameters_for(config), "cpu")
        for _ in range(5):
            engine.run_epoch(X, None, rows)
        results.append((bits(engine), engine.evaluate(X), engine.reconstruct(X).tobytes()))
    assert all(result == results[0] for result in results[1:])


@needs_bf16
def test_training_in_bf16_follows_the_cost() -> None:
    """50 steps: the twin's cost, and a cost near the exact one."""
    config = two_layers("sigmoid", "kl", d=65, h=33, precision="bf16", optimizer="adam", learning_rate=0.01)
    parameters, X = parameters_for(config), data(130, 65)
    engine = make_engine(config, parameters, "cpu")
    exact, rounding = make_reference(config, parameters, "float64"), twin(config, parameters)
    start = exact.value_and_gradient(X)[0]["loss"]
    for _ in range(50):
        for each in (engine, exact, rounding):
            each.step(X)
    end, low_end = (each.value_and_gradient(X)[0]["loss"] for each in (exact, rounding))
    assert end < 0.9 * start
    assert abs(engine.evaluate(X)["loss"] - end) <= rounded_bound(end, low_end, "bf16")


@needs_bf16
def test_parameters_keep_what_bf16_would_drop() -> None:
    """Steps far below the spacing of bfloat16 add up in the float32 parameters."""
    config = two_layers("sigmoid", "none", d=40, h=30, precision="bf16", optimizer="sgd", learning_rate=1e-5)
    parameters, X = parameters_for(config), data(50, 40)
    engine = make_engine(config, parameters, "cpu")
    for _ in range(3):
        before = engine.get("W1")
        engine.gradient(X)
        wanted = before - np.float32(1e-5) * engine.get("gradient.W1")
        engine.step(X)
        np.testing.assert_allclose(engine.get("W1"), wanted, rtol=2e-7)
        assert np.mean(engine.get("W1") != before) > 0.5
    assert np.mean(rounded(engine.get("W1"), "bf16") == rounded(single(parameters["W1"]), "bf16")) > 0.99


@needs_bf16
def test_nan_in_a_row_stays_in_it() -> None:
    config = two_layers("sigmoid", "none", d=40, h=30, precision="bf16")
    engine, X = make_engine(config, parameters_for(config), "cpu"), data(50, 40)
    clean = engine.encode(X)
    X[[3, 17], [5, 39]] = np.nan
    code = engine.encode(X)
    assert np.isnan(code[[3, 17]]).all()
    others = np.delete(np.arange(50), [3, 17])
    np.testing.assert_array_equal(code[others], clean[others])


@needs_bf16
@pytest.mark.parametrize("rows", [1, 3, 200])
def test_selection_in_bf16(rows: int, threads: None) -> None:
    """What it selects is the selection of rounded factors; whatever the threads, and other than in full precision."""
    random = np.random.default_rng(0)
    weight, X = (random.integers(-512, 513, shape).astype(np.float32) for shape in ((1300, 24), (rows, 24)))
    low = TopKEncoder(weight, None, 7, device="cpu", precision="bf16")
    # Integers of 8 bits after rounding: every sum is exact.
    values, indices = TopKEncoder(rounded(weight, "bf16"), None, 7, device="cpu").encode(rounded(X, "bf16"))
    for count in THREADS:
        fastsae.set_num_threads(count)
        got = low.encode(X)
        np.testing.assert_array_equal(got[0], values)
        np.testing.assert_array_equal(got[1], indices)
    assert (TopKEncoder(weight, None, 7, device="cpu").encode(X)[0] != values).any()
