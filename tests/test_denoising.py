"""DenoisingAutoencoder, and noise in what trains a model: files, pieces, interrupts, sweeps."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

import fastsae
from fastsae import Config, DenoisingAutoencoder, Engine, LayerConfig, SparseAutoencoder, sweep, trainer
from fastsae.config import CORRUPTIONS
from fastsae.reference.corruption import corrupt

KINDS = CORRUPTIONS[1:]


def make(**rest: Any) -> DenoisingAutoencoder:
    small = {"n_hidden": 6, "max_epochs": 4, "batch_size": 16, "random_state": 0, "verbose": False}
    return DenoisingAutoencoder(**{**small, **rest})


def assert_same(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    assert a.history_ == b.history_
    for name in ("components_", "intercept_", "decoder_", "decoder_intercept_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


X = np.random.default_rng(8).integers(0, 2, (100, 9)).astype(np.float32)
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


def test_the_preset() -> None:
    """It is the sparse autoencoder with noise and without a penalty, whose other defaults are the same."""
    denoising, sparse = DenoisingAutoencoder().get_params(), SparseAutoencoder().get_params()
    assert {name for name in sparse if denoising[name] != sparse[name]} == {"corruption", "penalty"}
    assert (denoising["corruption"], denoising["corruption_level"], denoising["penalty"]) == ("masking", 0.3, "none")
    assert_same(make().fit(X), SparseAutoencoder(**make().get_params()).fit(X))


@ALL_KINDS
def test_options_reach_the_model(kind: str) -> None:
    fitted = [make(corruption=kind, corruption_level=level).fit(X).components_ for level in (0.1, 0.6)]
    assert not np.array_equal(*fitted)
    assert not np.array_equal(fitted[0], make(corruption="none").fit(X).components_)


@ALL_KINDS
def test_pieces_of_a_memory_map_have_the_noise_of_the_whole(kind: str, tmp_path: Path) -> None:
    """Rows of bytes are converted a piece at a time, in the order of training; floats are read where they are."""
    mapped = np.memmap(tmp_path / "rows", np.uint8, "w+", shape=X.shape)
    mapped[:] = X
    for fraction in (0.0, 0.3):
        dae = make(corruption=kind, validation_fraction=fraction)
        assert_same(clone(dae).fit(mapped), clone(dae).fit(X))


@ALL_KINDS
def test_resume_is_bit_equal(kind: str, tmp_path: Path) -> None:
    whole = make(corruption=kind, max_epochs=5).fit(X)
    path = tmp_path / "half.safetensors"
    make(corruption=kind, max_epochs=2).fit(X).save(path)
    loaded = fastsae.load(path)
    assert type(loaded) is DenoisingAutoencoder
    assert loaded.corruption == kind
    assert_same(loaded.set_params(max_epochs=5).resume(X), whole)
    pickled = pickle.loads(pickle.dumps(make(corruption=kind, max_epochs=2).fit(X)))
    assert_same(pickled.set_params(max_epochs=5).resume(X), whole)
    with pytest.raises(ValueError, match=r"corruption_level: expected 0\.3"):
        whole.set_params(corruption_level=0.2, max_epochs=6).resume(X)


def test_resume_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt between two batches: the rest of the epoch has the noise that it would have had."""
    monkeypatch.setattr(trainer, "_MOST_BATCHES_PER_PIECE", 1)
    whole = make(corruption="gaussian").fit(X)
    run_epoch, calls = Engine.run_epoch, itertools.count()

    def interrupted(self: Engine, *args: Any, **rest: Any) -> None:
        if next(calls) == 9:
            raise KeyboardInterrupt
        run_epoch(self, *args, **rest)

    half = make(corruption="gaussian")
    monkeypatch.setattr(Engine, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        half.fit(X)
    monkeypatch.setattr(Engine, "run_epoch", run_epoch)
    assert half.n_iter_ == 1
    assert_same(half.resume(X), whole)


def test_noise_of_every_epoch_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of every partial_fit. Without learning, J differs between epochs by the noise alone."""
    options = {"learning_rate": 0.0, "shuffle": False, "weight_decay": 0.0}
    for dae in (make(**options).fit(X), make(**options)):
        for _ in range(0 if hasattr(dae, "components_") else 4):
            dae.partial_fit(X)
        assert len(set(dae.history_["loss"])) == 4
    assert len(set(make(**options, corruption="none").fit(X).history_["loss"])) == 1
    other = make(**options, random_state=1).fit(X)
    assert not set(other.history_["loss"]) & set(make(**options).fit(X).history_["loss"])


def test_history_is_of_corrupted_rows() -> None:
    """One epoch of one batch: J of the first weights, with the noise of epoch 0; held-out rows with theirs."""
    dae = make(max_epochs=1, batch_size=None, learning_rate=0.0).fit(X)
    engine = dae._engine
    assert engine.noise_seed == dae._state.seed
    engine.epoch = 0
    assert dae.history_["loss"][0] == pytest.approx(engine.evaluate(X)["loss"], rel=1e-6)
    engine.epoch = 1
    assert dae.history_["loss"][0] != pytest.approx(engine.evaluate(X)["loss"], rel=1e-6)


def test_lbfgs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"corruption='masking' draws fresh noise .* solver='lbfgs'"):
        make(solver="lbfgs").fit(X)
    make(solver="lbfgs", corruption="none").fit(X)


def test_sweeps_have_noise() -> None:
    grid = [{"corruption": kind, "corruption_level": level} for kind in KINDS for level in (0.1, 0.4)]
    common = {"n_hidden": 6, "max_epochs": 2, "random_state": 0, "verbose": False}
    for entry, model in zip(grid, sweep(grid, X, **common), strict=True):
        assert_same(model, SparseAutoencoder(**entry, **common).fit(X))


def test_emphasis_moves_the_loss_to_corrupted_elements() -> None:
    """With all weight on them, elements that are never corrupted are not learned; with none, J is of the rest."""
    full = make(emphasis=1.0, emphasis_rest=0.0, corruption_level=0.0, weight_decay=0.0).fit(X)
    assert full.history_["reconstruction"] == [0.0] * 4
    rest = make(emphasis=0.0, emphasis_rest=1.0, corruption_level=1.0, weight_decay=0.0).fit(X)
    assert rest.history_["reconstruction"] == [0.0] * 4
    twice = make(emphasis=2.0, emphasis_rest=2.0, max_epochs=1, learning_rate=0.0).fit(X)
    once = make(max_epochs=1, learning_rate=0.0).fit(X)
    assert twice.history_["reconstruction"][0] == pytest.approx(2 * once.history_["reconstruction"][0], rel=1e-6)


def test_check_gradient_of_an_estimator() -> None:
    for kind in KINDS:
        assert fastsae.check_gradient(make(corruption=kind).fit(X), X[:10]) < 1e-9


@ALL_KINDS
def test_it_removes_noise(kind: str) -> None:
    """Rows in a plane of 3 of 30 dimensions: from noisy rows the trained model finds clean ones, better than a twin."""
    rng = np.random.default_rng(9)
    clean = 1 / (1 + np.exp(-rng.normal(size=(3000, 3)) @ rng.normal(size=(3, 30))))
    train, test = clean[:2000], clean[2000:]
    config = Config(30, (LayerConfig(30),), corruption=kind, corruption_level=0.3)
    corrupted = corrupt(config, test, np.arange(1000), 99, 0).x
    common = {"n_hidden": 20, "max_epochs": 60, "batch_size": 50, "learning_rate": 0.01, "weight_decay": 0.0}
    errors = {
        name: float(((make(corruption=name, **common).fit(train).reconstruct(corrupted) - test) ** 2).mean())
        for name in ("none", kind)
    }
    assert errors[kind] < 0.6 * errors["none"]
    assert errors[kind] < 0.6 * float(((corrupted - test) ** 2).mean())
