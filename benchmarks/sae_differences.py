"""What other libraries' sparse codes do otherwise, for agree_sae.py to measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from sae_cases import (
    BATCH,
    BY_ADAM,
    DEAD,
    DL,
    OPENAI,
    OPENAI_AUX,
    SPARSIFY,
    STEADY,
    Case,
    Found,
    far,
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """What a library does otherwise, why ours is right, and what must be measured of it on some cases.

    `measure` takes the given, ours and theirs of each case; every one of its claims must be true.
    """

    name: str
    why: str
    cases: tuple[Case, ...]
    measure: Callable[[list[tuple[Found, Found, Found]]], dict[str, float | bool]]


def change(found: list[Found], name: str) -> np.ndarray:
    """What the second case adds to the first one's gradient."""
    return found[1][f"gradient {name}"] - found[0][f"gradient {name}"]


def lost_encoder(runs: list[tuple[Found, Found, Found]], ours_too: bool = True) -> dict[str, float | bool]:
    """The decoder learns from the second case's loss, the encoder does not."""
    ours, theirs = [run[1] for run in runs], [run[2] for run in runs]
    measured: dict[str, float | bool] = {
        "their_encoder_gradient": float(np.abs(change(theirs, "W_enc")).max()),
        "their_decoder_gradient": float(np.abs(change(theirs, "W_dec")).max()),
    }
    measured["they_lose_it"] = measured["their_encoder_gradient"] < 1e-12 < measured["their_decoder_gradient"]
    if ours_too:
        measured["our_encoder_gradient"] = float(np.abs(change(ours, "W_enc")).max())
        measured["decoders_apart"] = far(change(ours, "W_dec"), change(theirs, "W_dec"))
        measured["ours_has_it"] = measured["our_encoder_gradient"] > 1e-6 and measured["decoders_apart"] < 1e-9
    return measured


def lost_multi_topk(runs: list[tuple[Found, Found, Found]]) -> dict[str, float | bool]:
    return lost_encoder(runs, ours_too=False)


def no_mask(runs: list[tuple[Found, Found, Found]]) -> dict[str, float | bool]:
    """Codes of zero have a gradient."""
    ((_, ours, theirs),) = runs
    measured: dict[str, float | bool] = {
        "largest_code": float(np.abs(theirs["code"]).max()),
        "their_encoder_gradient": float(np.abs(theirs["gradient W_enc"]).max()),
        "our_encoder_gradient": float(np.abs(ours["gradient W_enc"]).max()),
    }
    measured["they_move_latents_that_are_off"] = measured["their_encoder_gradient"] > 1e-6
    measured["ours_does_not"] = measured["our_encoder_gradient"] == measured["largest_code"] == 0.0
    return measured


def half_window(runs: list[tuple[Found, Found, Found]]) -> dict[str, float | bool]:
    """The threshold's gradient, had the step been taken of the code instead of the pre-activation."""
    ((given, ours, theirs),) = runs
    x, th, eps, target = given["X"][:BATCH], given["threshold"], 0.05, 6.0
    z = x @ given["W_enc"].T + given["b_enc"]
    on = z > th
    near_z, near_code = (np.abs((value - th) / eps) < 0.5 for value in (z, z * on))
    by_l0 = 2 / target * (on.sum() / BATCH / target - 1)
    moved = -by_l0 / eps * (near_code.astype(float) - near_z).mean(axis=0)
    others = [name for name in ours if name.startswith("gradient") and "threshold" not in name]
    measured: dict[str, float | bool] = {
        "thresholds_apart": far(ours["gradient threshold"], theirs["gradient threshold"]),
        "apart_when_taken_of_the_code": far(ours["gradient threshold"] + moved, theirs["gradient threshold"]),
        "others_apart": max(far(ours[name], theirs[name]) for name in [*others, "code", "loss"]),
    }
    measured["it_is_that"] = measured["apart_when_taken_of_the_code"] < 1e-6 < 1e-2 < measured["thresholds_apart"]
    measured["all_else_agrees"] = measured["others_apart"] < 1e-9
    return measured


def biased_auxiliary(runs: list[tuple[Found, Found, Found]]) -> dict[str, float | bool]:
    """AuxK's gradient for the pre-bias as part of the reconstruction."""
    ours, theirs = [run[1] for run in runs], [run[2] for run in runs]
    names = ("W_enc", "b_enc", "W_dec")
    direct = change(theirs, "b_dec") - change(ours, "b_dec")
    measured: dict[str, float | bool] = {
        "others_apart": max(far(change(ours, name), change(theirs, name)) for name in names),
        "losses_apart": far(ours[1]["loss"], theirs[1]["loss"]),
        "largest_direct_gradient": float(np.abs(direct).max()),
        "largest_gradient_without": float(np.abs(change(ours, "b_dec")).max()),
    }
    measured["only_the_bias_differs"] = max(measured["others_apart"], measured["losses_apart"]) < 1e-9
    measured["it_does"] = measured["largest_direct_gradient"] > 1e-6
    return measured


def left_of_the_sphere(runs: list[tuple[Found, Found, Found]]) -> dict[str, float | bool]:
    """How far from 1 the norms of decoder rows are after the last step."""
    ((_, ours, theirs),) = runs
    off = [float(np.abs(np.linalg.norm(found["after W_dec"], axis=1) - 1).max()) for found in (ours, theirs)]
    return {"ours_off": off[0], "theirs_off": off[1], "only_theirs_is": off[0] < 1e-12 < 1e-8 < off[1]}


SPARSIFY_AUX = {**SPARSIFY, "aux_weight": 1.0, "aux_reduction": "fvu", "dead_after": 10_000_000}
OPENAI_OPTIONS = {"lr": 1e-3, "auxk": 12, "dead_steps": 10_000}
QUADRATIC = {
    **DL, "activation": "jump_relu", "pre_bias": False, "sparsity": "quadratic", "target_l0": 6.0, "bandwidth": 0.05,
    "beta1": 0.0, "max_grad_norm": 1.0,
}  # fmt: skip
LOOK = {"exact": None, "curve": None}

DIFFERENCES = [
    Difference(
        "sparsify: AuxK does not reach the encoder",
        "FusedEncoder.backward drops the gradient of the pre-activations, of which AuxK is made",
        (
            Case("sparsify without AuxK", "sparsify", "topk", SPARSIFY, BY_ADAM, dead=DEAD, **LOOK),
            Case(
                "sparsify with AuxK", "sparsify", "topk", SPARSIFY_AUX,
                {**BY_ADAM, "training": {**BY_ADAM["training"], "auxk_alpha": 1.0}}, dead=DEAD, **LOOK,
            ),
        ),
        lost_encoder,
    ),
    Difference(
        "sparsify: Multi-TopK does not reach the encoder",
        "the same; we have no Multi-TopK",
        (
            Case("sparsify without Multi-TopK", "sparsify", "topk", SPARSIFY, BY_ADAM, **LOOK),
            Case("sparsify with Multi-TopK", "sparsify", "topk", SPARSIFY, {**BY_ADAM, "multi_topk": True}, **LOOK),
        ),
        lost_multi_topk,
    ),
    Difference(
        "sparsify: latents that are off are trained",
        "FusedEncoder.backward does not mask by the ReLU that its forward takes",
        (Case("sparsify, all pre-activations negative", "sparsify", "topk", SPARSIFY, BY_ADAM, shut=True, **LOOK),),
        no_mask,
    ),
    Difference(
        "dictionary_learning: JumpReLU's L0 sees one side of the threshold",
        "StepFunction is applied to the code, which is 0 below the threshold, not to the pre-activation",
        (
            Case(
                "dictionary_learning JumpReLU", "dictionary_learning", "jump_relu", QUADRATIC,
                {**STEADY, "sparsity_warmup_steps": None, "target_l0": 6.0, "bandwidth": 0.05}, **LOOK,
            ),
        ),
        half_window,
    ),
    Difference(
        "OpenAI: AuxK trains the pre-bias directly",
        "decode_sparse adds it to the auxiliary reconstruction, and the target has it detached",
        (
            Case(
                "OpenAI without AuxK", "openai", "topk", {**OPENAI, **OPENAI_AUX, "aux_weight": 0.0},
                {**OPENAI_OPTIONS, "auxk_coef": 0}, dead=DEAD, **LOOK,
            ),
            Case(
                "OpenAI with AuxK", "openai", "topk", {**OPENAI, **OPENAI_AUX, "aux_weight": 1 / 32}, OPENAI_OPTIONS,
                dead=DEAD, **LOOK,
            ),
        ),
        biased_auxiliary,
    ),
    Difference(
        "OpenAI: the decoder's rows leave the unit sphere in each step",
        "unit_norm_decoder_ comes before the optimiser's step, not after it",
        (
            Case(
                "OpenAI, last weights", "openai", "topk", {**OPENAI, "aux_weight": 0.0},
                {**OPENAI_OPTIONS, "auxk_coef": 0}, exact=None,
            ),
        ),
        left_of_the_sphere,
    ),
]  # fmt: skip
