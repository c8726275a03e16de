"""Presets: each library's constants under our names, and what an option that was given is worth beside them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from fastsae import L1SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE, Transcoder
from fastsae.dictionaries import AUTO, Dictionary
from fastsae.presets import DEFAULTS, PRESETS, Steps

D, M = 10, 32
CLASSES: dict[str, type[Dictionary]] = {
    "topk": TopKSAE,
    "batch_topk": BatchTopKSAE,
    "matryoshka": MatryoshkaSAE,
    "jump_relu": JumpReLUSAE,
    "gated": GatedSAE,
    "l1": L1SAE,
}
PAIRS = [(library, name) for library, tables in PRESETS.items() for name in tables]


def make(architecture: str, **options: Any) -> Any:
    small = {"n_latents": M} | ({"k": 3} if "topk" in architecture or architecture == "matryoshka" else {})
    if architecture.startswith("transcoder"):
        return Transcoder(architecture=architecture.split()[1], **small, **options)
    return CLASSES[architecture](**small, **options)


def config_of(model: Any) -> dict[str, Any]:
    return dataclasses.asdict(model._config(D))


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
def test_every_entry_is_an_option_and_counts(library: str, architecture: str) -> None:
    model = make(architecture, preset=library)
    resolved = model.resolved_params()
    assert AUTO not in [value for name, value in resolved.items() if name != "device"]
    config = config_of(model)
    for name, value in PRESETS[library][architecture].items():
        assert model.get_params()[name] == AUTO, f"{name} would not be read"
        if isinstance(value, (int, float, str, type(None))):
            assert resolved[name] == value, name
        if name in config:
            assert config[name] == resolved[name], name


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
def test_an_option_that_is_given_goes_before_the_preset(library: str, architecture: str) -> None:
    options = {"learning_rate": 0.25, "beta1": 0.5, "lr_warm_up": 7, "batch_size": 11, "dead_after": 5}
    resolved = make(architecture, preset=library, **options).resolved_params()
    assert {name: resolved[name] for name in options} == options
    assert make(architecture, preset=library, dead_after=None).resolved_params()["dead_after"] is None


def test_a_preset_without_its_warm_up_has_no_start_of_one() -> None:
    assert make("topk", preset="dictionary_learning").resolved_params()["lr_start"] == 0.0
    for changed in ({"lr_warm_up": 0}, {"solver": "sign_sgd", "max_grad_norm": None}):
        model = make("topk", preset="dictionary_learning", **changed)
        assert model.resolved_params()["lr_start"] is None
        config_of(model)


@pytest.mark.parametrize("architecture", DEFAULTS)
def test_our_own_defaults_are_options_and_count(architecture: str) -> None:
    model = make(architecture)
    assert set(DEFAULTS[architecture]) <= set(model.get_params())
    config_of(model)
    config_of(make(architecture, preset=None, decoder_norm="unit"))
    config_of(make(architecture, preset=None, decoder_norm="free"))


# What the libraries' sources say, written down again from them.
EXPECTED: dict[tuple[str, str], dict[str, Any]] = {
    ("saelens", "topk"): {
        "learning_rate": 3e-4,
        "max_grad_norm": 1.0,
        "decoder_norm": "rescale",
        "aux_weight": 1.0,
        "aux_relu": False,
        "aux_reduction": "sum",
        "dead_after": 1000 * 4096,
    },
    ("saelens", "batch_topk"): {"threshold_decay": 0.99, "threshold_start": 0.0},
    ("saelens", "matryoshka"): {"prefix_weights": None, "loss_reduction": "sum"},
    ("saelens", "jump_relu"): {"bandwidth": 0.05, "initial_threshold": 0.01, "sparsity": "step", "target_l0": None},
    ("saelens", "gated"): {"gate_detached": False, "sparsity_by_norm": True, "sparsity_weight": 1.0},
    ("saelens", "l1"): {"sparsity_weight": 1.0, "sparsity_by_norm": True, "sparsity_warm_up": 0},
    ("sparsify", "topk"): {
        "optimizer": "sign_sgd",
        "learning_rate": 5e-3 / math.sqrt(M / 2**14),
        "momentum": 0.95,
        "loss_reduction": "fvu",
        "aux_weight": 0.0,
        "dead_after": 10_000_000,
        "decoder_norm": "unit",
    },
    ("sparsify", "transcoder topk"): {"decoder_norm": "free", "pre_bias": False},
    ("dictionary_learning", "topk"): {
        "learning_rate": 2e-4 / math.sqrt(M / 2**14),
        "lr_warm_up": 1000,
        "lr_start": 0.0,
        "max_grad_norm": 1.0,
        "aux_weight": 1 / 32,
        "aux_share": False,
        "aux_reduction": "residual",
    },
    ("dictionary_learning", "batch_topk"): {"threshold_decay": 0.999, "threshold_start": None},
    ("dictionary_learning", "matryoshka"): {"prefix_weights": (1 / 25,) * 5},
    ("dictionary_learning", "jump_relu"): {
        "learning_rate": 7e-5,
        "beta1": 0.0,
        "bandwidth": 0.001,
        "initial_threshold": 0.001,
        "sparsity": "quadratic",
        "target_l0": 20.0,
        "sparsity_warm_up": 2000,
        "pre_bias": False,
    },
    ("dictionary_learning", "gated"): {
        "learning_rate": 5e-5,
        "beta1": 0.0,
        "gate_detached": True,
        "sparsity_weight": 0.1,
        "sparsity_by_norm": False,
        "max_grad_norm": None,
    },
    ("dictionary_learning", "l1"): {"learning_rate": 1e-3, "sparsity_weight": 0.1, "sparsity_warm_up": 2000},
    ("openai", "topk"): {"learning_rate": 1e-4, "epsilon": 6.25e-10, "aux_k": 256, "loss_reduction": "fvu_data"},
}


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
def test_the_constants(library: str, architecture: str) -> None:
    config = config_of(make(architecture, preset=library))
    expected = EXPECTED[library, architecture]
    assert {name: config[name] for name in expected} == expected


@pytest.mark.parametrize(("library", "architecture"), PAIRS)
def test_every_preset_trains(library: str, architecture: str) -> None:
    X = np.random.default_rng(0).normal(size=(60, D)).astype(np.float32)
    model = make(architecture, preset=library, batch_size=20, max_epochs=2, random_state=0, verbose=False)
    model.fit(X, *((X,) if isinstance(model, Transcoder) else ()))
    assert model.n_steps_ == 6
    assert np.isfinite(model.history_["loss"]).all()


# Other than its default, for every option.
OTHERS: dict[str, Any] = {
    "n_latents": 24,
    "k": 2,
    "preset": "saelens",
    "architecture": "batch_topk",
    "skip": True,
    "pre_bias": False,
    "decoder_norm": "rescale",
    "project_gradient": False,
    "loss_reduction": "mean",
    "dead_after": 0,
    "bias_init": "zeros",
    "decoder_init_norm": 0.3,
    "encoder_init_norm": 0.3,
    "solver": "sgd",
    "learning_rate": 0.3,
    "momentum": 0.3,
    "beta1": 0.3,
    "beta2": 0.3,
    "epsilon": 0.3,
    "lr_schedule": "cosine",
    "lr_warm_up": 3,
    "lr_start": 0.5,
    "lr_decay_steps": 2,
    "lr_total_steps": 40,
    "lr_final": 0.5,
    "lr_step_size": 2,
    "lr_gamma": 0.5,
    "max_grad_norm": 0.01,
    "batch_size": 7,
    "max_epochs": 3,
    "max_steps": 4,
    "log_every": 2,
    "shuffle": False,
    "validation_fraction": 0.3,
    "early_stopping": True,
    "n_iter_no_change": 1,
    "tol": 0.9,
    "scale": "zscore",
    "dtype": "float64",
    "state_precision": "bf16",
    "random_state": 5,
    "k_start": 6,
    "k_warm_up": 3,
    "aux_k": 1,
    "aux_weight": 9.0,
    "aux_relu": False,
    "aux_share": False,
    "aux_reduction": "sum",
    "threshold_decay": 0.2,
    "threshold_start": 0.7,
    "prefixes": (5, M),
    "prefix_weights": (1.0, 3.0, 1.0, 2.0, 5.0),
    "sparsity": "tanh",
    "sparsity_weight": 3.0,
    "sparsity_by_norm": False,
    "sparsity_warm_up": 50,
    "target_l0": 2.0,
    "tanh_scale": 9.0,
    "pre_act_weight": 9.0,
    "bandwidth": 0.9,
    "initial_threshold": 0.5,
    "gate_weight": 9.0,
    "gate_detached": False,
    "resample_every": 2,
}
#: Options that need others beside them to count.
WITH: dict[str, dict[str, Any]] = {
    "momentum": {"solver": "momentum"},
    "lr_start": {"lr_warm_up": 3},
    "lr_decay_steps": {"lr_schedule": "linear"},
    "lr_total_steps": {"lr_schedule": "cosine"},
    "lr_final": {"lr_schedule": "cosine"},
    "lr_step_size": {"lr_schedule": "step"},
    "lr_gamma": {"lr_schedule": "step", "lr_step_size": 2},
    "k_start": {"k_warm_up": 3, "k_start": 20},
    "k_warm_up": {"k_start": 6, "k_warm_up": 9},
    "early_stopping": {"n_iter_no_change": 1, "tol": 0.9},
    "n_iter_no_change": {"early_stopping": True, "tol": 0.9},
    "tol": {"early_stopping": True, "n_iter_no_change": 1, "tol": 0.999},
    "tanh_scale": {"sparsity": "tanh"},
    "sparsity_by_norm": {"sparsity": "l1", "decoder_norm": "free"},
    "pre_act_weight": {"dead_after": 0, "batch_size": 2},
    "aux_k": {"dead_after": 0},
    "aux_weight": {"dead_after": 0},
    "aux_relu": {"dead_after": 0},
    "aux_share": {"dead_after": 0, "aux_k": 20},
    "aux_reduction": {"dead_after": 0},
    "dead_after": {"log_every": 1, "batch_size": 2, "max_epochs": 1},
    "resample_every": {"dead_after": 0, "decoder_norm": "unit"},
    "batch_size": {},
}
#: Those that change nothing of a training, and have tests of their own.
ELSEWHERE = {"checkpoint", "checkpoint_every", "checkpoint_steps", "callback", "verbose", "device", "precision"}


def outcome(model: Dictionary) -> list[np.ndarray]:
    X = np.random.default_rng(0).normal(size=(60, D)).astype(np.float32)
    model.fit(X, *((X,) if isinstance(model, Transcoder) else ()))
    tensors = [model._engine.get(name) for name in model._engine.state_names()]
    histories = (*model.history_.items(), *model.step_history_.items())
    tensors.append(model.transform(X))
    return [*tensors, *(np.array(values) for name, values in histories if name != "rows_per_second")]


def outcome_or_error(architecture: str, options: dict[str, Any]) -> list[np.ndarray] | str:
    try:
        return outcome(make(architecture).set_params(**options))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("architecture", [*CLASSES, "transcoder topk"])
def test_no_option_is_accepted_and_ignored(architecture: str) -> None:
    base: dict[str, Any] = {"batch_size": 20, "max_epochs": 4, "random_state": 0, "verbose": False, "scale": None}
    options = make(architecture).get_params()
    assert set(options) <= set(OTHERS) | ELSEWHERE
    ignored = []
    for name in sorted(set(options) - ELSEWHERE):
        beside = {key: value for key, value in WITH.get(name, {}).items() if key in options}
        value = beside.pop(name, OTHERS[name])
        if (architecture, name) == ("transcoder topk", "pre_bias"):
            value = True
        plain = outcome_or_error(architecture, base | beside)
        other = outcome_or_error(architecture, base | beside | {name: value})
        if isinstance(other, str):
            assert any(option in other for option in (name, *beside)), name
        elif not isinstance(plain, str) and len(plain) == len(other):
            pairs = zip(plain, other, strict=True)
            if all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs):
                ignored.append(name)
    assert ignored == []


def test_steps_are_counted_in_batches() -> None:
    assert isinstance(PRESETS["saelens"]["topk"]["dead_after"], Steps)
    assert make("topk", preset="saelens", batch_size=100).resolved_params()["dead_after"] == 100_000
