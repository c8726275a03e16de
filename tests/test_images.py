"""The layers of images: the engine against the reference, and the reference against finite differences."""

from __future__ import annotations

import dataclasses
import math
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_parity import (
    N,
    alternate,
    assert_near,
    changes,
    check_gradient,
    check_outputs,
    check_training,
    data,
    make_engine,
    parameters_for,
    references,
    single,
    two_batches,
    weights_for,
)
from tolerances import FLOAT64, GOLDEN

import fastsae
from fastsae import (
    Config,
    ConvConfig,
    ConvTransposeConfig,
    Engine,
    LayerConfig,
    PoolConfig,
    ReshapeConfig,
    UnpoolConfig,
    UpsampleConfig,
)
from fastsae import config as options
from fastsae.layers import KINDS, Layer
from fastsae.reference import Layered

Shape = tuple[int, int, int]
KL: dict[str, Any] = {"activation": "tanh", "penalty": "kl", "beta": 0.3, "rho": 0.4}
LOG: dict[str, Any] = {"activation": "softplus", "penalty": "log", "beta": 0.2}
L1: dict[str, Any] = {"activation": "sigmoid", "penalty": "l1", "beta": 0.1}
OUT: dict[str, Any] = {"activation": "sigmoid"}


def model(shape: Shape, *layers: Layer, **rest: Any) -> Config:
    base = {"weight_decay": 0.01, "learning_rate": 0.01, "input_shape": shape}
    return Config(math.prod(shape), layers, **{**base, **rest})


def around(shape: Shape, *layers: Layer, **rest: Any) -> Config:
    """The layers before a dense output."""
    return model(shape, *layers, LayerConfig(math.prod(shape), "sigmoid"), **rest)


MODELS: dict[str, Callable[..., Config]] = {
    "conv": lambda **o: around((1, 5, 6), ConvConfig(3, **KL), **o),
    "conv of channels": lambda **o: around((3, 5, 4), ConvConfig(2, 2, **LOG), ConvConfig(3, 3, **KL), **o),
    "conv last": lambda **o: model((2, 5, 4), ConvConfig(3, 3, 1, 1, **L1), ConvConfig(2, 3, 1, 1, **OUT), **o),
    "conv transpose": lambda **o: model((1, 5, 6), ConvConfig(3, **KL), ConvTransposeConfig(1, **OUT), **o),
    "colours": lambda **o: model((3, 5, 6), ConvConfig(4, **L1), ConvTransposeConfig(3, **OUT), **o),
    "stride 2": lambda **o: model((2, 7, 5), ConvConfig(3, 3, 2, 1, **KL), ConvTransposeConfig(2, 3, 2, 1, **OUT), **o),
    "stride 2, even": lambda **o: model(
        (1, 8, 6), ConvConfig(3, 3, 2, 1, **LOG), ConvTransposeConfig(1, 3, 2, 1, 1, **OUT), **o
    ),
    "stride 3": lambda **o: model(
        (2, 8, 11), ConvConfig(2, 3, 3, **KL), ConvTransposeConfig(2, 3, 3, 0, 2, **OUT), **o
    ),
    "stride beyond the kernel": lambda **o: around(
        (2, 7, 4), ConvConfig(3, 2, 3, 1, **LOG), ConvTransposeConfig(2, 2, 3, 1, 2, **KL), **o
    ),
    "padding 2": lambda **o: around(
        (2, 4, 3), ConvConfig(3, 4, 2, 2, **KL), ConvTransposeConfig(2, 5, 2, 2, **LOG), **o
    ),
    "kernel 1": lambda **o: model((3, 4, 3), ConvConfig(5, 1, **KL), ConvTransposeConfig(3, 1, **OUT), **o),
    "kernel 1, stride 2": lambda **o: around((3, 4, 5), ConvConfig(5, 1, 2, **KL), **o),
    "kernel of the image": lambda **o: model((2, 3, 3), ConvConfig(4, 3, **KL), ConvTransposeConfig(2, 3, **OUT), **o),
    "maps of 1x1": lambda **o: model((5, 1, 1), ConvConfig(4, 1, **KL), ConvTransposeConfig(5, 1, **OUT), **o),
    "max pool": lambda **o: around((1, 7, 6), ConvConfig(3, 2, **KL), PoolConfig(2), **o),
    "mean pool": lambda **o: around((1, 7, 6), ConvConfig(3, 2, **LOG), PoolConfig(2, "mean"), **o),
    "pool 3": lambda **o: around((2, 7, 7), PoolConfig(3), ConvConfig(4, 2, **KL), **o),
    "unpool": lambda **o: model(
        (2, 8, 6), ConvConfig(3, 3, 1, 1, **KL), PoolConfig(2), UnpoolConfig(2), ConvConfig(2, 3, 1, 1, **OUT), **o
    ),
    "two pools": lambda **o: model(
        (1, 9, 9),
        *(ConvConfig(3, 2, **KL), PoolConfig(2), ConvConfig(4, 3, 1, 1, **LOG), PoolConfig(2)),
        *(UnpoolConfig(2), ConvConfig(3, 3, 1, 1, **L1), UnpoolConfig(2), ConvTransposeConfig(1, 2, **OUT)),
        **o,
    ),
    "mean unpool": lambda **o: model(
        (2, 9, 6),
        *(ConvConfig(3, 3, 1, 1, **KL), PoolConfig(3, "mean")),
        *(UnpoolConfig(3, "mean"), ConvTransposeConfig(2, 3, 1, 1, **OUT)),
        **o,
    ),
    "upsample": lambda **o: model(
        (1, 6, 6), ConvConfig(2, 2, **KL), PoolConfig(2), UpsampleConfig(2), ConvTransposeConfig(1, 3, **OUT), **o
    ),
    "all": lambda **o: model(
        (2, 7, 5),
        *(ConvConfig(3, 2, **KL), PoolConfig(2), LayerConfig(4, **LOG)),
        *(LayerConfig(18, **L1), ReshapeConfig((3, 3, 2)), UnpoolConfig(2), ConvTransposeConfig(2, 2, **OUT)),
        **o,
    ),
    "reshape first": lambda **o: model(
        (24, 1, 1), ReshapeConfig((2, 4, 3)), ConvConfig(3, 2, **KL), ReshapeConfig((18, 1, 1)), LayerConfig(24), **o
    ),
    "maps as other maps": lambda **o: around(
        (2, 4, 4), ConvConfig(4, 3, **KL), ReshapeConfig((2, 2, 4)), ConvConfig(3, 2, **LOG), **o
    ),
    "reshapes in a row": lambda **o: model(
        (1, 4, 6),
        LayerConfig(8, **KL),
        ReshapeConfig((2, 2, 2)),
        ReshapeConfig((1, 2, 4)),
        ConvTransposeConfig(1, 3, **OUT),
        **o,
    ),
    "tied": lambda **o: model(
        (2, 7, 5), ConvConfig(3, 3, 2, 1, **KL), ConvTransposeConfig(2, 3, 2, 1, **OUT), tied=True, **o
    ),
    "tied, with pools": lambda **o: model(
        (1, 9, 7),
        *(ConvConfig(3, 2, **KL), PoolConfig(2), ReshapeConfig((36, 1, 1)), LayerConfig(5, **LOG)),
        *(LayerConfig(36, **L1), ReshapeConfig((3, 4, 3)), UnpoolConfig(2), ConvTransposeConfig(1, 2, **OUT)),
        **{"tied": True, **o},
    ),
}


def spread_parameters(config: Config) -> dict[str, np.ndarray]:
    """Drawn so that no two pixels of a window are nearly equal: where maxima change places the cost may jump."""
    return {name: single(2 * p) for name, p in parameters_for(config).items()}


def decodes(config: Config) -> bool:
    return not any(0 < pool <= config.code_layer < number for number, pool in config.places_of.items())


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_gradient(name: str, dtype: str, device: str) -> None:
    config = MODELS[name](dtype=dtype)
    check_gradient(config, device)
    check_gradient(config, device, n=1)
    check_gradient(config, device, weighted=True, full_batch_rows=4)
    check_gradient(dataclasses.replace(config, rho_hat="ema"), device, weighted=True, full_batch_rows=3)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("number", range(len(MODELS)), ids=list(MODELS).__getitem__)
def test_training(number: int, dtype: str, device: str) -> None:
    """50 steps; the optimisers, losses and averages take turns."""
    config = list(MODELS.values())[number](
        dtype=dtype,
        optimizer=options.OPTIMIZERS[number % 5],
        rho_hat=options.RHO_HATS[number % 3],
        loss=options.LOSSES[number % 2],
        loss_reduction=options.LOSS_REDUCTIONS[number // 2 % 3],
    )
    check_training(config, device, weighted=number % 2 == 1, full_batch_rows=0 if number % 4 else 5)


@pytest.mark.parametrize("name", MODELS)
def test_finite_differences(name: str, device: str) -> None:
    """The engine's gradient against its own cost, and the reference's against its own."""
    config = MODELS[name](dtype="float64", weight_decay=0.02)
    engine = make_engine(config, spread_parameters(config), device)
    X, w = data(2, config.n_features, 3), weights_for(2)
    assert fastsae.check_gradient(engine, X, sample_weight=w, n_coordinates=25) < 1e-9
    reference, parameters = Layered(config), spread_parameters(config)
    reference.set(parameters)
    gradients = reference.value_and_gradient(X, w)[1]
    random = np.random.default_rng(8)
    for key, p in parameters.items():
        for i in random.permutation(p.size)[:4]:
            costs = []
            for e in (-1e-4, 1e-4):
                moved = p.copy()
                moved.flat[i] += e
                reference.set({key: moved})
                costs.append(reference.value_and_gradient(X, w)[0]["loss"])
            reference.set({key: p})
            slope = (costs[1] - costs[0]) / 2e-4
            assert slope == pytest.approx(gradients[key].flat[i], rel=1e-6, abs=1e-7), key


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("name", MODELS)
def test_outputs(name: str, dtype: str, device: str) -> None:
    config = MODELS[name](dtype=dtype)
    if decodes(config):
        check_outputs(config, device)
        check_outputs(config, device, n=1)
        return
    parameters, X = parameters_for(config), data(N, config.n_features)
    engine, (exact, plain) = make_engine(config, parameters, device), references(config, parameters)
    assert_near("encode", engine.encode(X), exact.encode(X), plain.encode(X), dtype)
    assert_near("reconstruct", engine.reconstruct(X), exact.reconstruct(X), plain.reconstruct(X), dtype)
    assert_near("score", engine.score(X), exact.row_losses(X), plain.row_losses(X), dtype)
    code = engine.encode(X)
    for call in (lambda: engine.decode(code), lambda: engine.score_code(code, X)):
        with pytest.raises(ValueError, match=r"layers\[\d\]: puts maxima back where layers\[\d\] found them"):
            call()


def test_codes_between_the_pools(device: str) -> None:
    """A pool and its unpooling on the same side of the code can be decoded."""
    layers = MODELS["unpool"]().layers
    for code in (0, 4):
        config = model((2, 8, 6), *layers, n_encoder_layers=code, dtype="float64")
        check_outputs(config, device)


@pytest.mark.parametrize("code", range(8))
def test_every_layer_may_be_the_code(code: int, device: str) -> None:
    """Codes have one channel after the other, whatever order the layer makes."""
    layers = (
        *(ConvConfig(3, 2, **KL), PoolConfig(2, "mean"), ReshapeConfig((2, 3, 3)), ConvConfig(4, 2, **LOG)),
        *(UpsampleConfig(2), ConvTransposeConfig(3, 2, **KL), LayerConfig(2 * 7 * 5, "sigmoid")),
    )
    check_outputs(model((2, 7, 5), *layers, n_encoder_layers=code, dtype="float64"), device)


# --- sizes ---


# Rows and layers whose columns need several tiles: six images in each of two; one image beyond the size of a tile.
TILES: dict[str, tuple[int, Config]] = {
    "tiles": (9, model((2, 64, 64), ConvConfig(2, 7, **KL), ConvTransposeConfig(2, 7, **OUT), weight_decay=0.0)),
    "images of several tiles": (
        3,
        model((8, 64, 64), ConvConfig(2, 9, 1, 4, **KL), ConvTransposeConfig(8, 9, 1, 4, **OUT), weight_decay=0.0),
    ),
}


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("name", TILES)
def test_tiles(name: str, dtype: str, device: str) -> None:
    rows, config = TILES[name]
    config = dataclasses.replace(config, dtype=dtype)
    check_gradient(config, device, n=rows, weighted=True)
    check_outputs(config, device, n=rows)


def test_no_pass_allocates_for_all_images() -> None:
    """1000 rows whose columns would take 290 MB for each layer: the work is bounded by a tile."""
    config = model((1, 32, 32), ConvConfig(1, 15, **KL), ConvTransposeConfig(1, 15, **OUT))
    engine, X = Engine(config, "cpu"), data(1000, 32 * 32)
    before = resident()
    engine.gradient(X)
    engine.reconstruct(X)
    assert resident() - before < 150e6


def resident() -> float:
    """Peak of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("rows", [2, 130, 300])
def test_long_sums(rows: int, dtype: str, device: str) -> None:
    """Gradients whose sum over all positions is cut, and passes over one channel in several blocks."""
    config = model((1, 28, 28), ConvConfig(3, 3, 2, 1, **KL), ConvTransposeConfig(1, 3, 2, 1, 1, **OUT), dtype=dtype)
    check_gradient(config, device, n=rows, weighted=True)
    check_outputs(config, device, n=rows)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_bits_do_not_depend_on_threads(dtype: str) -> None:
    config = model(
        (1, 28, 28),
        *(ConvConfig(8, 3, 2, 1, **KL), PoolConfig(2), UnpoolConfig(2), ConvTransposeConfig(1, 3, 2, 1, 1, **OUT)),
        dtype=dtype,
    )
    X, before = data(160, 28 * 28), fastsae.get_num_threads()
    states = []
    try:
        for threads in (1, 2, 5):
            fastsae.set_num_threads(threads)
            engine = make_engine(config, parameters_for(config), "cpu")
            for _ in range(3):
                engine.step(X)
            states.append({name: engine.get(name) for name in engine.state_names()} | {"score": engine.score(X)})
    finally:
        fastsae.set_num_threads(before)
    for name, value in states[0].items():
        for other in states[1:]:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_rows_with_gaps(device: str) -> None:
    """Images are read whole, so rows that are part of a wider array are gathered first; targets too."""
    for config in (MODELS["conv"](dtype="float64"), MODELS["reshapes in a row"](dtype="float64")):
        parameters = parameters_for(config)
        wide = data(N, config.n_features + 3)
        X = wide[:, 2:-1]
        one, other = make_engine(config, parameters, device), make_engine(config, parameters, device)
        for engine, rows in ((one, X), (other, X.copy())):
            engine.step(rows)
            engine.step(rows, targets=rows)
        for name in one.state_names():
            np.testing.assert_array_equal(one.get(name), other.get(name))
        np.testing.assert_array_equal(one.score(X), other.score(X.copy()))


# --- what is equal ---


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_map_of_one_pixel_is_a_dense_unit(tied: bool, dtype: str, device: str) -> None:
    """To the last bit."""
    d = 7
    options_ = {"tied": tied, "dtype": dtype, "weight_decay": 0.01}
    convolved = model((d, 1, 1), ConvConfig(5, 1, **KL), ConvTransposeConfig(d, 1, **OUT), **options_)
    dense = Config(d, (LayerConfig(5, **KL), LayerConfig(d, **OUT)), learning_rate=0.01, **options_)
    parameters = parameters_for(dense)
    turned = {name: p.T if name == "W2" else p for name, p in parameters.items()}
    engines = make_engine(convolved, turned, device), make_engine(dense, parameters, device)
    for X, w in alternate(two_batches(d, weighted=True), 50):
        for engine in engines:
            engine.step(X, w)
    for name in engines[1].state_names():
        values = engines[0].get(name), engines[1].get(name)
        np.testing.assert_array_equal(values[0].T if name.endswith("W2") else values[0], values[1], err_msg=name)


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_a_kernel_of_the_image_is_a_dense_layer(dtype: str, device: str) -> None:
    shape, maps = (3, 4, 4), 5
    convolved = around(shape, ConvConfig(maps, 4, **KL), dtype=dtype)
    dense = around(shape, LayerConfig(maps, **KL), dtype=dtype)
    parameters = parameters_for(dense)
    W = parameters["W1"].reshape(maps, *shape).transpose(0, 2, 3, 1).reshape(maps, -1)
    engines = make_engine(convolved, {**parameters, "W1": W}, device), make_engine(dense, parameters, device)
    X = data(N, dense.n_features)
    for engine in engines:
        engine.gradient(X)
    plain = references(dense, parameters)[1].value_and_gradient(X)[1]
    gradient = engines[0].get("gradient.W1").reshape(maps, 4, 4, 3).transpose(0, 3, 1, 2).reshape(maps, -1)
    assert_near("W1", gradient, engines[1].get("gradient.W1"), plain["W1"], dtype)
    for name in ("b1", "W2", "b2"):
        key = "gradient." + name
        assert_near(name, engines[0].get(key), engines[1].get(key), plain[name], dtype)


def test_golden_correlation(device: str) -> None:
    """SciPy's correlation of one map."""
    signal = pytest.importorskip("scipy.signal")
    config = around((1, 6, 7), ConvConfig(2, 3, 1, 2, "identity"), n_encoder_layers=1, dtype="float64")
    parameters = parameters_for(config)
    X = data(2, 42)
    expected = [
        [
            signal.correlate2d(image, W.reshape(3, 3), mode="full") + b
            for W, b in zip(parameters["W1"], parameters["b1"], strict=True)
        ]
        for image in X.reshape(2, 6, 7)
    ]
    for code in (make_engine(config, parameters, device).encode(X), references(config, parameters)[0].encode(X)):
        np.testing.assert_allclose(code.reshape(2, 2, 8, 9), expected, rtol=0, atol=GOLDEN)


def test_transposed_convolution_is_the_transpose(device: str) -> None:
    """``<conv(x), y> = <x, conv_transpose(y)>`` with the same W."""
    windows: dict[str, Any] = {"kernel": 3, "stride": 2, "padding": 1, "activation": "identity"}
    there = around((2, 7, 5), ConvConfig(3, **windows), n_encoder_layers=1, dtype="float64")
    back = around((3, 4, 3), ConvTransposeConfig(2, **windows), n_encoder_layers=1, dtype="float64")
    W = parameters_for(there)["W1"]
    engines = Engine(there, device), Engine(back, device)
    for engine in engines:
        engine.set("W1", W)
    x, y = data(4, 70, 1), data(4, 36, 2)
    inner = (engines[0].encode(x) * y).sum(), (x * engines[1].encode(y)).sum()
    assert inner[0] == pytest.approx(inner[1], rel=FLOAT64)


# --- pools ---


def pooled(layer: Layer, image: np.ndarray, device: str) -> np.ndarray:
    """Of one channel."""
    config = around((1, *image.shape), layer, n_encoder_layers=1, dtype="float64")
    code: np.ndarray = Engine(config, device).encode(image.reshape(1, -1))
    return code.reshape(config.shapes[1][1:])


def test_golden_pools(device: str) -> None:
    image = np.array([[1.0, 5, 2, 2, 9], [3, 4, 2, 1, 9], [0, -1, -7, -8, 9]])
    np.testing.assert_array_equal(pooled(PoolConfig(2), image, device), [[5, 2]])
    np.testing.assert_array_equal(pooled(PoolConfig(2, "mean"), image, device), [[3.25, 1.75]])
    np.testing.assert_array_equal(pooled(PoolConfig(3), image, device), [[5]])
    small = np.array([[1.0, 8], [-2, 4]])
    twice = [[1, 1, 8, 8], [1, 1, 8, 8], [-2, -2, 4, 4], [-2, -2, 4, 4]]
    np.testing.assert_array_equal(pooled(UpsampleConfig(2), small, device), twice)
    np.testing.assert_array_equal(pooled(UnpoolConfig(2, "mean"), small, device), np.array(twice) / 4)


def test_the_first_of_equal_maxima_is_chosen(device: str) -> None:
    config = around((1, 2, 4), PoolConfig(2), UnpoolConfig(2), n_encoder_layers=2, dtype="float64")
    image = np.array([[[3.0, 3, 1, 2], [3, 3, 2, 2]]]).reshape(1, -1)
    expected = [[3, 0, 0, 2, 0, 0, 0, 0]]
    np.testing.assert_array_equal(Engine(config, device).encode(image), expected)
    np.testing.assert_array_equal(Layered(config).encode(image), expected)


def test_not_a_number_is_seen_through_a_pool(device: str) -> None:
    """Wherever in the window it stands."""
    for place in range(4):
        image = np.arange(4.0)
        image[place] = np.nan
        assert np.isnan(pooled(PoolConfig(2), image.reshape(2, 2), device)).all()


# --- options ---

BASES: dict[str, tuple[Config, int]] = {
    "conv": (model((2, 7, 7), ConvConfig(3, 3, 2, 1, **KL), LayerConfig(98)), 0),
    "conv_transpose": (model((2, 7, 7), ConvTransposeConfig(3, 3, 2, 1, 0, **KL), LayerConfig(98)), 0),
    "pool": (model((2, 8, 8), ConvConfig(3, 3, 1, 1), PoolConfig(2, "max"), LayerConfig(128)), 1),
    "unpool": (model((2, 8, 8), PoolConfig(2), UnpoolConfig(2), LayerConfig(128)), 1),
    "upsample": (model((2, 3, 3), ConvConfig(3, 2), UpsampleConfig(2), LayerConfig(18)), 1),
    "reshape": (model((2, 4, 3), ReshapeConfig((3, 2, 4)), ConvConfig(2, 2), LayerConfig(24)), 0),
}
WINDOW_FIELDS: dict[str, list[Any]] = {
    **{"channels": [2], "kernel": [2], "stride": [1, 3], "padding": [0, 2]},
    **{"activation": ["sigmoid"], "penalty": ["none", "l1", "log"], "beta": [0.0, 1.5], "rho": [0.1]},
    **{
        "weight_decay": [0.0, 0.3],
        "weight_l1": [0.05],
        "per_position": [True],
        "winners": ["spatial", "lifetime", "both"],
        "lifetime": [0.9],
    },
}
#: What the other options of the layer are where one is changed that they would leave without a meaning.
BESIDE: dict[str, dict[str, Any]] = {
    "winners": {"activation": "relu", "penalty": "none"},
    "lifetime": {"activation": "relu", "penalty": "none", "winners": "both"},
}
KIND_FIELDS: dict[str, dict[str, list[Any]]] = {
    "conv": WINDOW_FIELDS,
    "conv_transpose": {**WINDOW_FIELDS, "output_padding": [1, (0, 1)]},
    "pool": {"size": [1, 3], "mode": ["mean"]},
    "unpool": {"size": [1, 3], "mode": ["mean"]},
    "upsample": {"factor": [1, 3]},
    "reshape": {"shape": [(3, 4, 2), (1, 4, 6)]},
}


def test_every_field_is_listed() -> None:
    for kind, fields in KIND_FIELDS.items():
        assert set(fields) == {field.name for field in dataclasses.fields(KINDS[kind])}, kind  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (kind, field, value)
        for kind, fields in KIND_FIELDS.items()
        for field, values in fields.items()
        for value in values
    ],
)
def test_no_field_is_ignored(kind: str, field: str, value: Any, device: str) -> None:
    config, index = BASES[kind]
    config = dataclasses.replace(config, dtype="float64")
    layers = list(config.layers)
    layers[index] = dataclasses.replace(layers[index], **BESIDE.get(field, {}))  # type: ignore[type-var]
    config = dataclasses.replace(config, layers=tuple(layers))
    assert getattr(layers[index], field) != value
    layers[index] = dataclasses.replace(layers[index], **{field: value})  # type: ignore[type-var]
    assert changes(config, dataclasses.replace(config, layers=tuple(layers)), device)


BAD: list[tuple[str, Shape, tuple[Layer, ...]]] = [
    (r"layers\[0\].channels: expected an integer >= 1, got 0", (1, 4, 4), (ConvConfig(0),)),
    (r"layers\[0\].kernel: expected an integer >= 1, got 0", (1, 4, 4), (ConvConfig(2, 0),)),
    (r"layers\[0\].kernel: .* the padded image's size 4 x 3, got 5", (1, 4, 3), (ConvConfig(2, 5),)),
    (r"layers\[0\].stride: expected an integer >= 1, got 0", (1, 4, 4), (ConvConfig(2, 3, 0),)),
    (r"layers\[0\].padding: expected an integer >= 0, got -1", (1, 4, 4), (ConvConfig(2, 3, 1, -1),)),
    (r"layers\[0\].padding: expected less than kernel=3, got 3", (1, 4, 4), (ConvConfig(2, 3, 1, 3),)),
    (r"layers\[0\].kernel: expected an integer", (1, 4, 4), (ConvConfig(2, 2.5),)),  # type: ignore[arg-type]
    (r"layers\[0\].activation: ", (1, 4, 4), (ConvConfig(2, activation="step"),)),
    (r"layers\[0\].penalty='kl' needs a bounded", (1, 4, 4), (ConvConfig(2, penalty="kl"),)),
    (
        r"layers\[0\].output_padding: expected less than stride=2, got 2",
        (1, 4, 4),
        (ConvTransposeConfig(2, 3, 2, 0, 2),),
    ),
    (r"layers\[0\].padding: .* at least 1 x 1, got -1 x -1", (1, 1, 1), (ConvTransposeConfig(2, 3, 1, 2),)),
    (r"layers\[0\].size: expected at most the image's size 4 x 3, got 4", (1, 4, 3), (PoolConfig(4),)),
    (r"layers\[0\].size: expected an integer", (1, 4, 4), (PoolConfig(0),)),
    (r"layers\[0\].mode: expected one of 'max', 'mean'", (1, 4, 4), (PoolConfig(2, "sum"),)),
    (r"layers\[0\].mode: expected one of 'max', 'mean'", (1, 4, 4), (UnpoolConfig(2, "sum"),)),
    (r"layers\[0\].mode: 'max' needs a max pool before it", (1, 4, 4), (UnpoolConfig(2),)),
    (r"layers\[1\].mode: 'max' needs a max pool", (1, 4, 4), (PoolConfig(2, "mean"), UnpoolConfig(2))),
    (r"layers\[1\].mode: 'max' needs a max pool", (1, 6, 6), (PoolConfig(2), UnpoolConfig(3))),
    (r"layers\[2\].mode: 'max' needs", (1, 4, 4), (PoolConfig(2), ConvConfig(2, 2), UnpoolConfig(2))),
    (r"layers\[2\].mode: 'max' needs", (1, 8, 8), (PoolConfig(1), UnpoolConfig(1), UnpoolConfig(1))),
    (r"layers\[0\].factor: expected an integer", (1, 4, 4), (UpsampleConfig(0),)),
    (
        r"layers\[0\].shape: expected 16 numbers like \(1, 4, 4\), got \(2, 4, 4\)",
        (1, 4, 4),
        (ReshapeConfig((2, 4, 4)),),
    ),
    (r"layers\[0\].shape: expected \(channels, height, width\)", (1, 4, 4), (ReshapeConfig((4, 4)),)),  # type: ignore[arg-type]
    (r"layers\[0\].shape: expected an integer >= 1, got 0", (1, 4, 4), (ReshapeConfig((0, 4, 4)),)),
]


@pytest.mark.parametrize(("message", "shape", "layers"), BAD)
def test_bad_geometry(message: str, shape: Shape, layers: tuple[Layer, ...]) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(around(shape, *layers))


def test_the_last_layer_has_weights() -> None:
    with pytest.raises(ValueError, match="last layer must have weights, got PoolConfig"):
        Engine(model((1, 4, 4), ConvConfig(1, 3, 1, 1), PoolConfig(1)))


@pytest.mark.parametrize(
    "layers",
    [
        (ConvConfig(3, 3, 1, 1), ConvConfig(1, 3, 1, 1)),
        (ConvConfig(3, 3, 1, 1), ConvTransposeConfig(1, 1, 1, 0)),
        (ConvTransposeConfig(3, 3, 1, 1), LayerConfig(16)),
    ],
)
def test_tied_layers_must_mirror_each_other(layers: tuple[Layer, ...]) -> None:
    with pytest.raises(ValueError, match="tied=True needs layers that mirror each other"):
        Engine(model((1, 4, 4), *layers, tied=True))


def test_layers_survive_as_plain_values() -> None:
    for make in MODELS.values():
        config = make()
        assert Config.from_dict(config.to_dict()) == config


def test_multiplications() -> None:
    """Of the 28x28 model with 16 and 32 maps, counted by hand."""
    config = model(
        (1, 28, 28),
        *(ConvConfig(16, 3, 2, 1), ConvConfig(32, 3, 2, 1)),
        *(ConvTransposeConfig(16, 3, 2, 1, 1), ConvTransposeConfig(1, 3, 2, 1, 1)),
    )
    assert config.shapes == ((1, 28, 28), (16, 14, 14), (32, 7, 7), (16, 14, 14), (1, 28, 28))
    assert config.multiplications == 2 * (14 * 14 * 16 * 9 + 7 * 7 * 32 * 16 * 9)
