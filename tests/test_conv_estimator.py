"""ConvAutoencoder as a scikit-learn transformer of images, and what each of its options promises."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimator import EXPECTED_FAILURES

import fastsae
from fastsae import ConvAutoencoder, check_gradient
from fastsae.image_layers import ConvConfig
from fastsae.reference import Layered

SHAPE = (2, 7, 6)
N, D = 50, 84

# Rows of any width are signals.
CHECKED = [
    ConvAutoencoder((2,), image_shape=(1, 1, -1), max_epochs=2, verbose=False, dtype="float64"),
    ConvAutoencoder((2, 3), image_shape=(1, 1, -1), max_epochs=2, verbose=False, winners="both", lifetime=0.5),
    ConvAutoencoder(
        (2,), image_shape=(1, 1, -1), max_epochs=2, verbose=False, n_hidden=2, tied=True, activation="tanh"
    ),
]
_CHECKS = parametrize_with_checks(CHECKED).mark


@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
def test_scikit_learn_checks(estimator: ConvAutoencoder, check: Any) -> None:
    try:
        check(estimator)
    except (AssertionError, ValueError):
        applies, reason = EXPECTED_FAILURES.get(check.func.__name__, (lambda model: False, ""))
        if not applies(estimator):
            raise
        pytest.xfail(reason)


def images(n: int = N, shape: tuple[int, ...] = SHAPE, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, *shape)).astype(dtype)


def make(**options: Any) -> ConvAutoencoder:
    small = {"channels": (3, 4), "max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False}
    return ConvAutoencoder(**{**small, **options})


def state(model: ConvAutoencoder) -> list[bytes]:
    engine = model._engine
    return [engine.get(name).tobytes() for name in engine.state_names()]


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "KL": {"activation": "sigmoid", "penalty": "kl", "rho_hat": "ema"},
    "by position": {"activation": "sigmoid", "penalty": "kl", "rho_hat": "ema", "per_position": True},
    "winners": {"winners": "both", "lifetime": 0.3},
    "dense code": {"n_hidden": 5, "activation": "softplus", "penalty": "l1"},
    "dense winners": {"n_hidden": 5, "winners": "lifetime", "lifetime": 0.3},
    "tied": {"tied": True, "kernel": (5, 4), "stride": (1, 3)},
    "tied dense code": {"tied": True, "n_hidden": 5},
}


# --- shapes ---


@pytest.mark.parametrize("model", MODELS)
def test_images_and_rows_are_the_same(model: str) -> None:
    X = images()
    rows = X.reshape(N, D)
    of_images = make(**MODELS[model]).fit(X)
    of_rows = make(**MODELS[model], image_shape=SHAPE).fit(rows)
    assert state(of_images) == state(of_rows)
    assert of_images.history_ == of_rows.history_
    for fitted, own in ((of_images, X), (of_rows, rows)):
        assert fitted.n_features_in_ == D
        assert fitted.image_shape_ == SHAPE
        code = fitted.transform(X)
        assert code.shape == (N, int(np.prod(fitted.code_shape_)))
        np.testing.assert_array_equal(code, fitted.transform(rows))
        assert fitted.reconstruct(X).shape == X.shape
        assert fitted.reconstruct(rows).shape == rows.shape
        np.testing.assert_array_equal(fitted.reconstruct(X).reshape(N, D), fitted.reconstruct(rows))
        assert fitted.inverse_transform(code).shape == own.shape
        np.testing.assert_allclose(
            fitted.inverse_transform(code).reshape(N, D), fitted.reconstruct(rows), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(fitted.score_samples(X), fitted.score_samples(rows))
        assert fitted.score(X) == fitted.score_samples(X).mean()


def test_codes_are_maps_one_after_the_other() -> None:
    X = images()
    model = make().fit(X)
    assert model.code_shape_ == (4, 2, 2)
    code = model.transform(X)
    maps = code.reshape(-1, *model.code_shape_)
    np.testing.assert_array_equal(model.inverse_transform(maps), model.inverse_transform(code))
    assert make(n_hidden=5).fit(X).code_shape_ == (5,)


@pytest.mark.parametrize("model", MODELS)
def test_the_estimator_is_its_reference(model: str) -> None:
    X = images(dtype=np.float64)
    fitted = make(**MODELS[model], dtype="float64").fit(X)
    reference = Layered(fitted._engine.config)
    reference.set(fitted._engine.get_parameters())
    rows = X.reshape(N, D)
    np.testing.assert_allclose(fitted.transform(X), reference.encode(rows), rtol=0, atol=1e-12)
    np.testing.assert_allclose(fitted.reconstruct(rows), reference.reconstruct(rows), rtol=0, atol=1e-12)
    np.testing.assert_allclose(-fitted.score_samples(X), reference.row_losses(rows), rtol=1e-11)


@pytest.mark.parametrize("options", [{}, {"n_hidden": 5}, {"tied": True}, {"per_position": True}])
def test_gradient(options: dict[str, Any]) -> None:
    X = images()
    model = make(activation="sigmoid", penalty="kl", **options).fit(X)
    assert check_gradient(model, X[:6].reshape(6, D), n_coordinates=50) < 1e-9


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (4, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3, (3, 2)])
@pytest.mark.parametrize("shape", [(1, 7, 7), (3, 8, 5), (1, 1, 11), (2, 4, 1)])
def test_every_size_comes_back(shape: tuple[int, int, int], stride: Any, kernel: Any) -> None:
    """The decoder has the sizes of the encoder, also where height and width leave another rest."""
    X = images(4, shape)
    model = make(kernel=kernel, stride=stride, max_epochs=1).fit(X)
    shapes = model._engine.config.shapes
    assert shapes[0] == shapes[-1] == shape
    assert [shape[1:] for shape in shapes] == [shape[1:] for shape in shapes[::-1]]
    strides = (stride, stride) if isinstance(stride, int) else stride
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    for k, s, (_, *before), (_, *after) in zip(kernels, strides, shapes, shapes[1:], strict=False):
        assert after == [(size + 2 * (k // 2) - k) // s + 1 for size in before]


def test_attributes_are_the_filters() -> None:
    X = images(dtype=np.float64)
    model = make(channels=(3,), kernel=3, stride=1, dtype="float64", activation="identity").fit(X)
    assert model.filters_.shape == model.decoder_filters_.shape == (3, 2, 3, 3)
    np.testing.assert_array_equal(model.components_, model.filters_.reshape(3, 18))
    # A map at a pixel is the sum over the filter's window of the channels, plus the intercept.
    window = X[0, :, 2:5, 1:4]
    maps = model.transform(X[:1]).reshape(model.code_shape_)
    expected = (model.filters_ * window).sum(axis=(1, 2, 3)) + model.intercept_
    np.testing.assert_allclose(maps[:, 3, 2], expected, rtol=0, atol=1e-12)
    # One unit of a map puts the last layer's filter around its pixel, before the output's activation.
    code = np.zeros((2, *model.code_shape_))
    code[1, 1, 3, 2] = 1.0
    output = model.inverse_transform(code)
    logits = np.log(output / (1 - output))
    put = np.zeros(SHAPE)
    put[:, 2:5, 1:4] = model.decoder_filters_[1]
    np.testing.assert_allclose(logits[1] - logits[0], put, rtol=0, atol=1e-10)
    tied = make(tied=True).fit(X)
    np.testing.assert_array_equal(tied.filters_, tied.decoder_filters_)


def test_attributes_are_absent_before_fit() -> None:
    model, X = make(), images()
    names = ("components_", "filters_", "decoder_filters_", "intercept_", "code_shape_", "image_shape_", "history_")
    for name in names:
        assert not hasattr(model, name), name
    for call in (model.transform, model.inverse_transform, model.reconstruct, model.score, model.resume):
        with pytest.raises(ValueError, match="not fitted yet"):
            call(X)


def test_square_rows_need_no_shape() -> None:
    model = make().fit(images(20, (49,)))
    assert model.image_shape_ == (1, 7, 7)
    assert make(image_shape=(-1, 7, 7)).fit(images(20, (98,))).image_shape_ == (2, 7, 7)
    assert make(image_shape=[1, 1, np.int64(-1)]).fit(images(20, (10,))).image_shape_ == (1, 1, 10)


def test_defaults_are_those_of_the_configurations() -> None:
    options = ConvAutoencoder().get_params()
    for config in (fastsae.Config, fastsae.TrainingConfig, ConvConfig):
        for name, field in config.__dataclass_fields__.items():
            own = config is ConvConfig and name in ("weight_decay", "weight_l1")  # None: the model's
            special = name in ("channels", "stride") or own
            if name in options and not special:
                assert options[name] == field.default, name


# --- options ---

# Option: (options of the model, another value). Each changes what is learnt.
CHANGES: list[tuple[str, dict[str, Any], Any]] = [
    ("channels", {}, (3, 5)),
    ("kernel", {}, (3, 5)),
    ("stride", {}, (1, 2)),
    ("image_shape", {"image_shape": (2, 7, 6)}, (1, 14, 6)),
    ("n_hidden", {}, 4),
    ("activation", {}, "tanh"),
    ("output_activation", {}, "identity"),
    ("penalty", {}, "l1"),
    ("beta", {"penalty": "l1"}, 0.5),
    ("rho", {"penalty": "kl", "activation": "sigmoid"}, 0.4),
    ("per_position", {"penalty": "kl", "activation": "sigmoid"}, True),
    ("winners", {}, "spatial"),
    ("winners", {"winners": "both"}, "lifetime"),
    ("lifetime", {"winners": "both"}, 0.5),
    ("tied", {}, True),
    ("weight_decay", {}, 0.1),
    ("rho_hat", {"penalty": "kl", "activation": "sigmoid"}, "ema"),
    ("loss", {}, "cross_entropy"),
    ("loss_reduction", {}, "mean"),
    ("solver", {}, "momentum"),
    ("learning_rate", {}, 0.01),
    ("batch_size", {}, 25),
    ("init", {}, "he"),
    ("random_state", {}, 1),
]


@pytest.mark.parametrize(("name", "options", "value"), CHANGES)
def test_no_option_is_ignored(name: str, options: dict[str, Any], value: Any) -> None:
    X = images().reshape(N, D)
    base = {"image_shape": SHAPE, **options}
    one, other = make(**base).fit(X), make(**{**base, name: value}).fit(X)
    assert state(one) != state(other)


def test_winners_take_all_makes_sparse_codes() -> None:
    """Of all activations of the relu code fewer are left than without."""
    X = images(200, (1, 8, 8))
    options = {"channels": (8,), "max_epochs": 30, "output_activation": "identity", "learning_rate": 0.01}
    active = {
        winners: float((make(**options, winners=winners).fit(X).transform(X) > 0).mean()) for winners in ("", "both")
    }
    assert active["both"] < active[""]


def test_feature_names_and_set_output() -> None:
    frame = pd.DataFrame(images(N, (16,)), columns=[f"pixel{i}" for i in range(16)])
    model = make().set_output(transform="pandas").fit(frame)
    assert list(model.feature_names_in_) == list(frame.columns)
    out = model.transform(frame)
    assert list(out.columns) == list(model.get_feature_names_out()) == [f"convautoencoder{i}" for i in range(4)]
    np.testing.assert_array_equal(model.inverse_transform(out), model.reconstruct(frame))


def test_pipeline() -> None:
    X = images().reshape(N, D) * 3
    pipeline = make_pipeline(MinMaxScaler(), make(image_shape=SHAPE))
    np.testing.assert_array_equal(pipeline.fit_transform(X), pipeline.transform(X))


# --- training ---


@pytest.mark.parametrize("model", MODELS)
def test_resume_is_the_run_that_was_not_interrupted(model: str, tmp_path: Path) -> None:
    X = images()
    whole = make(**MODELS[model], max_epochs=4).fit(X)
    half = make(**MODELS[model], max_epochs=2).fit(X)
    path = tmp_path / "half.safetensors"
    half.save(path)
    loaded = fastsae.load(path)
    assert isinstance(loaded, ConvAutoencoder)
    assert {**loaded.get_params(), "checkpoint": None} == half.get_params()
    for copied in (loaded, pickle.loads(pickle.dumps(half)), copy.deepcopy(half), half):
        assert (copied.image_shape_, copied.code_shape_) == (SHAPE, whole.code_shape_)
        assert copied.inverse_transform(half.transform(X)).shape == X.shape
        assert state(copied.set_params(max_epochs=4).resume(X)) == state(whole)
    assert clone(whole).get_params() == whole.get_params()
    assert not hasattr(clone(whole), "filters_")


def test_partial_fit() -> None:
    X = images()
    model = make().partial_fit(X[:20]).partial_fit(X[20:])
    rows = make(image_shape=SHAPE).partial_fit(X[:20].reshape(20, D)).partial_fit(X[20:].reshape(30, D))
    assert state(model) == state(rows)
    assert model.n_iter_ == 2
    with pytest.raises(ValueError, match=r"X: expected images of shape \(2, 7, 6\), as in fit, got \(2, 6, 7\)"):
        model.partial_fit(X.transpose(0, 1, 3, 2))
    with pytest.raises(ValueError, match="features"):
        model.partial_fit(X[:, :1].reshape(N, 42))
    assert state(model) == state(rows)


@pytest.mark.parametrize("name", ["kernel", "stride", "winners", "channels"])
def test_a_changed_option_is_refused(name: str) -> None:
    X = images()
    model = make().fit(X)
    before = state(model)
    value = {"kernel": 5, "stride": 1, "winners": "both", "channels": (3, 4, 5)}[name]
    for call in (model.partial_fit, model.resume):
        model.set_params(**{name: value})
        with pytest.raises(ValueError, match="fit starts anew"):
            call(X)
    assert state(model) == before


@pytest.mark.parametrize("kind", ["float64", "fortran", "uint8", "list", "memmap", "memmap of images", "tensor"])
def test_all_kinds_of_arrays(kind: str, tmp_path: Path) -> None:
    X = images() if kind != "uint8" else (images() * 255).astype(np.uint8)
    rows = X.reshape(N, D)
    given: Any
    if kind == "float64":
        given = X.astype(np.float64)
    elif kind == "fortran":
        given = np.asfortranarray(X)
    elif kind == "list":
        given = X.tolist()
    elif kind == "tensor":
        given = pytest.importorskip("torch").from_numpy(X)
    elif "memmap" in kind:
        shape = X.shape if "images" in kind else rows.shape
        given = np.memmap(tmp_path / "X", np.float32, "w+", shape=shape)
        given[...] = X.reshape(shape)
    else:
        given = X
    model, twin = make(image_shape=SHAPE).fit(given), make(image_shape=SHAPE).fit(rows)
    if kind != "uint8":
        assert state(model) == state(twin)
    np.testing.assert_array_equal(model.transform(given), model.transform(rows))
    assert model.reconstruct(given).shape == np.shape(given)


def test_out() -> None:
    X = images()
    model = make().fit(X)
    for out in (np.empty_like(X), np.empty((N, D), np.float32)):
        assert model.reconstruct(X, out=out) is out
        np.testing.assert_array_equal(out.reshape(X.shape), model.reconstruct(X))
        assert model.inverse_transform(model.transform(X), out=out) is out
        np.testing.assert_array_equal(out.reshape(X.shape), model.inverse_transform(model.transform(X)))
    with pytest.raises(ValueError, match="out: expected a writable C-contiguous"):
        model.reconstruct(X, out=np.empty((N, 2, 6, 7), np.float32).transpose(0, 1, 3, 2))


def test_weights_are_repeated_rows() -> None:
    X = images(dtype=np.float64)
    w = np.random.default_rng(1).integers(0, 3, N).astype(float)
    options = {"dtype": "float64", "batch_size": None, "activation": "sigmoid", "penalty": "kl"}
    weighted = make(**options).fit(X, sample_weight=w)
    repeated = make(**options).fit(np.repeat(X, w.astype(int), axis=0))
    np.testing.assert_allclose(weighted.filters_, repeated.filters_, rtol=1e-9)


def test_a_row_with_nan_is_named(tmp_path: Path) -> None:
    X = np.memmap(tmp_path / "X", np.float32, "w+", shape=(N, *SHAPE))
    X[...] = images()
    X[7, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="row 7"):
        make(winners="both").fit(X)
    with pytest.raises(ValueError, match="NaN"):
        make().fit(np.asarray(X))


def test_held_out_rows_compete_among_themselves() -> None:
    model = make(winners="both", validation_fraction=0.2, early_stopping=True).fit(images())
    assert len(model.history_["validation_loss"]) == 3
    assert np.isfinite(model.history_["validation_loss"]).all()


# --- what cannot be ---

BAD: list[tuple[dict[str, Any], str]] = [
    ({"channels": ()}, "channels: expected a tuple"),
    ({"channels": 16}, "channels: expected a tuple"),
    ({"channels": (3, 0)}, "channels: expected an integer >= 1, got 0"),
    ({"channels": (3, 2.5)}, "channels: expected an integer >= 1"),
    ({"kernel": 0}, "kernel: expected an integer >= 1"),
    ({"kernel": (3, 3, 3)}, "kernel: expected one integer, or one for each of the 2"),
    ({"kernel": "3"}, "kernel: expected an integer"),
    ({"stride": 0}, "stride: expected an integer >= 1"),
    ({"stride": (2,)}, "stride: expected one integer, or one for each of the 2"),
    ({"stride": True}, "stride: expected an integer"),
    ({"n_hidden": 0}, "n_hidden: expected an integer >= 1"),
    ({"n_hidden": 4, "per_position": True}, "per_position: a dense code has no positions"),
    ({"n_hidden": 4, "winners": "both"}, "winners: expected one of '', 'lifetime'"),
    ({"per_position": 1}, "per_position: expected True or False"),
    ({"winners": "all"}, "winners: expected one of"),
    ({"winners": "both", "activation": "tanh"}, "needs activation='relu'"),
    ({"winners": "both", "penalty": "l1"}, "takes the place of a penalty"),
    ({"lifetime": 0}, "lifetime: expected a number in"),
    ({"penalty": "kl"}, "needs a bounded activation"),
    ({"penalty": "kl2"}, "penalty: expected one of"),
    ({"activation": "step"}, "activation: expected one of"),
    ({"output_activation": "step"}, "activation: expected one of"),
    ({"tied": 1}, "tied: expected True or False"),
    ({"image_shape": (2, 7)}, r"image_shape: expected \(channels, height, width\)"),
    ({"image_shape": "square"}, r"image_shape: expected \(channels, height, width\)"),
    ({"image_shape": (2, 7, 7)}, "image_shape: expected 84 numbers"),
    ({"image_shape": (-1, -1, 6)}, "image_shape: expected 84 numbers"),
    ({"image_shape": (100, 1, -1)}, "image_shape: expected 84 numbers"),
    ({"image_shape": (2, 7.0, 6)}, "image_shape: expected an integer"),
    ({"image_shape": (0, 7, 6)}, "image_shape: expected an integer >= 1"),
    ({"image_shape": (2, 6, 7)}, r"image_shape: expected \(2, 7, 6\), the shape of the images of X"),
]


@pytest.mark.parametrize(("options", "says"), BAD, ids=lambda value: str(value)[:40])
def test_bad_options(options: dict[str, Any], says: str) -> None:
    model = make(**options)
    for call in (model.fit, model.partial_fit):
        with pytest.raises(ValueError, match=says):
            call(images())
        assert vars(model) == vars(make(**options))


@pytest.mark.parametrize("X", [images(N, (84,)), images(N, (7, 6)), images()[:0], images(N, (0, 7, 6)), images() * 1j])
def test_bad_rows(X: np.ndarray) -> None:
    model = make()
    with pytest.raises(ValueError, match=r"image_shape|array|dimension|sample|feature|real|omplex"):
        model.fit(X)
    assert vars(model) == vars(make())
    fitted = make().fit(images())
    before = state(fitted), fitted.image_shape_
    with pytest.raises(ValueError, match=r"image_shape|array|dimension|sample|feature|real|omplex"):
        fitted.fit(X)
    assert (state(fitted), fitted.image_shape_) == before


def test_rows_that_are_no_square_say_what_to_pass() -> None:
    with pytest.raises(ValueError, match=r"pass image_shape=\(channels, height, width\), or X of shape"):
        make().fit(images().reshape(N, D))


def test_other_images_are_refused() -> None:
    model = make().fit(images())
    for call in (model.transform, model.reconstruct, model.score_samples, model.resume):
        with pytest.raises(ValueError, match=r"X: expected images of shape \(2, 7, 6\), as in fit, got \(1, 14, 6\)"):
            call(images().reshape(N, 1, 14, 6))
    with pytest.raises(ValueError, match=r"H: expected codes of shape \(4, 2, 2\), got \(2, 4, 2\)"):
        model.inverse_transform(images(N, (2, 4, 2)))


def test_files_of_other_models_are_refused(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "model.safetensors"
    make().fit(images()).save(path)
    with safe_open(path, framework="numpy") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key, value, says in (
        ("class", "SparseAutoencoder", "its model is not that"),
        ("more", '{"takes_images": 3}', "more"),
        ("more", "{}", "more"),
        ("more", "[]", "more"),
    ):
        save_file(tensors, path, {**header, key: value})
        with pytest.raises(ValueError, match=says):
            fastsae.load(path)


# --- figures ---


def test_plots() -> None:
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot

    from fastsae import plots

    X = images(N, (3, 7, 6))
    model = make().fit(X)
    colour = plots.filters(model, n_columns=3).images[0].get_array()
    assert colour.shape == (3, 11, 3)
    tile = model.decoder_filters_[1].transpose(1, 2, 0).astype(float)
    centred = tile - tile.mean()
    np.testing.assert_allclose(colour[:, 4:7], 0.5 + 0.5 * centred / np.abs(centred).max(), atol=1e-12)
    assert plots.filters(model.filters_[:, :2], n_columns=6).images[0].get_array().shape == (3, 23)
    assert plots.reconstructions(model, X, n_images=4).images[0].get_array().shape == (15, 27, 3)
    assert plots.reconstructions(model, X.reshape(N, -1), n_images=4).images[0].get_array().shape == (15, 27, 3)
    two = make().fit(images())
    assert plots.reconstructions(two, images(), n_images=4).images[0].get_array().shape == (29, 27)
    assert plots.reconstructions(two, images().reshape(N, D), (14, 6), n_images=4).images[0].get_array().shape == (
        29,
        27,
    )
    maps = make(activation="sigmoid", penalty="kl").fit(X)
    assert sum(bar.get_height() for bar in plots.rho_hat(maps, X).patches) == 4
    positions = make(activation="sigmoid", penalty="kl", per_position=True).fit(X)
    assert sum(bar.get_height() for bar in plots.rho_hat(positions, X).patches) == 16
    assert len(plots.loss(maps).lines) == 4
    for bad in (np.zeros((0, 1, 3, 3)), np.full((1, 1, 3, 3), "x"), np.zeros((2, 9))):
        with pytest.raises(ValueError, match="expected"):
            plots.filters(bad)
    pyplot.close("all")
