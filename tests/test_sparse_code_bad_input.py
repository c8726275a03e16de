"""What a sparse code cannot be or take is refused by name, and the model keeps its last good state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from test_sparse_code_parity import MODELS, make_engine, start
from test_sparse_code_reference import CASES, LATENTS, OUTPUTS, D, make

from fastsae import Engine
from fastsae.sparse_code import SparseCodeConfig

N = 12
GATED, JUMP, RELU = ({"activation": name} for name in ("gated", "jump_relu", "relu"))
BATCH = {"activation": "batch_topk"}

# Options that are wrong, and what is said.
BAD: list[tuple[dict[str, Any], str]] = [
    ({"n_features": 0}, r"^n_features: expected an integer >= 1, got 0"),
    ({"n_latents": 0}, r"^n_latents: expected an integer >= 1, got 0"),
    ({"n_latents": 2.0}, r"^n_latents: expected an integer >= 1, got 2.0"),
    ({"n_outputs": 0}, r"^n_outputs: expected an integer >= 1, got 0"),
    ({"n_outputs": 3}, r"^n_outputs: other than n_features=5 needs transcoder=True, got 3"),
    ({"n_outputs": 3, "transcoder": True}, r"^pre_bias: True needs n_outputs=n_features=5, got 3"),
    ({"transcoder": 1}, r"^transcoder: expected True or False, got 1"),
    ({"skip": True}, r"^skip: other than False needs transcoder=True, got True"),
    ({"activation": "softmax"}, r"^activation: expected one of 'topk', .*'relu', got 'softmax'"),
    ({"k": 0}, r"^k: expected an integer in \[1, 11\], got 0"),
    ({"k": -1}, r"^k: expected an integer in \[1, 11\], got -1"),
    ({"k": 12}, r"^k: expected an integer in \[1, 11\], got 12"),
    ({"k": 2.5}, r"^k: expected an integer in \[1, 11\], got 2.5"),
    ({"k": True}, r"^k: expected an integer in \[1, 11\], got True"),
    ({"k": None}, r"^k: expected an integer in \[1, 11\], got None"),
    ({**BATCH, "k": 0.0}, r"^k: expected a number in \(0, 11\], got 0.0"),
    ({**BATCH, "k": 11.5}, r"^k: expected a number in \(0, 11\], got 11.5"),
    ({**BATCH, "k": math.nan}, r"^k: expected a number in \(0, 11\], got nan"),
    ({**RELU, "k": 5}, r"^k: other than 32 needs activation='topk' or 'batch_topk', got 5"),
    ({"k_start": 12, "k_warm_up": 5}, r"^k_start: expected an integer in \[1, 11\], got 12"),
    ({"k_start": 5}, r"^k_start, k_warm_up: a warm-up needs both or neither, got k_start=5 and k_warm_up=0"),
    ({"k_warm_up": 5}, r"^k_start, k_warm_up: .* got k_start=None and k_warm_up=5"),
    ({"k_warm_up": -1}, r"^k_warm_up: expected an integer >= 0, got -1"),
    ({"prefixes": 3}, r"^prefixes: expected a tuple of integers, got 3"),
    ({"prefixes": (0, 11)}, r"^prefixes: expected an integer in \[1, 11\], got 0"),
    ({"prefixes": (4, 4, 11)}, r"^prefixes: expected rising numbers, got \(4, 4, 11\)"),
    ({"prefixes": (4, 3, 11)}, r"^prefixes: expected rising numbers, got \(4, 3, 11\)"),
    ({"prefixes": (4, 10)}, r"^prefixes: the last must be n_latents=11, got \(4, 10\)"),
    ({"prefixes": (4, 12)}, r"^prefixes: expected an integer in \[1, 11\], got 12"),
    (
        {**RELU, "prefixes": (4, 11)},
        r"^prefixes: other than \(\) needs activation='topk' or 'batch_topk', got \(4, 11\)",
    ),
    ({"n_latents": 30, "prefixes": tuple(range(14, 31))}, r"^prefixes: expected at most 16, got 17"),
    ({"prefix_weights": (1.0,)}, r"^prefix_weights: other than None needs prefixes, got \(1.0,\)"),
    ({"prefixes": (4, 11), "prefix_weights": (1.0,)}, r"^prefix_weights: expected 2, one for each prefix, got"),
    ({"prefixes": (4, 11), "prefix_weights": (1.0, -1.0)}, r"^prefix_weights: expected a number in \[0, inf\), got -1"),
    ({"prefixes": (4, 11), "prefix_weights": (0.0, 0.0)}, r"^prefix_weights: expected one above 0, else nothing"),
    ({"decoder_norm": "l2"}, r"^decoder_norm: expected one of 'unit', 'rescale', 'free', got 'l2'"),
    ({"decoder_norm": "free", "project_gradient": False}, r"^project_gradient: other than True needs decoder_norm="),
    (
        {"loss_reduction": "max"},
        r"^loss_reduction: expected one of 'fvu', 'fvu_data', 'sum', 'mean', 'ufldl', got 'max'",
    ),
    ({"sparsity": "l0"}, r"^sparsity: expected one of 'none', .*, got 'l0'"),
    ({"sparsity": "l1"}, r"^sparsity='l1' needs activation='relu' or 'jump_relu' or 'gated', got 'topk'"),
    ({**GATED, "sparsity": "tanh"}, r"^sparsity='tanh' needs activation='relu' or 'jump_relu', got 'gated'"),
    ({**RELU, "sparsity": "step"}, r"^sparsity='step' needs activation='jump_relu', got 'relu'"),
    ({**RELU, "sparsity_weight": 0.5}, r"^sparsity_weight: other than 1.0 needs sparsity other than 'none', got 0.5"),
    ({**RELU, "sparsity": "l1", "sparsity_weight": -0.5}, r"^sparsity_weight: expected a number in \[0, inf\), got"),
    ({**RELU, "sparsity": "l1", "sparsity_weight": "1"}, r"^sparsity_weight: expected a number in .*, got '1'"),
    ({**RELU, "sparsity_warm_up": 5}, r"^sparsity_warm_up: other than 0 needs sparsity other than 'none', got 5"),
    (
        {**JUMP, "sparsity": "step", "sparsity_by_norm": False},
        r"^sparsity_by_norm: other than True needs spars",
    ),
    ({**RELU, "sparsity": "l1", "tanh_scale": 2.0}, r"^tanh_scale: other than 4.0 needs sparsity='tanh', got 2.0"),
    ({**RELU, "sparsity": "tanh", "tanh_scale": 0.0}, r"^tanh_scale: expected a number in \(0, inf\), got 0.0"),
    ({**JUMP, "sparsity": "quadratic"}, r"^target_l0: expected a number in \(0, 11\], got None"),
    ({**JUMP, "sparsity": "quadratic", "target_l0": 12}, r"^target_l0: expected a number in \(0, 11\], got 12"),
    (
        {**JUMP, "sparsity": "step", "target_l0": 3.0},
        r"^target_l0: other than None needs sparsity='quadratic' or 'quadratic_rows', got 3.0",
    ),
    ({"bandwidth": 0.1}, r"^bandwidth: other than 0.05 needs activation='jump_relu', got 0.1"),
    ({**JUMP, "bandwidth": 0.0}, r"^bandwidth: expected a number in \(0, inf\), got 0.0"),
    ({**JUMP, "initial_threshold": -0.1}, r"^initial_threshold: expected a number in \[0, inf\), got -0.1"),
    ({**GATED, "pre_act_weight": 0.1}, r"^pre_act_weight: other than 0.0 needs activation='jump_relu', got 0.1"),
    ({**JUMP, "pre_act_weight": 0.1, "dead_after": None}, r"^pre_act_weight: other than 0.0 needs dead_after, got 0.1"),
    ({"gate_weight": 0.5}, r"^gate_weight: other than 1.0 needs activation='gated', got 0.5"),
    ({"gate_detached": False}, r"^gate_detached: other than True needs activation='gated', got False"),
    ({**RELU, "aux_k": 3}, r"^aux_k: other than None needs activation='topk' or 'batch_topk', got 3"),
    ({"aux_k": 0}, r"^aux_k: expected an integer >= 1, got 0"),
    ({"aux_weight": math.inf}, r"^aux_weight: expected a number in \[0, inf\), got inf"),
    ({"aux_reduction": "ufldl"}, r"^aux_reduction: expected one of 'sum', 'mean', 'fvu', 'residual', got 'ufldl'"),
    ({"dead_after": -1}, r"^dead_after: expected an integer >= 0, got -1"),
    ({"dead_after": 1.5}, r"^dead_after: expected an integer >= 0, got 1.5"),
    ({"threshold_decay": 0.9}, r"^threshold_decay: other than 0.999 needs activation='batch_topk', got 0.9"),
    ({**BATCH, "threshold_decay": 1.0}, r"^threshold_decay: expected a number in \[0, 1\), got 1.0"),
    ({**BATCH, "threshold_start": -1.0}, r"^threshold_start: expected a number in \[0, inf\), got -1.0"),
    ({"optimizer": "adamw"}, r"^optimizer: 'adamw' is 'adam' with weight decay, which a sparse code has not"),
    ({"optimizer": "lion"}, r"^optimizer: expected one of .* got 'lion'"),
    ({"learning_rate": -1.0}, r"^learning_rate: expected a number in \[0, inf\), got -1.0"),
    ({"max_grad_norm": 0.0}, r"^max_grad_norm: expected a number in \(0, inf\), got 0.0"),
    ({"dtype": "float16"}, r"^dtype: expected one of 'float32', 'float64', got 'float16'"),
    ({"dtype": "float64", "precision": "bf16"}, r"^precision='bf16' needs dtype='float32', got 'float64'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: str(value)[:60])
def test_options(options: dict[str, Any], message: str) -> None:
    k = {} if "k" in options or options.get("activation", "topk") not in ("topk", "batch_topk") else {"k": 3}
    given = {"n_features": D, "n_latents": LATENTS, **k, **options}
    with pytest.raises(ValueError, match=message):
        SparseCodeConfig(**given).validate()
    with pytest.raises(ValueError, match=message):
        Engine(SparseCodeConfig(**given))
    with pytest.raises(ValueError, match=message):
        SparseCodeConfig.from_dict(given)


@pytest.mark.parametrize("case", CASES)
def test_dictionary(case: str) -> None:
    """Through JSON and back."""
    config = make(**CASES[case])
    assert SparseCodeConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    core = config.core()
    assert core["family"] == "sparse_code"
    unknown = {"lr_start", "lr_total_steps", "lr_decay_steps", "max_grad_norm"}
    assert {name for name, value in core.items() if value is None} <= unknown


def test_dictionary_of_another() -> None:
    for values, message in (
        ([], "^config: expected an object, got list"),
        ({"n_features": 3, "n_latents": 5, "layers": []}, "^config: unknown option 'layers'"),
        ({"n_features": 3}, "^config: .*n_latents"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseCodeConfig.from_dict(values)  # type: ignore[arg-type]


# --- rows ---


def rows(d: int = D, n: int = N) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def test_a_variance_is_not_negative(device: str) -> None:
    engine = Engine(make(loss_reduction="fvu_data"), device)
    with pytest.raises(ValueError, match=r"^data_variance: expected a number >= 0, got -1.0"):
        engine.set("data_variance", [-1.0])
    assert engine.get("data_variance") == 1


def trained(model: str, device: str, **rest: Any) -> Engine:
    config = make(**MODELS[model], **rest)
    engine = make_engine(config, start(config), device, 0)
    engine.step(rows())
    return engine


def everything(engine: Engine) -> list[Any]:
    return [engine.steps, *(engine.get(name).tobytes() for name in engine.state_names())]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("model", MODELS)
def test_rows_that_are_not_finite(model: str, value: float, device: str) -> None:
    """The row is named; parameters, moments, counters and the threshold are as before, and training goes on."""
    engine = trained(model, device)
    before, metrics = everything(engine), engine.metric_sums()
    X = rows()
    X[8, 2] = value
    for call in (engine.step, engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match="X: row 8 contains NaN or infinity"):
            call(X)
    assert everything(engine) == before
    assert engine.metric_sums() == metrics
    with pytest.raises(ValueError, match="X: row 8 contains NaN or infinity"):
        engine.run_epoch(X, None, 5)  # the first batch of 5 is done
    twin = trained(model, device)
    twin.step(X[:5])
    assert everything(engine) == everything(twin)
    engine.step(rows())
    assert np.isfinite(engine.encode(rows())).all()


@pytest.mark.parametrize("model", MODELS)
def test_steps_that_are_not_finite(model: str, device: str) -> None:
    engine = trained(model, device)
    before = everything(engine)
    with pytest.raises(FloatingPointError):
        engine.step(np.full((N, D), 3e38, np.float32))
    assert everything(engine) == before
    engine.step(rows())
    assert engine.steps == 2


def test_targets(device: str) -> None:
    """A transcoder needs them, of its width; another model takes none."""
    transcoder = make_engine(*(lambda c: (c, start(c)))(make(**CASES["transcoder"])), device, 0)
    plain = trained("topk", device)
    X, y = rows(), rows(OUTPUTS)
    before = everything(transcoder), everything(plain)
    for call in ("step", "run_epoch", "gradient", "evaluate", "score"):
        with pytest.raises(ValueError, match=r"^targets: expected"):
            getattr(transcoder, call)(X)
        with pytest.raises(ValueError, match=r"^targets: expected a 2-D array with 3 columns, got shape \(12, 5\)"):
            getattr(transcoder, call)(X, targets=X)
        with pytest.raises(ValueError, match=r"^targets: "):
            getattr(plain, call)(X, targets=X)
    with pytest.raises(ValueError, match=r"^targets: expected 12 rows"):
        transcoder.step(X, targets=y[:5])
    y[4, 1] = math.nan
    with pytest.raises(ValueError, match="targets: row 4 contains NaN or infinity"):
        transcoder.step(X, targets=y)
    assert (everything(transcoder), everything(plain)) == before


@pytest.mark.parametrize("model", MODELS)
def test_shapes(model: str, device: str) -> None:
    engine = trained(model, device)
    before = everything(engine)
    for call in (
        engine.step,
        engine.gradient,
        engine.evaluate,
        engine.encode,
        engine.encode_sparse,
        engine.reconstruct,
    ):
        with pytest.raises(ValueError, match=r"^X: expected a 2-D array with 5 columns, got shape \(12, 4\)"):
            call(rows(4))
    with pytest.raises(ValueError, match=r"^H: expected a 2-D array with 11 columns, got shape \(12, 5\)"):
        engine.decode(rows())
    for name, value in (("W_enc", np.zeros((D, LATENTS))), ("b_dec", np.zeros(3)), ("rows_since_fired", np.zeros(D))):
        with pytest.raises(ValueError, match=f"^{name}: expected shape"):
            engine.set(name, value)
    with pytest.raises(ValueError, match=r"^W_dec: expected finite numbers"):
        engine.set("W_dec", np.full((LATENTS, D), np.nan))
    with pytest.raises(ValueError, match="no tensor is called 'W1'"):
        engine.set("W1", np.zeros(3))
    assert everything(engine) == before


BAD_CODES: dict[str, tuple[Any, Any, Any, str]] = {
    "no start": ([], [], [], "indptr"),
    "does not start at 0": ([1, 2], [0, 1], [1.0, 1.0], "indptr"),
    "falls": ([0, 2, 1], [0, 1], [1.0, 1.0], "indptr"),
    "ends late": ([0, 3], [0, 1], [1.0, 1.0], "indptr"),
    "ends early": ([0, 1], [0, 1], [1.0, 1.0], "indptr"),
    "fractions": ([0.0, 1.5], [0], [1.0], "indptr"),
    "latent -1": ([0, 1], [-1], [1.0], "indices"),
    "latent n": ([0, 1], [LATENTS], [1.0], "indices"),
    "latents of other length": ([0, 2], [0], [1.0, 1.0], "indices|data"),
    "fractional latents": ([0, 1], [0.5], [1.0], "indices"),
    "two dimensions": ([0, 1], [0], [[1.0]], "data"),
    "words": ([0, 1], [0], ["one"], "data"),
}


@pytest.mark.parametrize("kind", BAD_CODES)
def test_sparse_codes(kind: str, device: str) -> None:
    engine = trained("topk", device)
    *code, name = BAD_CODES[kind]
    with pytest.raises(ValueError, match=f"^({name}): expected"):
        engine.decode_sparse(*code)


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_gradients_of_matrices_are_those_of_gradient(activation: str, device: str) -> None:
    """A step makes them in parts or not at all: between gradient() and the next step they are there."""
    engine = trained(activation, device)
    for name in ("gradient.W_enc", "gradient.W_dec"):
        with pytest.raises(ValueError, match=r"is there between a call of gradient\(\) and the next step"):
            engine.get(name)
        engine.gradient(rows())
        assert np.isfinite(engine.get(name)).all()
        engine.step(rows())
        with pytest.raises(ValueError, match=r"is there between a call of gradient\(\) and the next step"):
            engine.get(name)
