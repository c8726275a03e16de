"""Overcomplete sparse autoencoders: TopK, BatchTopK, Matryoshka, JumpReLU, Gated, and ReLU with an L1 penalty."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastsae.base import Array
from fastsae.dictionaries import AUTO, Dictionary
from fastsae.presets import Steps
from fastsae.sparse_code import TARGETING


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class _Selecting(Dictionary):
    """What those that keep the largest of z share: AuxK (Gao et al. 2024) and a k that falls."""

    k_start: float | str | None = AUTO
    k_warm_up: int | str = AUTO
    aux_k: int | str | None = AUTO
    aux_weight: float | str = AUTO
    aux_relu: bool | str = AUTO
    aux_share: bool | str = AUTO
    aux_reduction: str = AUTO


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class TopKSAE(_Selecting):
    """The TopK sparse autoencoder (Gao et al., "Scaling and evaluating sparse autoencoders", 2024, arXiv:2406.04093).

    Each row's code is ``max(z, 0)`` of its k largest z; of equal ones the lower latent comes first. Latents that are
    dead learn by AuxK: they reconstruct what the others leave over.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    k : int, default 32
        Active latents of a row, from 1 to n_latents.
    k_start, k_warm_up : int or None, int
        k begins at `k_start` and moves to `k` in `k_warm_up` steps.
    aux_k : int or None
        Dead latents of a row that AuxK takes; None means ``n_features // 2``.
    aux_weight : float
        Its weight, >= 0.
    aux_relu, aux_share : bool
        Whether negative values count as 0 there, and whether the loss is multiplied by ``min(1, n_dead / aux_k)``.
    aux_reduction : {"residual", "sum", "mean", "fvu"}
        What it is divided by: the variance of what is left over, 1, n_features, or the variance of the batch.
    preset, pre_bias, decoder_norm, project_gradient, loss_reduction, dead_after, bias_init, decoder_init_norm, \
encoder_init_norm, solver, learning_rate, momentum, beta1, beta2, epsilon, lr_schedule, lr_warm_up, lr_start, \
lr_decay_steps, lr_total_steps, lr_final, lr_step_size, lr_gamma, max_grad_norm, batch_size, max_epochs, max_steps, \
log_every, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, scale, dtype, precision, \
state_precision, device, random_state, checkpoint, checkpoint_every, checkpoint_steps, callback, verbose
        As for every :class:`fastsae.dictionaries.Dictionary`, and so are the attributes.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import TopKSAE
    >>> X = np.random.default_rng(0).standard_normal((500, 20), dtype=np.float32)
    >>> sae = TopKSAE(n_latents=64, k=4, batch_size=100, max_steps=20, random_state=0).fit(X)
    >>> sae.transform(X, output="csr").shape
    (500, 64)
    """

    _architecture: ClassVar[str] = "topk"
    _activation: ClassVar[str] = "topk"

    k: int = dataclasses.field(default=32, kw_only=False)

    def _pairs_width(self) -> int | None:
        return int(self._engine.config.k)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class BatchTopKSAE(_Selecting):
    """The BatchTopK sparse autoencoder (Bussmann et al., "BatchTopK sparse autoencoders", 2024, arXiv:2412.06410).

    A step keeps the ``floor(k B)`` largest positive z of its B rows, so that rows differ in how many they need.
    `transform` keeps those above `threshold_`, a moving average of the smallest z that a step kept, so that the code of
    a row does not depend on the rows beside it.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    k : float, default 32
        Active latents per row on average, in (0, n_latents].
    threshold_decay : float
        Of the moving average, in [0, 1).
    threshold_start : float or None
        Its first value; None means the smallest z that the first step keeps.
    k_start, k_warm_up, aux_k, aux_weight, aux_relu, aux_share, aux_reduction
        As for :class:`fastsae.TopKSAE`.

    All other parameters and the attributes are those of every :class:`fastsae.dictionaries.Dictionary`.
    """

    _architecture: ClassVar[str] = "batch_topk"
    _activation: ClassVar[str] = "batch_topk"

    k: float = dataclasses.field(default=32, kw_only=False)
    threshold_decay: float | str = AUTO
    threshold_start: float | str | None = AUTO

    @property
    def threshold_(self) -> float:
        """What a code must be above to be kept."""
        return float(self._tensor("threshold_", "batch_threshold")[0])


#: Shares of the latents in the nested prefixes of Bussmann et al. 2025, and of dictionary_learning's example.
_PREFIX_SHARES = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MatryoshkaSAE(BatchTopKSAE):
    """The Matryoshka sparse autoencoder (Bussmann et al., "Learning multi-level features", 2025, arXiv:2503.17547).

    A BatchTopK autoencoder whose first ``m_1 < m_2 < ... < m_G = n_latents`` latents must each reconstruct alone: the
    loss is ``sum_g prefix_weights_g |y^_g - x|^2``. General features gather in the first prefixes.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    k : float, default 32
        Active latents per row on average.
    prefixes : tuple of int
        ``m_1 < ... < m_G``, the last of which is n_latents. "auto" takes 1/32, 3/32, 7/32 and 15/32 of the latents and
        all.
    prefix_weights : tuple of float or None
        One number >= 0 for each; None means 1.

    All others are those of :class:`fastsae.BatchTopKSAE`.
    """

    _architecture: ClassVar[str] = "matryoshka"

    prefixes: tuple[int, ...] | str = AUTO
    prefix_weights: tuple[float, ...] | str | None = AUTO

    def _defaults(self) -> dict[str, Any]:
        widths = {max(1, int(self.n_latents * share)) for share in _PREFIX_SHARES}
        return {"prefixes": tuple(sorted(widths)), **super()._defaults()}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class JumpReLUSAE(Dictionary):
    """The JumpReLU sparse autoencoder (Rajamanoharan et al., "Jumping ahead", 2024, arXiv:2407.14435).

    A latent's code is z where z is above its own threshold. That is trained, with straight-through slopes, by a penalty
    on the number L0 of active latents.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    sparsity : {"quadratic", "quadratic_rows", "step", "tanh", "l1", "none"}
        The penalty: ``(L0 / target_l0 - 1)^2`` of the batch's mean L0, or of each row's; L0; ``sum_j tanh(tanh_scale
        c_j)``, ``sum_j c_j``: these two weigh c by the norms of W_dec's rows if `sparsity_by_norm`.
    sparsity_weight : float
        >= 0.
    sparsity_warm_up : int
        Steps in which the weight rises from 0.
    target_l0 : float or None
        Of the first two: 32 by default, or n_latents if that is less.
    tanh_scale : float
        Of ``tanh``, > 0.
    pre_act_weight : float
        >= 0, of ``sum over dead j of max(threshold_j - z_j, 0) |W_dec_j|``, which brings dead latents back.
    bandwidth : float
        Of the straight-through slopes, > 0.
    initial_threshold : float
        >= 0.

    All other parameters and the attributes are those of every :class:`fastsae.dictionaries.Dictionary`.
    """

    _architecture: ClassVar[str] = "jump_relu"
    _activation: ClassVar[str] = "jump_relu"

    sparsity: str = AUTO
    sparsity_weight: float | str = AUTO
    sparsity_by_norm: bool | str = AUTO
    sparsity_warm_up: int | str = AUTO
    target_l0: float | str | None = AUTO
    tanh_scale: float | str = AUTO
    pre_act_weight: float | str = AUTO
    bandwidth: float | str = AUTO
    initial_threshold: float | str = AUTO

    def _defaults(self) -> dict[str, Any]:
        return fitting_target(super()._defaults(), self.sparsity, self.n_latents)

    @property
    def threshold_(self) -> Array:
        """What z must be above, shape (n_latents,)."""
        return self._tensor("threshold_", "threshold")


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class GatedSAE(Dictionary):
    """The gated sparse autoencoder (Rajamanoharan et al., "Improving dictionary learning", 2024, arXiv:2404.16014).

    With ``u = W_enc (x - b_dec)``, latent j is active where ``u_j + b_gate_j > 0``, and then its code is
    ``max(exp(r_mag_j) u_j + b_mag_j, 0)``: what decides whether it is active is not shrunk by the L1 penalty, which is
    on ``max(u + b_gate, 0)``. An auxiliary loss makes that reconstruct x too.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    sparsity_weight : float
        >= 0, of ``sum_j max(u_j + b_gate_j, 0)``; weighed by the norms of W_dec's rows if `sparsity_by_norm`.
    sparsity_by_norm : bool
        See there.
    sparsity_warm_up : int
        Steps in which the weight rises from 0.
    gate_weight : float
        >= 0, of the auxiliary loss.
    gate_detached : bool
        Whether that leaves W_dec and b_dec alone.

    All other parameters and the attributes are those of every :class:`fastsae.dictionaries.Dictionary`.
    """

    _architecture: ClassVar[str] = "gated"
    _activation: ClassVar[str] = "gated"

    sparsity_weight: float | str = AUTO
    sparsity_by_norm: bool | str = AUTO
    sparsity_warm_up: int | str = AUTO
    gate_weight: float | str = AUTO
    gate_detached: bool | str = AUTO

    def _code_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return super()._code_options(options) | {"sparsity": "l1"}

    @property
    def magnitude_bias_(self) -> Array:
        """b_mag, shape (n_latents,)."""
        return self._tensor("magnitude_bias_", "b_mag")

    @property
    def magnitude_scale_(self) -> Array:
        """exp(r_mag), shape (n_latents,)."""
        scale: Array = np.exp(self._tensor("magnitude_scale_", "r_mag"))
        return scale

    def _slopes(self) -> NDArray[np.float64]:
        return super()._slopes() * self.magnitude_scale_


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class L1SAE(Dictionary):
    """The sparse autoencoder of a ReLU and an L1 penalty (Bricken et al., "Towards monosemanticity", 2023).

    The code is ``max(z, 0)``, and J has ``sparsity_weight sum_j c_j |W_dec_j|``: with the norms the decoder may be free
    (Anthropic, April 2024). With ``decoder_norm="unit"`` it is the older form, to which resampling belongs.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    sparsity_weight : float
        >= 0.
    sparsity_by_norm : bool
        Whether the norms count.
    sparsity_warm_up : int
        Steps in which the weight rises from 0.
    resample_every : int or None
        Steps after which dead latents are given another start; see :mod:`fastsae.resampling`. None never does it. With
        a number, `dead_after` is by default half of so many steps.

    All other parameters and the attributes are those of every :class:`fastsae.dictionaries.Dictionary`.
    """

    _architecture: ClassVar[str] = "l1"
    _activation: ClassVar[str] = "relu"

    sparsity_weight: float | str = AUTO
    sparsity_by_norm: bool | str = AUTO
    sparsity_warm_up: int | str = AUTO
    resample_every: int | None = None

    def _defaults(self) -> dict[str, Any]:
        options = super()._defaults()
        return options if self.resample_every is None else options | {"dead_after": Steps(self.resample_every / 2)}

    def _code_options(self, options: dict[str, Any]) -> dict[str, Any]:
        return super()._code_options(options) | {"sparsity": "l1"}


def fitting_target(options: dict[str, Any], sparsity: str, n_latents: int) -> dict[str, Any]:
    """`options` without a target that the penalty has no use for; one is at most all latents."""
    penalty = options.get("sparsity", "none") if sparsity == AUTO else sparsity
    if penalty not in TARGETING:
        return {name: value for name, value in options.items() if name != "target_l0"}
    return options | {"target_l0": min(options.get("target_l0", 32.0), n_latents)}
