"""The cases of agree_sae.py: what a library is told, and what our configuration of the same is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import fastsae
from fastsae.sparse_code import SparseCodeConfig

Found = dict[str, np.ndarray]

D, N, K, BATCH, STEPS = 24, 96, 6, 64, 100
#: Latents that never fire and count as dead where a case says so.
DEAD = 20
LONG_AGO = 10**9
WIDTHS = (24, 48, 96)


@dataclasses.dataclass(frozen=True)
class Case:
    """`library`'s `model` with its `options`, and `ours`, which is that in our words.

    `exact` is the largest relative difference of code, loss and gradients, `curve` that of the losses of a hundred
    steps and of the weights after them. One without a `curve` takes no steps, one without `exact` serves a difference.
    """

    name: str
    library: str
    model: str
    ours: dict[str, Any]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    exact: float | None = 1e-10
    curve: float | None = 1e-7
    dead: int = 0
    targets: bool = False
    shut: bool = False  # every pre-activation is negative
    estimator: str = ""

    @property
    def config(self) -> SparseCodeConfig:
        """Ours: of the options, or of an estimator with the library's preset and these parameters."""
        if not self.estimator:
            return SparseCodeConfig(D, N, dtype="float64", **self.ours)
        given = {"preset": self.library, "batch_size": BATCH, "dtype": "float64", **self.ours}
        if self.estimator in ("TopKSAE", "BatchTopKSAE", "MatryoshkaSAE", "Transcoder"):
            given["k"] = K
        estimator = getattr(fastsae, self.estimator)(N, **given)
        if self.estimator == "Transcoder":
            estimator._n_outputs = D
        return estimator._config(D)


def problem(case: Case) -> Found:
    """Weights, rows and, of a transcoder, targets; the first `dead` latents are too weak to be selected."""
    rng = np.random.default_rng(1)
    norms = 1.0 if case.config.decoder_norm == "unit" else rng.uniform(0.5, 1.5, (N, 1))
    W_dec = rng.standard_normal((N, D))
    W_dec *= norms / np.linalg.norm(W_dec, axis=1, keepdims=True)
    W_enc = W_dec + 0.1 * rng.standard_normal((N, D))
    W_enc[: case.dead] *= 0.02
    sparse = rng.exponential(1.0, (STEPS * BATCH, N)) * (rng.random((STEPS * BATCH, N)) < 0.05)
    hidden = rng.standard_normal((N, D)) / np.sqrt(D)
    X = sparse @ hidden + 0.1 * rng.standard_normal((STEPS * BATCH, D)) + 0.3 * rng.standard_normal(D)
    given = {
        "X": X,
        "W_enc": W_enc,
        "W_dec": W_dec,
        "b_enc": 0.02 * rng.standard_normal(N) * (np.arange(N) >= case.dead) - 100.0 * case.shut,
        "b_dec": 0.1 * rng.standard_normal(D),
        "threshold": np.float32(rng.uniform(0.02, 0.2, N)).astype(float),
        "b_gate": 0.02 * rng.standard_normal(N),
        "b_mag": 0.02 * rng.standard_normal(N),
        "r_mag": 0.1 * rng.standard_normal(N),
        "W_skip": 0.1 * rng.standard_normal((D, D)),
        "data_variance": np.array([((X[:BATCH] - X[:BATCH].mean(axis=0)) ** 2).sum(axis=1).mean()]),
        "rows_since_fired": np.where(np.arange(N) < case.dead, float(LONG_AGO), 0.0),
    }
    if case.targets:
        given["Y"] = np.tanh(X @ rng.standard_normal((D, D)) / np.sqrt(D))
    return given


def far(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest of b."""
    return float(np.abs(a - b).max() / (np.abs(b).max() or 1.0))


ADAM = {"optimizer": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
# SAELens. Its optimiser's and clip's constants are its defaults; a window of steps is so many times the batch in rows.
LENS = {**ADAM, "loss_reduction": "sum", "learning_rate": 3e-4, "max_grad_norm": 1.0, "dead_after": 1000 * BATCH}
LENS_TOPK = {**LENS, "k": K, "decoder_norm": "rescale", "aux_relu": False, "aux_reduction": "sum", "aux_weight": 1.0}
LENS_BATCH = {**LENS_TOPK, "activation": "batch_topk", "threshold_decay": 0.99, "threshold_start": 0.0}
LENS_FREE = {**LENS, "decoder_norm": "free"}
LENS_JUMP = {**LENS_FREE, "activation": "jump_relu", "bandwidth": 0.05}
#: SAELens keeps the threshold of JumpReLU in float32, and so do its gradient and its Adam.
SINGLE = {"exact": 1e-6, "curve": 1e-4}

# sparsify, without the schedule of its Adam.
SPARSIFY = {**ADAM, "k": K, "loss_reduction": "fvu", "learning_rate": 1e-3, "aux_weight": 0.0}
BY_ADAM = {"training": {"optimizer": "adam", "lr": 1e-3, "lr_warmup_steps": 0}, "scheduled": False}
TRANSCODER = {**SPARSIFY, "transcoder": True, "pre_bias": False, "decoder_norm": "free"}

# dictionary_learning, without its warm-ups.
STEADY = {"warmup_steps": 0, "lr": 1e-3}
DL = {**ADAM, "loss_reduction": "sum", "learning_rate": 1e-3}
DL_TOPK = {**DL, "k": K, "max_grad_norm": 1.0, "aux_weight": 1 / 32, "aux_share": False, "aux_reduction": "residual"}
DL_SPARSE = {**STEADY, "sparsity_warmup_steps": None, "l1_penalty": 0.1}
L1 = {"sparsity": "l1", "sparsity_weight": 0.1}
#: It projects by norms + 1e-6, and computes the auxiliary loss in float32.
DL_NEAR, DL_SINGLE = {"curve": 1e-5}, {"exact": 1e-6, "curve": 1e-4}
#: So slow that no dead latent comes back in a hundred steps: in that very step it is dead for us, not for them.
SLOW, DL_SLOW = {**STEADY, "lr": 5e-5}, {**DL_TOPK, "learning_rate": 5e-5}

OPENAI = {**ADAM, "k": K, "learning_rate": 1e-3, "epsilon": 6.25e-10, "loss_reduction": "mean"}
OPENAI_AUX = {"aux_k": 12, "aux_share": False, "aux_reduction": "residual", "dead_after": 10_000_000}

CASES = [
    Case("SAELens TopK", "saelens", "topk", LENS_TOPK),
    Case("SAELens TopK with AuxK", "saelens", "topk", LENS_TOPK, dead=DEAD),
    Case("SAELens TopK with AuxK, few dead", "saelens", "topk", LENS_TOPK, dead=7),
    Case("SAELens BatchTopK with AuxK", "saelens", "batch_topk", LENS_BATCH, dead=DEAD),
    Case("SAELens BatchTopK, k = 5.3", "saelens", "batch_topk", {**LENS_BATCH, "k": 5.3}),
    Case(
        "SAELens Matryoshka", "saelens", "matryoshka", {**LENS_BATCH, "prefixes": WIDTHS},
        {"matryoshka_widths": list(WIDTHS)}, dead=DEAD,
    ),
    Case("SAELens JumpReLU, step", "saelens", "jump_relu", {**LENS_JUMP, "sparsity": "step"}, **SINGLE),
    Case(
        "SAELens JumpReLU, tanh and pre-act loss", "saelens", "jump_relu",
        {**LENS_JUMP, "sparsity": "tanh", "sparsity_weight": 0.5, "tanh_scale": 4.0, "pre_act_weight": 0.01},
        {"jumprelu_sparsity_loss_mode": "tanh", "l0_coefficient": 0.5, "pre_act_loss_coefficient": 0.01},
        dead=DEAD, **SINGLE,
    ),
    Case(
        "SAELens JumpReLU, quadratic", "saelens", "jump_relu",
        {**LENS_JUMP, "sparsity": "quadratic_rows", "sparsity_weight": 2 * 6.0, "target_l0": 6.0},
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 6.0}, **SINGLE,
    ),
    Case(
        "SAELens Gated", "saelens", "gated",
        {**LENS_FREE, "activation": "gated", "sparsity": "l1", "sparsity_weight": 0.5, "gate_detached": False},
        {"l1_coefficient": 0.5},
    ),
    Case(
        "SAELens Standard", "saelens", "relu",
        {**LENS_FREE, "activation": "relu", "sparsity": "l1", "sparsity_weight": 0.5}, {"l1_coefficient": 0.5},
    ),
    Case("sparsify TopK", "sparsify", "topk", SPARSIFY, BY_ADAM),
    Case("sparsify Transcoder", "sparsify", "topk", TRANSCODER, {**BY_ADAM, "transcode": True}, targets=True),
    Case(
        "sparsify Transcoder with skip", "sparsify", "topk", {**TRANSCODER, "skip": True},
        {**BY_ADAM, "transcode": True, "skip_connection": True}, targets=True,
    ),
    Case("dictionary_learning TopK", "dictionary_learning", "topk", DL_TOPK, STEADY, **DL_NEAR),
    Case("dictionary_learning TopK with AuxK", "dictionary_learning", "topk", DL_SLOW, SLOW, dead=DEAD, **DL_SINGLE),
    Case(
        "dictionary_learning BatchTopK with AuxK", "dictionary_learning", "batch_topk",
        {**DL_SLOW, "activation": "batch_topk"}, {**SLOW, "threshold_start_step": 0}, dead=DEAD, **DL_SINGLE,
    ),
    Case(
        "dictionary_learning Matryoshka", "dictionary_learning", "matryoshka",
        {**DL_TOPK, "activation": "batch_topk", "prefixes": WIDTHS, "prefix_weights": (1 / 9,) * 3},
        {**STEADY, "threshold_start_step": 0, "group_fractions": [0.25, 0.25, 0.5]}, **DL_NEAR,
    ),
    Case(
        "dictionary_learning Standard", "dictionary_learning", "relu",
        {**DL, **L1, "activation": "relu", "sparsity_by_norm": False}, DL_SPARSE,
    ),
    Case(
        "dictionary_learning Standard, April update", "dictionary_learning", "relu_by_norm",
        {**DL, **L1, "activation": "relu", "decoder_norm": "free", "max_grad_norm": 1.0}, DL_SPARSE,
    ),
    Case(
        "dictionary_learning Gated", "dictionary_learning", "gated",
        {**DL, **L1, "activation": "gated", "sparsity_by_norm": False, "beta1": 0.0}, DL_SPARSE,
    ),
    Case("OpenAI TopK", "openai", "topk", {**OPENAI, "aux_weight": 0.0}, {"lr": 1e-3, "auxk_coef": 0}, curve=5e-3),
]  # fmt: skip

#: Each library as it comes beside our preset of it: nothing is told to either but sizes and k.
FRACTIONS = {"group_fractions": [0.25, 0.25, 0.5]}


def preset(estimator: str, library: str, model: str, options: dict[str, Any] | None = None, **more: Any) -> Case:
    """`options` is what the library has no default for."""
    ours = more.pop("ours", {})
    return Case(f"{estimator}, preset {library}", library, model, ours, options or {}, estimator=estimator, **more)


PRESETS = [
    preset("TopKSAE", "saelens", "topk"),
    preset("BatchTopKSAE", "saelens", "batch_topk"),
    preset("MatryoshkaSAE", "saelens", "matryoshka", {"matryoshka_widths": list(WIDTHS)}, ours={"prefixes": WIDTHS}),
    preset("JumpReLUSAE", "saelens", "jump_relu", **SINGLE),
    preset("GatedSAE", "saelens", "gated"),
    preset("L1SAE", "saelens", "relu"),
    preset("TopKSAE", "sparsify", "topk"),
    # At its own rate, which is high for so few latents, rows come to have fewer than k positive ones.
    preset(
        "Transcoder", "sparsify", "topk", {"transcode": True, "training": {"lr": 1e-3}}, ours={"learning_rate": 1e-3},
        targets=True,
    ),
    preset("TopKSAE", "dictionary_learning", "topk", **DL_NEAR),
    preset("BatchTopKSAE", "dictionary_learning", "batch_topk", {"threshold_start_step": 0}, **DL_NEAR),
    preset(
        "MatryoshkaSAE", "dictionary_learning", "matryoshka", {**FRACTIONS, "threshold_start_step": 0},
        ours={"prefixes": WIDTHS}, **DL_NEAR,
    ),
    preset("GatedSAE", "dictionary_learning", "gated"),
    preset("L1SAE", "dictionary_learning", "relu"),
    preset("TopKSAE", "openai", "topk", {"auxk_coef": 0, "mse_scale": None}, curve=5e-3),
]  # fmt: skip
CASES += PRESETS
