"""Do the parity checks of the sparse code see a fault? Each one here breaks the reference and must turn a check red."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_sparse_code_parity as parity
from test_sparse_code_parity import ALL, check_gradient, check_outputs, check_training
from test_sparse_code_reference import make

from fastsae import reference

FOLDER = Path(reference.__file__).parent
MODULES = ("sparse_activations", "sparse_losses", "sparse_code")


def broken(patch: pytest.MonkeyPatch, module: str, right: str, wrong: str) -> Any:
    """The reference's class with one piece of its text replaced."""
    patch.setitem(sys.modules, "broken", types.ModuleType("broken"))
    for name in MODULES:
        text = (FOLDER / f"{name}.py").read_text()
        if name == module:
            assert text.count(right) == 1, f"{module} has {right!r} {text.count(right)} times"
            text = text.replace(right, wrong)
        made = types.ModuleType(f"broken.{name}")
        patch.setitem(sys.modules, made.__name__, made)
        exec(compile(text.replace("fastsae.reference.sparse_", "broken.sparse_"), name, "exec"), vars(made))
    return sys.modules["broken.sparse_code"].SparseCode


Check = Callable[[Any, str], None]


def gradient(config: Any, device: str) -> None:
    check_gradient(config, device)


def training(config: Any, device: str) -> None:
    check_training(config, device, steps=12)


def outputs(config: Any, device: str) -> None:
    check_outputs(config, device)


A, L, S = MODULES
# Module, what is right, what is wrong, the case that shows it, and by which check.
FAULTS: list[tuple[str, str, str, str, Check]] = [
    (A, "1.0 - (t - 1) / config.k_warm_up", "1.0 - t / config.k_warm_up", "falling k", training),
    (A, "math.floor(k + 0.5)", "math.floor(k)", "no dead", training),
    (A, "math.floor(k * len(scores))", "math.ceil(k * len(scores))", "batch_topk of a fraction", gradient),
    (A, "select(scores, k)", "select(-scores, k)", "topk", gradient),
    (A, "select(scores, k)", "select(abs(scores), k)", "topk", gradient),
    (A, "< 0.5", "< 0.25", "jump_relu", gradient),
    (A, "near.astype(z.dtype) / bandwidth", "near.astype(z.dtype)", "jump_relu step", gradient),
    (A, "return weight / np.where", "return 0 * weight / np.where", "relu l1", gradient),
    (L, "error = output - batch.y", "error = output - batch.x", "skip transcoder", gradient),
    (L, "value += omega * share", "value += share", "weighted matryoshka", gradient),
    (L, "delta = 2.0 * omega * share", "delta = 2.0 * share", "weighted matryoshka", gradient),
    (L, "slopes.a[:, :m] +=", "slopes.a[:, :m] =", "matryoshka", gradient),
    (L, "delta.T @ batch.x", "0 * delta.T @ batch.x", "skip transcoder", gradient),
    (L, "(batch.t - 1) / config.sparsity_warm_up", "batch.t / config.sparsity_warm_up", "relu warm-up", gradient),
    (L, "value, slope = off**2, 2.0 * off /", "value, slope = off**2, off /", "jump_relu quadratic", gradient),
    (L, "slopes.on += weight * slope", "slopes.on += slope", "jump_relu step", gradient),
    (L, "by_f, by_q = c * q", "by_f, by_q = q", "relu tanh", gradient),
    (L, "c * f * (1.0 - values**2)", "c * f", "relu tanh", gradient),
    (L, "* by_f * (batch.z > 0)", "* by_f", "gated l1", gradient),
    (L, "if config.sparsity_by_norm:\n", "if False:\n", "jump_relu l1", gradient),
    (
        L,
        'np.maximum(p["threshold"] - batch.z, 0.0) * batch.dead',
        'np.maximum(p["threshold"] - batch.z, 0.0)',
        "jump_relu pre-activations",
        gradient,
    ),
    (L, "slopes.z -= pull", "slopes.z += pull", "jump_relu pre-activations", gradient),
    (L, 'slopes.parameters["threshold"] += pull.sum(axis=0)', "pass", "jump_relu pre-activations", gradient),
    (L, 'error = opened @ W + p["b_dec"] - batch.y', "error = opened @ W - batch.y", "gated", gradient),
    (L, "float(config.gate_weight) * share", "share", "gated", gradient),
    (L, "if not config.gate_detached:", "if config.gate_detached:", "gated attached", gradient),
    (L, "if not config.gate_detached:", "if config.gate_detached:", "gated", gradient),
    (L, "min(n_dead / k0, 1.0)", "n_dead / k0", "topk", gradient),
    (L, "min(n_dead / k0, 1.0)", "1.0", "few dead", gradient),
    (L, "np.where(batch.dead, batch.scores, -np.inf)", "batch.scores", "topk", gradient),
    (
        L,
        "np.where(batch.dead, batch.scores, -np.inf)",
        "np.where(batch.dead, batch.z, -np.inf)",
        "rescaled dead",
        gradient,
    ),
    (L, "if config.aux_relu:", "if True:", "negative dead", gradient),
    (L, "coefficients @ W - batch.residual", 'coefficients @ W + p["b_dec"] - batch.residual', "topk", gradient),
    (L, "slopes.z += (delta @ W.T) * kept", "pass", "topk", gradient),
    (L, 'if reduction == "fvu" else batch.residual', "", "topk", gradient),
    (L, '"mean": 1.0 / config.output_width', '"mean": 1.0 / config.n_features', "wide transcoder", gradient),
    (
        L,
        "mean_square(u, values - u @ values)",
        "mean_square(u, values - values.mean(axis=0))",
        "topk of variances",
        gradient,
    ),
    (L, "return 1.0 / batch.data_variance", "return 1.0", "topk of the data's variance", gradient),
    (L, 'counts if config.sparsity == "quadratic_rows" else', "", "jump_relu quadratic rows", gradient),
    (L, '"ufldl": 0.5', '"ufldl": 1.0', "topk of sums", gradient),
    (S, "return a * self._scale()", "return a", "topk of variances", outputs),
    (S, "np.where(s > 0, s, 1.0)", "1.0 + 0 * s", "topk of variances", outputs),
    (S, "self.decode(self.encode(X)) + self._skipped(X)", "self.decode(self.encode(X))", "skip transcoder", outputs),
    (S, '"ufldl": 2.0', '"ufldl": 1.0', "topk of sums", outputs),
    (S, "scores > max(self.batch_threshold, 0.0)", "scores > 0.0", "batch_topk", outputs),
    (S, "unit and self.config.project_gradient", "self.config.project_gradient", "topk of means", training),
    (S, "unit and self.config.project_gradient", "unit", "not projected", training),
    (
        S,
        "clip = clip_factor(self.config, gradients)",
        "clip = clip_factor(self.config, self._backward(batch)[1])",
        "clipped adam",
        training,
    ),
    (S, "        if unit:\n", "        if False:\n", "topk", training),
    (
        S,
        'np.maximum(self.parameters["threshold"], 0.0)',
        'self.parameters["threshold"]',
        "falling thresholds",
        training,
    ),
    (S, "clip * gradient", "gradient", "clipped adam", training),
    (S, "self.fired_rows += fired.sum(axis=0)", "self.fired_rows += fired.any(axis=0)", "topk", training),
    (S, "self.rows_since_fired + len(batch.a)", "self.rows_since_fired + 1", "topk", training),
    (S, "fired = batch.a > 0", "fired = batch.z > 0", "topk", training),
    (S, "[fired].min()", "[fired].max()", "batch_topk", training),
    (S, "(batch.a * self._scale())[fired]", "batch.a[fired]", "batch_topk of a fraction", training),
    (S, "if self.batch_threshold >= 0 else 0.0", "", "batch_topk", training),
    (S, "d * self.batch_threshold + (1.0 - d)", "(1.0 - d) * self.batch_threshold + d", "started threshold", training),
    (S, "largest_of_rows(scores, int(k)) & (scores > 0)", "largest_of_rows(scores, int(k))", "topk of all", gradient),
    (S, "if self.config.pre_bias else x", "", "topk of sums", gradient),
    (S, 'g["b_dec"] -= by_z.sum(axis=0) @ p["W_enc"]', "pass", "topk", gradient),
    (S, 'p["threshold"] * slopes.a + slopes.on', "batch.z * slopes.a + slopes.on", "jump_relu", gradient),
    (S, "slopes.a * (batch.a > 0)", "slopes.a * batch.on", "gated", gradient),
    (S, "* batch.projected).sum(axis=0)", "* batch.z).sum(axis=0)", "gated", gradient),
    (S, "self.rows_since_fired > (", "self.rows_since_fired >= (", "topk", training),
    (S, "weight * value for value in (*losses", "value for value in (*losses", "relu l1", training),
]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault[3]}: {fault[2]}")
def test_fault(
    fault: tuple[str, str, str, str, Check], dtype: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, right, wrong, case, check = fault
    config = make(**ALL[case], learning_rate=0.01, dtype=dtype)
    check(config, device)
    monkeypatch.setattr(parity, "Oracle", broken(monkeypatch, module, right, wrong))
    with pytest.raises(AssertionError, match=r"off by|not equal"):
        check(config, device)
