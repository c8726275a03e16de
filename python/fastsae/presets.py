"""The constants and conventions of other libraries' training, for ``preset=`` of the dictionaries.

Each table holds what a library's own training of that architecture does where it differs from what we would do, under
our names; a number stands beside the place it is from. What a preset leaves out is ours. `n_latents`, `k`, `prefixes`
and all that concerns the data (batches, epochs, seeds) are never part of a preset, but for `batch_size` where the
library counts rows.

Where a library computes something else than it means to, the preset keeps its constants and we keep to the formula;
docs/dictionaries.md lists those places.

Read in: SAELens 6.54.12 (`sae_lens`), sparsify 1.3.3 (`eai-sparsify`), dictionary_learning 0.1.0, and
openai/sparse_autoencoder at 4a32f5e.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from fastsae.checks import check_choice


class PerRootLatents(NamedTuple):
    """A rate that is ``value / sqrt(n_latents / 2**14)`` (Gao et al. 2024, figure 3: rates fall with the root)."""

    value: float

    def at(self, n_latents: int) -> float:
        """The rate for so many latents."""
        return self.value / math.sqrt(n_latents / 2**14)


class Steps(NamedTuple):
    """A number of rows that a library counts in steps."""

    value: float


class PerPrefix(NamedTuple):
    """``prefix_weights`` of ``1 / G ** power`` each for G prefixes."""

    power: int


#: The default of every `learning_rate`.
LEARNING_RATE = PerRootLatents(2e-4)

_FREE = {"decoder_norm": "free"}
_TRANSCODER = {"pre_bias": False, "bias_init": "mean"}
_FROM_ZERO = {**_TRANSCODER, "decoder_norm": "free", "decoder_init_norm": 0.0, "encoder_init_norm": 1.0}
_BATCH = {"threshold_decay": 0.99}  # SAELens's: the average forgets what it saw before training went far
_L0 = {"sparsity": "quadratic", "loss_reduction": "fvu", "target_l0": 32.0, "scale": "mean_norm"}
_L1 = {"sparsity_weight": 1.0, "scale": "mean_norm"}
#: What each architecture takes where there is no preset, if it is not the option's own default. Those of "l1" are
#: Anthropic's of April 2024 ("Update on how we train SAEs"), which are for rows of the length sqrt(n_features); the
#: decoder of a TopK transcoder begins at 0 as sparsify's.
DEFAULTS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batch_topk": _BATCH,
    "matryoshka": _BATCH,
    "jump_relu": _L0,
    "gated": _L1,
    "l1": {**_FREE, **_L1},
    "transcoder topk": _FROM_ZERO,
    "transcoder batch_topk": {**_FROM_ZERO, **_BATCH},
    "transcoder jump_relu": {**_TRANSCODER, **_FREE, **_L0},
    "transcoder gated": {**_TRANSCODER, **_FREE, **_L1},
    "transcoder relu": {**_TRANSCODER, **_FREE, **_L1},
}

# sae_lens/config.py (lr, adam_beta1, adam_beta2, train_batch_size_tokens, dead_feature_window), training/sae_trainer.py
# (max_grad_norm is 1.0 there, with no option), saes/sae.py (apply_b_dec_to_input, decoder_init_norm; the encoder is the
# decoder transposed, biases are 0; the loss is the sum over features).
_SAELENS = {
    "pre_bias": True,
    "loss_reduction": "sum",
    "bias_init": "zeros",
    "decoder_init_norm": 0.1,
    "encoder_init_norm": 0.1,
    "solver": "adam",
    "learning_rate": 3e-4,
    "beta1": 0.9,
    "beta2": 0.999,
    "epsilon": 1e-8,
    "lr_warm_up": 0,
    "max_grad_norm": 1.0,
    "batch_size": 4096,
    "dead_after": Steps(1000),
    "scale": None,
}
# saes/topk_sae.py: TopKTrainingSAEConfig, calculate_topk_aux_loss (K0 = d // 2, no ReLU, summed over features).
_SAELENS_TOPK = {
    **_SAELENS,
    "decoder_norm": "rescale",
    "aux_k": None,
    "aux_weight": 1.0,
    "aux_relu": False,
    "aux_share": True,
    "aux_reduction": "sum",
}
# saes/batchtopk_sae.py: topk_threshold_lr = 0.01, from 0.
_SAELENS_BATCH = {**_SAELENS_TOPK, "threshold_decay": 0.99, "threshold_start": 0.0}

# sparsify/config.py (auxk_alpha, dead_feature_threshold, normalize_decoder), trainer.py (optimizer "signum": rate and
# schedule-free momentum; b_dec is the mean of the first batch), sparse_coder.py (nn.Linear's uniform rows, of the norm
# 1 / sqrt(3) in the mean square; W_dec their directions; the loss over the variance, AuxK over that too).
_SPARSIFY = {
    "loss_reduction": "fvu",
    "bias_init": "mean",
    "encoder_init_norm": 1 / math.sqrt(3),
    "solver": "sign_sgd",
    "learning_rate": PerRootLatents(5e-3),
    "momentum": 0.95,
    "lr_warm_up": 0,
    "max_grad_norm": None,
    "dead_after": 10_000_000,
    "aux_k": None,
    "aux_weight": 0.0,
    "aux_relu": True,
    "aux_share": True,
    "aux_reduction": "fvu",
}

# dictionary_learning/trainers: warmup_steps of all of them; buffer.py: out_batch_size.
_DL = {
    "loss_reduction": "sum",
    "solver": "adam",
    "beta2": 0.999,
    "epsilon": 1e-8,
    "lr_warm_up": 1000,
    "lr_start": 0.0,
    "batch_size": 8192,
}
_DL_UNIT = {**_DL, "decoder_norm": "unit", "project_gradient": True}
# top_k.py (also batch_top_k.py, matryoshka_batch_top_k.py): auxk_alpha, top_k_aux = d // 2 without a share, over the
# variance of the residual; dead from 10M tokens on, and we count from one row more; b_dec is the geometric median.
_DL_TOPK = {
    **_DL_UNIT,
    "pre_bias": True,
    "bias_init": "geometric_median",
    "decoder_init_norm": 1.0,
    "encoder_init_norm": 1.0,
    "learning_rate": PerRootLatents(2e-4),
    "beta1": 0.9,
    "max_grad_norm": 1.0,
    "dead_after": 9_999_999,
    "aux_k": None,
    "aux_weight": 1 / 32,
    "aux_relu": True,
    "aux_share": False,
    "aux_reduction": "residual",
}
# batch_top_k.py: threshold_beta; its first value is the smallest kept one.
_DL_BATCH = {**_DL_TOPK, "threshold_decay": 0.999, "threshold_start": None}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "saelens": {
        "topk": _SAELENS_TOPK,
        "batch_topk": _SAELENS_BATCH,
        # saes/matryoshka_batchtopk_sae.py: the levels' losses are added up.
        "matryoshka": {**_SAELENS_BATCH, "prefix_weights": None},
        # saes/jumprelu_sae.py: JumpReLUTrainingSAEConfig.
        "jump_relu": {
            **_SAELENS,
            "decoder_norm": "free",
            "sparsity": "step",
            "sparsity_weight": 1.0,
            "sparsity_warm_up": 0,
            "pre_act_weight": 0.0,
            "bandwidth": 0.05,
            "initial_threshold": 0.01,
        },
        # saes/gated_sae.py: l1_coefficient; the auxiliary reconstruction trains the decoder too.
        "gated": {
            **_SAELENS,
            "decoder_norm": "free",
            "sparsity_weight": 1.0,
            "sparsity_by_norm": True,
            "sparsity_warm_up": 0,
            "gate_weight": 1.0,
            "gate_detached": False,
        },
        # saes/standard_sae.py: l1_coefficient, with lp_norm = 1.
        "l1": {
            **_SAELENS,
            "decoder_norm": "free",
            "sparsity_weight": 1.0,
            "sparsity_by_norm": True,
            "sparsity_warm_up": 0,
        },
    },
    "sparsify": {
        "topk": {
            **_SPARSIFY,
            "pre_bias": True,
            "decoder_norm": "unit",
            "project_gradient": True,
            "decoder_init_norm": 1.0,
        },
        # trainer.py: a transcoder's decoder starts at 0 and is left free; z is centred by the encoder's bias.
        "transcoder topk": {**_SPARSIFY, "pre_bias": False, "decoder_norm": "free", "decoder_init_norm": 0.0},
    },
    "dictionary_learning": {
        "topk": _DL_TOPK,
        "batch_topk": _DL_BATCH,
        # matryoshka_batch_top_k.py: weights of 1 / G, and the mean of the G losses.
        "matryoshka": {**_DL_BATCH, "prefix_weights": PerPrefix(2)},
        # jumprelu.py; dictionary.py: JumpReluAutoEncoder does not subtract b_dec.
        "jump_relu": {
            **_DL_UNIT,
            "pre_bias": False,
            "bias_init": "zeros",
            "decoder_init_norm": 1.0,
            "encoder_init_norm": 1.0,
            "learning_rate": 7e-5,
            "beta1": 0.0,
            "max_grad_norm": 1.0,
            "sparsity": "quadratic",
            "sparsity_weight": 1.0,
            "sparsity_warm_up": 2000,
            "target_l0": 20.0,
            "pre_act_weight": 0.0,
            "bandwidth": 0.001,
            "initial_threshold": 0.001,
            "dead_after": 10_000_000,
        },
        # gdm.py: GatedSAETrainer; dictionary.py: GatedAutoEncoder.
        "gated": {
            **_DL_UNIT,
            "pre_bias": True,
            "bias_init": "zeros",
            "decoder_init_norm": 1.0,
            "encoder_init_norm": 1.0,
            "learning_rate": 5e-5,
            "beta1": 0.0,
            "max_grad_norm": None,
            "sparsity_weight": 0.1,
            "sparsity_by_norm": False,
            "sparsity_warm_up": 2000,
            "gate_weight": 1.0,
            "gate_detached": True,
        },
        # standard.py: StandardTrainer; dictionary.py: AutoEncoder.
        "l1": {
            **_DL_UNIT,
            "pre_bias": True,
            "bias_init": "zeros",
            "decoder_init_norm": 0.1,
            "encoder_init_norm": 0.1,
            "learning_rate": 1e-3,
            "beta1": 0.9,
            "max_grad_norm": None,
            "sparsity_weight": 0.1,
            "sparsity_by_norm": False,
            "sparsity_warm_up": 2000,
        },
    },
    "openai": {
        # sparse_autoencoder/train.py: Config, init_from_data_, training_loop_; mse_scale is of a sample of rows.
        "topk": {
            "pre_bias": True,
            "decoder_norm": "unit",
            "project_gradient": True,
            "loss_reduction": "fvu_data",
            "bias_init": "geometric_median",
            "decoder_init_norm": 1.0,
            "encoder_init_norm": "matched",
            "solver": "adam",
            "learning_rate": 1e-4,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 6.25e-10,
            "lr_warm_up": 0,
            "max_grad_norm": None,
            "batch_size": 131072,
            "dead_after": 10_000_000,
            "aux_k": 256,
            "aux_weight": 1 / 32,
            "aux_relu": True,
            "aux_share": False,
            "aux_reduction": "residual",
        },
    },
}


def preset_options(preset: str, architecture: str) -> dict[str, Any]:
    """What a library's training of that architecture, a key of `DEFAULTS`, is under our names.

    Raises
    ------
    ValueError
        If there is no such library, or it does not train that architecture.
    """
    check_choice("preset", preset, tuple(PRESETS))
    tables = PRESETS[preset]
    if architecture not in tables:
        raise ValueError(f"preset: {preset!r} is for {', '.join(tables)}, got {architecture}")
    return tables[architecture]
