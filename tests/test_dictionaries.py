"""Overcomplete dictionaries as scikit-learn estimators, and what each of their options promises."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_trainer import Interrupt

import fastsae
from fastsae import (
    L1SAE,
    AnomalyDetector,
    BatchTopKSAE,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    TopKSAE,
    Transcoder,
    trainer,
)
from fastsae.dictionaries import Dictionary

N, D, OUT, M = 70, 6, 4, 20

SMALL: dict[str, Any] = {"batch_size": 16, "max_epochs": 3, "learning_rate": 0.01, "random_state": 0, "verbose": False}
MODELS: dict[str, Dictionary] = {
    "topk": TopKSAE(M, 3, **SMALL),
    "topk rescaled": TopKSAE(M, 3, decoder_norm="rescale", decoder_init_norm=0.5, **SMALL),
    "topk with AuxK": TopKSAE(M, 2, dead_after=30, **SMALL),
    "batch topk": BatchTopKSAE(M, 2.5, **SMALL),
    "matryoshka": MatryoshkaSAE(M, 3, prefixes=(5, 11, M), **SMALL),
    "jump relu": JumpReLUSAE(M, target_l0=4, **SMALL),
    "gated": GatedSAE(M, **SMALL),
    "l1": L1SAE(M, sparsity_weight=0.1, **SMALL),
    "l1 resampled": L1SAE(M, decoder_norm="unit", resample_every=7, **SMALL),
    "sparsify": TopKSAE(M, 3, preset="sparsify", **SMALL),
    "transcoder": Transcoder(M, k=3, **SMALL),
    "skip transcoder": Transcoder(M, architecture="relu", skip=True, sparsity_weight=0.1, **SMALL),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, whatever else the machine does; no bit depends on it."""
    before = fastsae.get_num_threads()
    fastsae.set_num_threads(1)
    yield
    fastsae.set_num_threads(before)


names = pytest.mark.parametrize("name", MODELS)


def data(n: int = N, dtype: Any = np.float32) -> np.ndarray:
    """Sums of a few of many directions."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(15, D))
    codes = (random.random((n, 15)) < 0.2) * random.uniform(0.5, 1.5, (n, 15))
    return (codes @ directions + 0.3).astype(dtype)


def targets(n: int = N) -> np.ndarray:
    return np.square(data(n))[:, :OUT]


def y_of(model: Dictionary) -> tuple[Any, ...]:
    return (targets(),) if isinstance(model, Transcoder) else ()


def make(name: str, **options: Any) -> Any:
    return clone(MODELS[name]).set_params(**options)


def fitted(name: str, **options: Any) -> Any:
    model = make(name, **options)
    return model.fit(data(), *y_of(model))


def timeless(history: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: values for name, values in history.items() if name != "rows_per_second"}


def assert_same_bits(a: Any, b: Any) -> None:
    assert a._engine.state_names() == b._engine.state_names()
    for name in a._engine.state_names():
        np.testing.assert_array_equal(a._engine.get(name), b._engine.get(name), err_msg=name, strict=True)
    assert a._engine.steps == b._engine.steps
    assert a.history_ == b.history_
    assert timeless(a.step_history_) == timeless(b.step_history_)
    np.testing.assert_array_equal(a.latent_frequency_, b.latent_frequency_)


# The model


def code_by_hand(model: Any, X: np.ndarray) -> np.ndarray:
    """The formulas of :class:`fastsae.SparseCodeConfig`, from the fitted attributes."""
    config = model._engine.config
    x = X if model._scaler is None else (X - model.center_) / model.scale_
    x = x - model.decoder_bias_ if config.pre_bias else x
    z = x @ model.encoder_.T + model.encoder_bias_
    norms = np.linalg.norm(model.decoder_, axis=1)
    s = norms if config.decoder_norm == "rescale" else np.ones(M)
    if config.activation == "topk":
        kth = np.sort(z * s, axis=1)[:, -config.k, None]
        a = np.where(z * s >= kth, np.maximum(z, 0), 0)
    elif config.activation == "batch_topk":
        a = np.where(z * s > model.threshold_, z, 0)
    elif config.activation == "jump_relu":
        a = np.where(z > model.threshold_, z, 0)
    elif config.activation == "gated":
        magnitude = model.magnitude_scale_ * (z - model.encoder_bias_) + model.magnitude_bias_
        a = np.where(z > 0, np.maximum(magnitude, 0), 0)
    else:
        a = np.maximum(z, 0)
    return a * s


@names
def test_codes_and_outputs_are_the_formula(name: str) -> None:
    X = data(dtype=np.float64)
    model = fitted(name, dtype="float64")
    expected = code_by_hand(model, X)
    code = model.transform(X)
    np.testing.assert_allclose(code, expected, rtol=0, atol=1e-12)
    assert model.encoder_.shape == model.components_.shape == (M, D)
    width = OUT if isinstance(model, Transcoder) else D
    assert model.decoder_.shape == (M, width)
    assert model.decoder_bias_.shape == (width,)
    config = model._engine.config
    s = np.linalg.norm(model.decoder_, axis=1) if config.decoder_norm == "rescale" else np.ones(M)
    output = (expected / s) @ model.decoder_ + model.decoder_bias_
    scaled = model._scaler is not None and not isinstance(model, Transcoder)
    decoded = output * model.scale_ + model.center_ if scaled else output
    np.testing.assert_allclose(model.inverse_transform(code), decoded, rtol=0, atol=1e-12)
    if config.skip:
        output = output + ((X - model.center_) / model.scale_) @ model._engine.get("W_skip").T
    final = output * model.scale_ + model.center_ if scaled else output
    np.testing.assert_allclose(model.reconstruct(X), final, rtol=0, atol=1e-12)
    goal = (
        y_of(model)[0]
        if isinstance(model, Transcoder)
        else X
        if model._scaler is None
        else (X - model.center_) / model.scale_
    )
    losses = ((output - goal) ** 2).sum(axis=1)
    scores = model.score_rows(X, targets()) if isinstance(model, Transcoder) else model.score_samples(X)
    np.testing.assert_allclose(scores, -losses, rtol=1e-10)
    assert model.score(X, *y_of(model)) == pytest.approx(-losses.mean(), rel=1e-10)


@names
def test_a_code_has_three_forms(name: str) -> None:
    X, model = data(), fitted(name)
    dense = model.transform(X)
    rows = model.transform(X, output="csr")
    values, indices = model.transform(X, output="pairs")
    assert scipy.sparse.issparse(rows)
    assert rows.format == "csr"
    assert rows.has_sorted_indices
    np.testing.assert_array_equal(rows.toarray(), dense, strict=True)
    assert (np.diff(values, axis=1) <= 0).all()
    by_hand = np.zeros_like(dense)
    np.add.at(by_hand, (np.arange(N)[:, None], indices), values)
    np.testing.assert_array_equal(by_hand, dense)
    if model._engine.config.activation == "topk":
        assert values.shape == (N, model._engine.config.k)
    else:
        assert values.shape[1] == (dense > 0).sum(axis=1).max()
    out = np.empty((N, M), np.float32)
    assert model.transform(X, out=out) is out
    np.testing.assert_array_equal(out, dense)
    forms = (rows, scipy.sparse.coo_array(rows), (values, indices), (values.astype(np.float16), indices))
    expected = model.inverse_transform(dense)
    for form in forms:
        tolerance = 1e-2 if isinstance(form, tuple) and form[0].dtype == np.float16 else 1e-5
        np.testing.assert_allclose(model.inverse_transform(form), expected, rtol=0, atol=tolerance)


def test_nothing_active() -> None:
    model = fitted("topk")
    model._engine.set("b_enc", np.full(M, -1e6))
    codes = model.transform(data(), output="csr")
    assert codes.shape == (N, M)
    assert codes.nnz == 0
    values, indices = model.transform(data(), output="pairs")
    assert values.shape == indices.shape == (N, 3)
    assert not values.any()
    np.testing.assert_array_equal(model.inverse_transform(codes), np.tile(model.decoder_bias_, (N, 1)))
    assert fitted("jump relu", initial_threshold=1e6).transform(data(), output="pairs")[0].shape == (N, 0)


BAD_CODES: dict[str, tuple[Any, str]] = {
    "width": (scipy.sparse.csr_matrix((2, M + 1)), f"{M} columns"),
    "three arrays": ((np.ones((2, 1)),) * 3, "values, indices"),
    "shapes": ((np.ones((2, 1)), np.zeros((2, 2), int)), "one shape"),
    "types": ((np.ones((2, 1)), np.zeros((2, 1))), "integer indices"),
    "index": ((np.ones((2, 1)), np.full((2, 1), M)), f"from 0 to {M - 1}"),
    "negative index": ((np.ones((2, 1)), np.full((2, 1), -1)), f"from 0 to {M - 1}"),
    "NaN": ((np.full((2, 1), np.nan), np.zeros((2, 1), int)), "finite"),
    "complex": (scipy.sparse.csr_matrix(np.full((2, M), 1j)), "real numbers"),
}


@pytest.mark.parametrize("kind", BAD_CODES)
def test_bad_codes_are_refused(kind: str) -> None:
    codes, text = BAD_CODES[kind]
    with pytest.raises(ValueError, match=f"H: .*{text}"):
        fitted("topk").inverse_transform(codes)


def test_bad_outputs_are_refused() -> None:
    model = fitted("topk")
    with pytest.raises(ValueError, match="output: expected one of 'dense', 'csr', 'pairs', got 'coo'"):
        model.transform(data(), output="coo")
    with pytest.raises(ValueError, match="out: needs output='dense', got 'csr'"):
        model.transform(data(), output="csr", out=np.empty((N, M), np.float32))
    with pytest.raises(ValueError, match="out: needs a dense H"):
        model.inverse_transform(model.transform(data(), output="csr"), out=np.empty((N, D), np.float32))


def test_scales_of_rows_need_the_rows() -> None:
    X = data(dtype=np.float64)
    model = fitted("topk", scale="layer_norm", dtype="float64")
    code = model.transform(X, output="csr")
    plain = (X - X.mean(axis=1, keepdims=True)) / (X.std(axis=1, keepdims=True, ddof=1) + 1e-5)
    unscaled = copy.deepcopy(model)
    unscaled._scaler = None
    np.testing.assert_allclose(code.toarray(), unscaled.transform(plain), atol=1e-12)
    for form in (code, code.toarray(), model.transform(X, output="pairs")):
        with pytest.raises(ValueError, match="scale='layer_norm' is undone with"):
            model.inverse_transform(form)
    assert np.isfinite(model.reconstruct(X)).all()


@names
def test_the_jacobian_is_the_difference_quotient(name: str) -> None:
    X = data(dtype=np.float64)[:5]
    model = fitted(name, dtype="float64")
    eps = 1e-7 * (1 if model._scaler is None else model.scale_[0])
    columns = [(model.transform(X + eps * e) - model.transform(X - eps * e)) / 2e-7 for e in np.eye(D)]
    expected = np.sqrt(sum((column**2).sum(axis=1) for column in columns))
    np.testing.assert_allclose(model.jacobian_norm(X), expected, rtol=1e-5)


# Training


@names
def test_training_learns(name: str) -> None:
    model = fitted(name, max_epochs=40)
    assert model.history_["loss"][-1] < 0.8 * model.history_["loss"][0]


@names
@pytest.mark.parametrize("max_steps", [1, 8, 9])
def test_resume_after_max_steps(name: str, max_steps: int, tmp_path: Path) -> None:
    options = {"log_every": 4}
    whole = fitted(name, **options)
    assert whole.n_steps_ == 15
    part = fitted(name, max_steps=max_steps, **options)
    assert part.n_steps_ == max_steps
    assert part.n_iter_ == max_steps // 5
    part.save(tmp_path / "model")
    for model in (part, fastsae.load(tmp_path / "model"), pickle.loads(pickle.dumps(part)), copy.deepcopy(part)):
        assert_same_bits(model.set_params(max_steps=None).resume(data(), *y_of(model)), whole)


@names
def test_max_steps_takes_the_place_of_max_epochs(name: str) -> None:
    assert_same_bits(fitted(name, max_steps=15, max_epochs=1), fitted(name))


@names
def test_a_file_keeps_everything(name: str, tmp_path: Path) -> None:
    model = fitted(name, log_every=4, early_stopping=True, validation_fraction=0.2)
    model.save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert type(loaded) is type(model)
    assert_same_bits(loaded, model)
    assert loaded.get_params() == {**model.get_params(), "checkpoint": None}
    np.testing.assert_array_equal(loaded.transform(data()), model.transform(data()))
    np.testing.assert_array_equal(loaded.reconstruct(data()), model.reconstruct(data()))
    np.testing.assert_array_equal(loaded.dead_latents_, model.dead_latents_)


DAMAGE: dict[str, tuple[str, np.ndarray, str]] = {
    "shape": ("trainer.frequency", np.ones(M + 1), r"tensor 'trainer.frequency': expected float64 \(20,\), got"),
    "type": (
        "trainer.fired",
        np.ones(M + 1, np.float32),
        r"tensor 'trainer.fired': expected float64 .* got float32",
    ),
    "NaN": ("rows_since_fired", np.full(M, np.nan), "tensor 'rows_since_fired' holds NaN"),
    "unknown": ("trainer.window", np.ones(M), "tensor 'trainer.window' is unknown"),
    "weights": ("W_enc", np.ones((M, D + 1), np.float32), r"tensor 'W_enc': expected shape \(20, 6\), got \(20, 7\)"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    name, value, text = DAMAGE[kind]
    path = tmp_path / "model"
    fitted("topk", log_every=4).save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    assert {"trainer.frequency", "trainer.fired"} <= set(tensors)
    save_file({**tensors, name: value}, path, metadata=metadata)
    with pytest.raises(ValueError, match=text):
        fastsae.load(path)


def test_one_pass_is_one_epoch() -> None:
    for name in ("topk with AuxK", "jump relu", "transcoder"):
        model = make(name)
        assert_same_bits(model.partial_fit(data(), *y_of(model)), fitted(name, max_epochs=1))
    more = fitted("topk", max_epochs=1).partial_fit(data()[:40]).partial_fit(data()[:16])
    assert more.n_steps_ == 5 + 3 + 1
    assert more.set_params(learning_rate=0.5).partial_fit(data()).n_iter_ == 4
    with pytest.raises(ValueError, match="decoder_norm: expected 'unit', with which the training began"):
        more.set_params(decoder_norm="free").partial_fit(data())


def test_entries_every_so_many_steps() -> None:
    entries: list[dict[str, float]] = []
    model = fitted("topk with AuxK", log_every=4, callback=entries.append)
    steps = model.step_history_
    assert steps["step"] == [4.0, 8.0, 12.0]
    assert len({len(values) for values in steps.values()}) == 1
    of_steps = [entry for entry in entries if "step" in entry]
    assert [list(map(entry.get, steps)) for entry in of_steps] == list(map(list, zip(*steps.values(), strict=True)))
    assert [entry["epoch"] for entry in entries if "epoch" in entry] == [1.0, 2.0, 3.0]
    for history in (steps, model.history_):
        for i in range(3):
            parts = [history[part][i] for part in ("reconstruction", "sparsity", "auxiliary")]
            assert history["loss"][i] == pytest.approx(sum(parts), rel=1e-6)
            assert history["explained_variance"][i] == 1 - history["fvu"][i]
    assert min(steps["rows_per_second"]) > 0
    assert fitted("topk", log_every=None).step_history_ == {}


def test_measures_are_what_they_say() -> None:
    X = data(dtype=np.float64)
    model = make("l1", dtype="float64", batch_size=None, max_epochs=2, log_every=1, scale=None)
    seen: list[Any] = []

    def callback(entry: dict[str, float]) -> None:
        seen.append((model.transform(X), model.reconstruct(X), np.linalg.norm(model.decoder_, axis=1)))

    model.set_params(callback=callback).fit(X)
    code, output, norms = seen[1]  # after the first step, so what the second one saw
    history = model.step_history_
    assert history["l0"][1] == pytest.approx((code > 0).sum(axis=1).mean())
    fvu = ((output - X) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert history["fvu"][1] == pytest.approx(fvu, rel=1e-10)
    assert history["sparsity"][1] == pytest.approx(0.1 * (code * norms).sum(axis=1).mean(), rel=1e-10)
    assert history["reconstruction"][1] == pytest.approx(((output - X) ** 2).sum(axis=1).mean(), rel=1e-10)
    np.testing.assert_allclose(model.latent_frequency_, (code > 0).mean(axis=0))


def test_held_out_rows_are_scored_in_batches() -> None:
    X = data(dtype=np.float64)
    w = np.random.default_rng(2).uniform(0, 2, N)
    model = make("topk", dtype="float64", validation_fraction=0.5, loss_reduction="fvu", max_epochs=1)
    model.fit(X, sample_weight=w)
    shuffled = np.random.default_rng([model._state.seed, 0]).permutation(N)
    held = np.sort(shuffled[: N // 2])
    total = 0.0
    for batch in (held[:16], held[16:32], held[32:]):
        y, u = X[batch], w[batch]
        error = u @ ((model.reconstruct(y) - y) ** 2).sum(axis=1)
        total += u.sum() * error / (u @ ((y - np.average(y, axis=0, weights=u)) ** 2).sum(axis=1))
    assert model.history_["validation_loss"] == [pytest.approx(total / w[held].sum(), rel=1e-10)]


def test_dead_latents() -> None:
    model = fitted("topk", dead_after=20)
    since = model._engine.get("rows_since_fired")
    np.testing.assert_array_equal(model.dead_latents_, np.flatnonzero(since > 20))
    assert model.history_["dead_share"][-1] == pytest.approx((since > 20).mean())
    assert len(fitted("topk", dead_after=None).dead_latents_) == 0
    every = fitted("topk", dead_after=0)
    np.testing.assert_array_equal(every.dead_latents_, np.flatnonzero(since))


def test_the_window_of_the_frequency() -> None:
    model = fitted("topk", log_every=None, max_epochs=1)
    assert model.latent_frequency_.sum() == pytest.approx(3.0)  # k of each row
    assert fitted("topk", max_epochs=0).latent_frequency_.shape == (M,)
    assert np.isnan(fitted("topk", max_epochs=0).latent_frequency_).all()
    assert fitted("topk", log_every=100).latent_frequency_.sum() == pytest.approx(3.0)  # of a window not yet full


def test_an_entry_may_end_the_training() -> None:
    model = fitted("topk", log_every=4, callback=lambda entry: entry.get("step") == 8)
    assert model.n_steps_ == 8
    assert model.n_iter_ == 1
    assert model.resume(data()).n_steps_ == 8


def test_checkpoints_between_epochs(tmp_path: Path) -> None:
    path = tmp_path / "model"
    steps: list[int] = []
    options = {"checkpoint": path, "checkpoint_steps": 3, "log_every": 1}
    fitted("topk", callback=lambda entry: steps.append(fastsae.load(path).n_steps_ if path.exists() else 0), **options)
    assert {3, 6, 9, 12} <= set(steps)
    with pytest.raises(ValueError, match="checkpoint_steps: expected an integer >= 1, got 0"):
        fitted("topk", checkpoint_steps=0)


#: Latents that die soon.
DYING: dict[str, Any] = {"dead_after": 10, "sparsity_weight": 30.0, "learning_rate": 0.2}


@pytest.mark.parametrize(("name", "stride", "more"), [("l1 resampled", 3, DYING), ("sparsify", 11, {})])
def test_an_interrupt_at_any_line_loses_nothing(
    name: str, stride: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_MOST_BATCHES_PER_PIECE", 3)
    options = {"max_epochs": 2, "log_every": 4, **more}
    whole = fitted(name, **options)
    start = fitted(name, **{**options, "max_epochs": 0}).set_params(max_epochs=2)
    line, finished = 0, False
    while not finished:
        line += stride
        model = copy.deepcopy(start)
        interrupt = Interrupt(line)
        try:
            with interrupt:
                model.resume(data())
        except KeyboardInterrupt:
            pass
        finished = interrupt.lines_left > 0
        assert_same_bits(model.resume(data()), whole)
    assert line > 100


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    for name in ("topk with AuxK", "batch topk", "jump relu"):
        models = []
        for count in (1, 2, 3):
            fastsae.set_num_threads(count)
            models.append(fitted(name))
        for model in models[1:]:
            assert_same_bits(model, models[0])


def test_nan_in_a_memory_map_names_its_row(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "X", np.float32, "w+", shape=(N, D))
    mapped[:] = data()
    mapped[41, 3] = np.nan
    model = make("topk", bias_init="zeros")
    with pytest.raises(ValueError, match=r"^X: row 41 contains NaN"):
        model.fit(mapped)
    assert np.isfinite(model.transform(data())).all()
    unfitted = make("topk")
    with pytest.raises(ValueError, match=r"^X: row 41 contains NaN"):  # when b_dec is found
        unfitted.fit(mapped)
    assert not hasattr(unfitted, "_engine")


# Transcoders


def test_a_transcoder_learns_what_it_is_given() -> None:
    X, y = data(), targets()
    for architecture in ("topk", "batch_topk", "jump_relu", "gated", "relu"):
        penalty = {"sparsity_weight": 1e-3} if architecture in ("jump_relu", "gated", "relu") else {"k": 4}
        model = Transcoder(M, architecture=architecture, **penalty, **{**SMALL, "max_epochs": 150}).fit(X, y)
        assert model.predict(X).shape == y.shape
        assert model.score(X, y) > -0.7 * y.var(axis=0).sum()
    line = Transcoder(M, k=1, skip=True, **{**SMALL, "max_epochs": 300, "learning_rate": 0.03}).fit(X, X[:, :OUT])
    assert line.score(X, X[:, :OUT]) > -0.1


def test_one_target_may_be_a_vector() -> None:
    X, y = data(), targets()
    a, b = make("transcoder").fit(X, y[:, 0]), make("transcoder").fit(X, y[:, :1])
    assert_same_bits(a, b)
    assert a.predict(X).shape == (N, 1)
    assert not hasattr(a, "score_samples")  # which has no y
    frame = make("transcoder").fit(X, pd.DataFrame(y))
    assert_same_bits(frame, make("transcoder").fit(X, y))


BAD_TARGETS: dict[str, tuple[Any, str]] = {
    "none": (None, "requires y to be passed"),
    "rows": (np.ones((N - 1, OUT)), "inconsistent numbers of samples"),
    "NaN": (np.full((N, OUT), np.nan), "y contains NaN"),
    "3-D": (np.ones((N, OUT, 2)), "dim"),
    "complex": (np.full((N, OUT), 1j), "Complex"),
}


@pytest.mark.parametrize("kind", BAD_TARGETS)
def test_bad_targets_are_refused(kind: str) -> None:
    y, text = BAD_TARGETS[kind]
    model = fitted("transcoder")
    before = model.predict(data())
    for train in (model.fit, model.partial_fit, model.resume):
        with pytest.raises(ValueError, match=text):
            train(data(), y)
    np.testing.assert_array_equal(model.predict(data()), before)


def test_targets_of_another_width_are_refused() -> None:
    model = fitted("transcoder")
    with pytest.raises(ValueError, match=f"n_outputs: expected {OUT}"):
        model.partial_fit(data(), data())
    with pytest.raises(ValueError, match=f"y: expected {OUT} columns, got {D}"):
        model.score(data(), data())
    with pytest.raises(ValueError, match="pre_bias: True needs n_outputs=n_features=6, got 4"):
        fitted("transcoder", pre_bias=True)
    assert model.fit(data(), data()).decoder_.shape == (M, D)


# scikit-learn


def test_names_pipelines_and_searches() -> None:
    frame = pd.DataFrame(data(), columns=[f"x{i}" for i in range(D)])
    model = make("topk").fit(frame)
    assert list(model.feature_names_in_) == list(frame.columns)
    assert list(model.get_feature_names_out()) == [f"topksae{i}" for i in range(M)]
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[frame.columns[::-1]])
    pipeline = make_pipeline(StandardScaler(), make("topk")).fit(data())
    assert pipeline.transform(data()).shape == (N, M)
    search = GridSearchCV(make("topk", max_epochs=30), {"k": [1, 5]}, cv=2).fit(data(300))
    assert search.best_params_ == {"k": 5}
    wide = clone(model).set_output(transform="pandas").fit(frame).transform(frame)
    assert list(wide.columns) == list(model.get_feature_names_out())


def test_anomalies() -> None:
    detector = AnomalyDetector(make("topk", max_epochs=40), contamination=0.02).fit(data(300))
    strange = np.random.default_rng(9).normal(size=(20, D)).astype(np.float32) * 10
    assert (detector.predict(strange) == -1).all()
    assert (detector.predict(data(300)) == 1).mean() > 0.9


def test_others_say_that_they_need_layers() -> None:
    with pytest.raises(ValueError, match="expected an encoder of dense layers"):
        fastsae.StackedClassifier(make("topk"), **{"max_epochs": 1}).fit(data(), np.arange(N) % 2)
    with pytest.raises(ValueError, match="expected one hidden layer"):
        fastsae.DeepAutoencoder.from_layers([fitted("topk")])
