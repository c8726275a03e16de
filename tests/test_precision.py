"""`precision`: rounded factors of products on a GPU; refused on the CPU, and left behind when a model comes to one."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from test_parity import assert_near, data, make_engine, make_reference, parameters_for, two_layers
from tolerances import SPACING, rounded_bound

import fastsae
from fastsae import Config, Engine, LayerConfig, SparseAutoencoder
from fastsae import config as options
from fastsae.reference import Layered

LOW = [precision for precision in options.PRECISIONS if precision != "full"]


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
@pytest.mark.parametrize("precision", LOW)
def test_the_cpu_refuses_low_precision(precision: str, device: str) -> None:
    if device == "auto" and len(fastsae.devices()) > 1:
        pytest.skip("device='auto' may be the GPU here")
    with pytest.raises(fastsae.DeviceError, match=f"device='{device}'.*precision='full'"):
        Engine(two_layers(precision=precision), device)
    sae = SparseAutoencoder(2, precision=precision, device=device, max_epochs=1)
    with pytest.raises(fastsae.DeviceError, match="precision='full'"):
        sae.fit(np.eye(3))
    assert not hasattr(sae, "components_")
    sae.set_params(precision="full").fit(np.eye(3))


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
    sae._engine.config = dataclasses.replace(sae._engine.config, precision=precision)
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


# --- what it does on a GPU ---


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


SHAPES: list[Any] = [(100, 64, 25), (256, 784, 196), (64, 256, 512), (1, 17, 9)]
SHAPES.append(pytest.param(33, 65, 129, marks=pytest.mark.gpu_sanitize))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(("rows", "d", "h"), SHAPES)
def test_low_precision_is_near(rows: int, d: int, h: int, precision: str, cuda: str) -> None:
    config = two_layers("sigmoid", "kl", d=d, h=h, precision=precision, optimizer="momentum")
    parameters, X = parameters_for(config), data(rows, d)
    engine = make_engine(config, parameters, cuda)
    exact, low = make_reference(config, parameters, "float64"), twin(config, parameters)

    def check(name: str, actual: Any, exactly: Any, roundedly: Any) -> None:
        difference = np.abs(np.asarray(actual, np.float64) - exactly).max()
        allowed = rounded_bound(exactly, roundedly, precision)
        assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"

    check("encode", engine.encode(X), exact.encode(X), low.encode(X))
    check("reconstruct", engine.reconstruct(X), exact.reconstruct(X), low.reconstruct(X))
    check("score", engine.score(X), exact.row_losses(X), low.row_losses(X))
    parts = engine.gradient(X)
    exact_parts, exact_gradients = exact.value_and_gradient(X)
    low_parts, low_gradients = low.value_and_gradient(X)
    check("loss", parts["loss"], exact_parts["loss"], low_parts["loss"])
    for name, value in exact_gradients.items():
        check(name, engine.get("gradient." + name), value, low_gradients[name])
    for _ in range(3):
        for each in (engine, exact, low):
            each.step(X)
    for name, value in exact.parameters.items():
        check(name, engine.get(name), value, low.parameters[name])


@pytest.mark.parametrize("precision", LOW)
def test_low_precision_is_not_ignored(precision: str, cuda: str) -> None:
    """Its error is of its own size, and not that of float32."""
    config = Config(256, (LayerConfig(128, penalty="kl"), LayerConfig(256)), precision=precision)
    parameters, X = parameters_for(config), data(192, 256)
    engine = make_engine(config, parameters, cuda)
    exact = make_reference(config, parameters, "float64").encode(X)
    error = np.abs(engine.encode(X) - exact).max()
    assert error > SPACING[precision] / 64 * np.abs(exact).max()


@pytest.mark.parametrize("precision", LOW)
def test_shadows_follow_their_tensors(precision: str, cuda: str) -> None:
    """Parameters that are set, steps that are taken and rows that come are all seen by the next product."""
    config = two_layers("sigmoid", "kl", d=65, h=33, precision=precision)
    parameters = parameters_for(config)
    engine = make_engine(config, parameters_for(config, 1), cuda)
    for seed in range(3):
        engine.step(data(40, 65, seed))
    moved = engine.get_parameters()
    np.testing.assert_array_equal(engine.encode(data(40, 65)), make_engine(config, moved, cuda).encode(data(40, 65)))
    engine.set_parameters(parameters)
    np.testing.assert_array_equal(
        engine.reconstruct(data(90, 65)), make_engine(config, parameters, cuda).reconstruct(data(90, 65))
    )


def test_full_precision_is_the_default(cuda: str) -> None:
    config = two_layers("sigmoid", "kl", d=256, h=128)
    parameters, X = parameters_for(config), data(64, 256)
    exact, plain = (make_reference(config, parameters, dtype).encode(X) for dtype in ("float64", "float32"))
    assert_near("encode", make_engine(config, parameters, cuda).encode(X), exact, plain, "float32")
