"""DeepAutoencoder: its layers, their pretraining, and what is left of it after an interrupt."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimator import EXPECTED_FAILURES

import fastsae
from fastsae import DeepAutoencoder, SparseAutoencoder, stores

N, D = 60, 9

CHECKED = [
    DeepAutoencoder((4, 3), max_epochs=2, verbose=False),
    DeepAutoencoder(
        (4, 3),
        max_epochs=2,
        pretrain_epochs=2,
        verbose=False,
        dtype="float64",
        code_activation="sigmoid",
        penalty="kl",
        tied=True,
    ),
    DeepAutoencoder((4, 3, 4), max_epochs=2, pretrain_epochs=1, verbose=False, dtype="float64", solver="lbfgs"),
]


def data(n: int = N, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.95, (n, D)).astype(dtype)


def make(**options: Any) -> DeepAutoencoder:
    small = {"hidden": (6, 4, 3), "max_epochs": 3, "pretrain_epochs": 2, "batch_size": 16, "random_state": 0}
    return DeepAutoencoder(**{**small, "learning_rate": 0.01, "verbose": False, **options})


def assert_same_bits(a: DeepAutoencoder, b: DeepAutoencoder) -> None:
    assert a._engine.state_names() == b._engine.state_names()
    for name in a._engine.state_names():
        np.testing.assert_array_equal(a._engine.get(name), b._engine.get(name), err_msg=name)
    assert a.history_ == b.history_
    assert a.pretrain_history_ == b.pretrain_history_


_CHECKS = parametrize_with_checks(CHECKED).mark


@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
def test_scikit_learn_checks(estimator: DeepAutoencoder, check: Any) -> None:
    try:
        check(estimator)
    except (AssertionError, ValueError):
        applies, reason = EXPECTED_FAILURES.get(check.func.__name__, (lambda model: False, ""))
        if not applies(estimator):
            raise
        pytest.xfail(reason)


# Layers


@pytest.mark.parametrize(
    ("hidden", "mirror", "widths"),
    [
        ((6, 4, 3), None, (6, 4, 3, 4, 6)),
        ((6, 4, 3, 4, 6), None, (6, 4, 3, 4, 6)),
        ([6, 4, 3, 4, 6], False, (6, 4, 3, 4, 6)),
        ((6, 4, 6), True, (6, 4, 6, 4, 6)),
        ((5,), None, (5,)),
        ((5,), True, (5,)),
        ((5,), False, (5,)),
        ((5, 5), None, (5, 5, 5)),
        ((5, 5, 5), True, (5, 5, 5, 5, 5)),
        ((5, 5, 5), False, (5, 5, 5)),
        (np.array([4, 2]), None, (4, 2, 4)),
    ],
)
def test_hidden_is_the_encoder_or_all_hidden_layers(hidden: Any, mirror: Any, widths: tuple[int, ...]) -> None:
    config = make(hidden=hidden, mirror=mirror)._config(D)
    assert config.widths == (D, *widths, D)
    assert config.code_layer == (len(widths) + 1) // 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"hidden": (5, 5, 5)}, r"hidden: \(5, 5, 5\) may be the encoder \(mirror=True\) or all hidden layers"),
        ({"hidden": (5, 4), "mirror": False}, r"hidden: mirror=False needs an odd number .* got \(5, 4\)"),
        ({"hidden": ()}, r"hidden: expected a tuple of at least one"),
        ({"hidden": 5}, r"hidden: expected a tuple of at least one number of units, got 5"),
        ({"hidden": (5, 0)}, r"hidden: expected an integer >= 1, got 0"),
        ({"mirror": "yes"}, r"mirror: expected True, False or None, got 'yes'"),
        ({"activation": ("tanh",)}, r"activation: expected one value or 2 of them, got 1"),
        ({"penalty": ("none",) * 4}, r"penalty: expected one value or 3 or 5 of them, got 4"),
        ({"penalty": "kl"}, r"code_activation: penalty='kl' needs one of .* got 'identity'"),
        ({"beta": (1.0, -1.0, 1.0)}, r"layers\[1\].beta: expected a number"),
        ({"pretrain_epochs": -1}, r"pretrain_epochs: expected an integer >= 0, got -1"),
        ({"code_activation": "softmax"}, r"layers\[2\].activation: expected one of"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], text: str) -> None:
    model = make().fit(data())
    before = model.transform(data())
    with pytest.raises(ValueError, match=text):
        model.set_params(**options).fit(data())
    np.testing.assert_array_equal(model.transform(data()), before)


def test_options_of_layers() -> None:
    config = make(
        activation=("tanh", "relu"),
        code_activation="sigmoid",
        penalty=("kl", "l1", "kl"),
        rho=(0.1, 0.2, 0.3),
        beta=2.0,
    )._config(D)
    assert [layer.activation for layer in config.layers] == ["tanh", "relu", "sigmoid", "relu", "tanh", "sigmoid"]
    assert [layer.penalty for layer in config.layers] == ["kl", "l1", "kl", "none", "none", "none"]
    assert [layer.rho for layer in config.layers[:5]] == [0.1, 0.2, 0.3, 0.2, 0.1]
    whole = make(penalty=("none", "none", "l1", "none", "log"), beta=(0, 0, 1, 0, 2))._config(D)
    assert [layer.penalty for layer in whole.layers] == ["none", "none", "l1", "none", "log", "none"]
    assert [layer.beta for layer in whole.layers[:5]] == [0, 0, 1, 0, 2]


def test_unroll_gives_encoder_and_mirrored_decoder() -> None:
    X = data(dtype=np.float64)
    functions = {"tanh": np.tanh, "identity": lambda z: z, "sigmoid": lambda z: 1 / (1 + np.exp(-z))}
    for tied in (False, True):
        model = make(activation="tanh", tied=tied, dtype="float64").fit(X)
        encoder, decoder = model.unroll()
        a = X
        for layer in encoder:
            a = functions[layer.activation](a @ layer.weight.T + layer.bias)
        np.testing.assert_allclose(a, model.transform(X), rtol=1e-12)
        for layer in decoder:
            a = functions[layer.activation](a @ layer.weight.T + layer.bias)
        np.testing.assert_allclose(a, model.reconstruct(X), rtol=1e-12)
        assert [layer.weight.shape for layer in decoder] == [layer.weight.shape[::-1] for layer in encoder[::-1]]


# Pretraining


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_pretraining_is_that_of_each_layer_alone(solver: str, tied: bool) -> None:
    """The same by hand, with SparseAutoencoders of the codes below; from_layers unrolls them."""
    X = data()
    w = np.random.default_rng(1).uniform(0.5, 2, N)
    options = {"activation": "sigmoid", "solver": solver, "tied": tied, "batch_size": 16, "learning_rate": 0.01}
    deep = make(**options, code_activation="sigmoid", penalty="kl", max_epochs=0).fit(X, sample_weight=w)
    stack, codes = [], X
    for number, units in enumerate((6, 4, 3), 1):
        seed = int(np.random.default_rng([deep._state.seed, 3, number]).integers(2**31 - 1))
        layer = SparseAutoencoder(units, **options, max_epochs=2, random_state=seed, verbose=False)
        stack.append(layer.fit(codes, sample_weight=w))
        assert deep.pretrain_history_[number - 1] == layer.history_
        codes = layer.transform(codes)
    unrolled = DeepAutoencoder.from_layers(stack, max_epochs=0, verbose=False)
    for name in deep._engine.parameter_names():
        np.testing.assert_array_equal(deep._engine.get(name), unrolled._engine.get(name), err_msg=name)
    np.testing.assert_array_equal(deep.transform(X), codes)
    assert unrolled.get_params()["hidden"] == (6, 4, 3)
    unrolled.set_params(max_epochs=2).resume(X)
    assert unrolled.n_iter_ == 2
    assert unrolled.pretrain_history_ == []


def test_pretraining_helps() -> None:
    """Of a deep sigmoid stack, whose early layers learn slowly from the far end."""
    rng = np.random.default_rng(0)
    X = 1 / (1 + np.exp(-rng.standard_normal((400, 2)) @ rng.standard_normal((2, D)) * 2)).astype(np.float32)
    options = {"hidden": (8, 6, 4, 2), "max_epochs": 20, "activation": "sigmoid", "learning_rate": 3e-3}
    plain, pretrained = (make(**options, pretrain_epochs=epochs).fit(X) for epochs in (0, 40))
    assert pretrained.history_["loss"][-1] < 0.7 * plain.history_["loss"][-1]


def test_no_pretraining_in_partial_fit() -> None:
    model = make().partial_fit(data()).partial_fit(data())
    assert (model.n_iter_, model.pretrain_history_) == (2, [])
    model.resume(data())
    assert (model.n_iter_, model.pretrain_history_) == (3, [])
    assert_same_bits(model, make(pretrain_epochs=0).partial_fit(data()).partial_fit(data()).resume(data()))


def test_large_codes_go_to_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also of a memory map; the bits are the same."""
    X = data(20_000)
    np.save(tmp_path / "X.npy", X)
    expected = make(max_epochs=1, batch_size=1000).fit(X)
    monkeypatch.setattr(stores, "_BYTES_IN_MEMORY", 1000)
    kinds = []
    fit = SparseAutoencoder._fit

    def spy(self: SparseAutoencoder, codes: Any, *rest: Any) -> Any:
        kinds.append(type(codes.base if type(codes) is np.ndarray else codes))
        return fit(self, codes, *rest)

    monkeypatch.setattr(SparseAutoencoder, "_fit", spy)
    mapped = make(max_epochs=1, batch_size=1000).fit(np.load(tmp_path / "X.npy", mmap_mode="r"))
    assert kinds == [np.memmap, np.memmap, np.memmap]
    assert_same_bits(mapped, expected)


class Stop(Exception):
    pass


def stop_at(count: int) -> Any:
    calls = []

    def callback(entry: dict[str, float]) -> None:
        calls.append(entry)
        if len(calls) == count:
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize("way", ["here", "pickle", "checkpoint"])
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 8])
def test_an_interrupt_anywhere_changes_nothing(count: int, way: str, tmp_path: Path) -> None:
    """After any epoch of the 3 x 2 of pretraining and the 3 of all layers."""
    X, options = data(), {"early_stopping": False, "penalty": "l1", "beta": 0.01, "rho_hat": "batch"}
    expected = make(**options).fit(X)
    path = tmp_path / "deep.safetensors"
    model = make(**options, checkpoint=path if way == "checkpoint" else None, callback=stop_at(count))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert np.isfinite(model.score_samples(X)).all()  # usable
    assert sum(len(one["epoch"]) for one in model.pretrain_history_) == min(count, 6)
    model.set_params(callback=None)
    if way == "pickle":
        model = pickle.loads(pickle.dumps(model))
    if way == "checkpoint":
        loaded = fastsae.load(path)
        assert isinstance(loaded, DeepAutoencoder)
        np.testing.assert_array_equal(loaded.transform(X), model.transform(X))
        assert loaded.hidden == (6, 4, 3)
        model = loaded
    assert_same_bits(model.resume(X), expected)
    if way == "checkpoint":
        again = fastsae.load(path)
        assert isinstance(again, DeepAutoencoder)
        assert_same_bits(again, expected)


def test_callbacks_and_histories_say_the_layer() -> None:
    entries: list[dict[str, float]] = []
    model = make(callback=lambda entry: entries.append(entry)).fit(data())
    assert [(entry.get("layer"), entry["epoch"]) for entry in entries] == [
        *[(layer, epoch) for layer in (1, 2, 3) for epoch in (1, 2)],
        *[(None, epoch) for epoch in (1, 2, 3)],
    ]
    assert [len(one["loss"]) for one in model.pretrain_history_] == [2, 2, 2]
    assert len(model.history_["loss"]) == model.n_iter_ == 3
    ended = make(callback=lambda entry: entry.get("layer") == 2).fit(data())
    assert [len(one["loss"]) for one in ended.pretrain_history_] == [2, 1, 2]


def test_clone_save_and_partial_resume(tmp_path: Path) -> None:
    model = make(hidden=(5, 2), penalty=("l1", "none"), beta=(0.1, 1.0)).fit(data())
    assert clone(model).get_params() == model.get_params()
    model.save(tmp_path / "deep")
    loaded = fastsae.load(tmp_path / "deep")
    assert isinstance(loaded, DeepAutoencoder)
    assert_same_bits(loaded, model)
    assert_same_bits(loaded.set_params(max_epochs=5).resume(data()), model.set_params(max_epochs=5).resume(data()))


def test_tampered_states_are_refused(tmp_path: Path) -> None:
    model = make(callback=stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        model.fit(data())
    for state, text in (
        ({"pretrained": 7, "pretrain_history": []}, "pretrained: expected an integer in"),
        ({"pretrained": 3, "pretrain_history": []}, "layer in pretraining is not one"),
        ({"pretrained": 0, "pretrain_history": []}, "layer in pretraining has other widths"),
        ({"pretrained": 1, "pretrain_history": [{"loss": ["x"]}]}, "pretrain_history is damaged"),
    ):
        model._more_state = lambda state=state: state  # type: ignore[method-assign, misc]
        model.save(tmp_path / "bad")
        with pytest.raises(ValueError, match=text):
            fastsae.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("stack", "text"),
    [
        ([], r"layers: expected at least one"),
        ([SparseAutoencoder(3)], r"layers\[0\]: expected a fitted autoencoder"),
        ([5], r"layers\[0\]: expected a fitted autoencoder, got int"),
    ],
)
def test_from_layers_names_what_does_not_fit(stack: list[Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DeepAutoencoder.from_layers(stack)


def test_layers_must_fit_on_each_other() -> None:
    def layer(d: int, units: int, **options: Any) -> SparseAutoencoder:
        X = np.random.default_rng(0).uniform(size=(20, d))
        return SparseAutoencoder(units, max_epochs=1, verbose=False, random_state=0, **options).fit(X)

    first = layer(D, 5)
    with pytest.raises(ValueError, match=r"layers\[1\]: expected 5 features, the units of layers\[0\], got 4"):
        DeepAutoencoder.from_layers([first, layer(4, 3)])
    with pytest.raises(ValueError, match=r"layers\[1\]: expected output_activation='sigmoid'.* got 'tanh'"):
        DeepAutoencoder.from_layers([first, layer(5, 3, output_activation="tanh")])
    with pytest.raises(ValueError, match=r"layers: expected all to be tied, or none"):
        DeepAutoencoder.from_layers([first, layer(5, 3, tied=True)])
    deep = DeepAutoencoder.from_layers([first, layer(5, 3, activation="tanh")])
    assert (deep.code_activation, deep.hidden, deep.activation) == ("tanh", (5, 3), ("sigmoid",))
    with pytest.raises(ValueError, match=r"layers\[0\]: expected one hidden layer, got 3"):
        DeepAutoencoder.from_layers([deep])
