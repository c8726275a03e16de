"""What an overcomplete dictionary and its training are: every option, its meaning and its only default.

Notation: a batch has B rows x of d = `n_features` numbers and targets y of o = `n_outputs` numbers, which are x unless
the model is a transcoder. ``u_b = w_b / sum w`` with the sample weights w, 1/B without. There are n = `n_latents`
latents; row j of ``W_dec [n, o]`` is what latent j writes, and ``nu_j`` its Euclidean norm.

``z = x~ W_enc' + b_enc`` where ``x~ = x - b_dec`` with `pre_bias`, else x. The activation makes coefficients ``a`` of
z, and ``y^ = b_dec + a W_dec (+ x W_skip')``. The code is ``c_j = a_j s_j``: ``s_j = nu_j`` under
``decoder_norm="rescale"``, else 1. The cost of one batch is

``J = R + min(1, (t - 1) / sparsity_warm_up) sparsity_weight Omega + A``

in step t = 1, 2, ...: reconstruction, sparsity and the auxiliary loss of the activation. :mod:`fastsae.reference` has
all of it in NumPy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from fastsae.checks import check_bool, check_choice, check_integer, check_real
from fastsae.optimizer import OptimizerConfig, check_state_precision, plain

ACTIVATIONS = ("topk", "batch_topk", "jump_relu", "gated", "relu")
#: Those that keep the largest, and have AuxK.
SELECTIONS = ("topk", "batch_topk")
DECODER_NORMS = ("unit", "rescale", "free")
LOSS_REDUCTIONS = ("fvu", "fvu_data", "sum", "mean", "ufldl")
SPARSITIES = ("none", "l1", "tanh", "step", "quadratic", "quadratic_rows")
#: Those that pull at a number of active latents.
TARGETING = ("quadratic", "quadratic_rows")
AUX_REDUCTIONS = ("sum", "mean", "fvu", "residual")

#: The activations whose slopes a sparsity penalty can use.
PENALISED = {
    "none": ACTIVATIONS,
    "l1": ("relu", "jump_relu", "gated"),
    "tanh": ("relu", "jump_relu"),
    "step": ("jump_relu",),
    "quadratic": ("jump_relu",),
    "quadratic_rows": ("jump_relu",),
}

#: Prefixes that one code may have.
MOST_PREFIXES = 16


@dataclasses.dataclass(frozen=True)
class SparseCodeConfig(OptimizerConfig):
    """A sparse autoencoder or transcoder of one wide layer, and its optimiser.

    Attributes
    ----------
    n_features : int
        Width d of the input.
    n_latents : int
        Number n of latents.
    n_outputs : int or None
        Width o of the output; None means `n_features`. Another width needs a transcoder.
    transcoder : bool
        Whether the output is to be like targets, which training then needs, instead of like the input.
    skip : bool
        Whether a transcoder adds ``x W_skip'`` to its output (Paulo et al. 2025, "Transcoders beat sparse
        autoencoders").
    activation : {"topk", "batch_topk", "jump_relu", "gated", "relu"}
        How coefficients are made of z.

        - ``relu``: ``a = max(z, 0)``.
        - ``topk``: ``max(z, 0)`` of the k largest ``z s`` of each row (Gao et al. 2024).
        - ``batch_topk``: ``z`` of the ``floor(k B)`` largest ``z s > 0`` of the batch (Bussmann et al. 2024). Inference
          instead takes all with ``z s > batch_threshold``, a moving average of the smallest that was kept.
        - ``jump_relu``: ``z`` where ``z > threshold``, with straight-through slopes (Rajamanoharan et al. 2024).
        - ``gated``: ``max(exp(r_mag) x~ W_enc' + b_mag, 0)`` where ``pi = x~ W_enc' + b_gate > 0`` (Rajamanoharan
          et al. 2024).

        Of equal values the one in the lower row is first, then that of the lower latent.
    k : int, or float for ``batch_topk``
        Active latents of a row, in (0, n].
    k_start, k_warm_up : int, or float for ``batch_topk``, or None; int
        Step t takes ``k + (k_start - k) max(0, 1 - (t - 1) / k_warm_up)``; for ``topk`` the nearest integer, half
        rounded up, and at least 1. None always takes `k`.
    prefixes : tuple of int
        Matryoshka: widths ``m_1 < ... < m_G = n``, each of which must reconstruct alone (Bussmann et al. 2025):
        ``R = sum_g prefix_weights_g R(b_dec + sum_{j < m_g} a_j W_dec_j)``. Empty means n alone.
    prefix_weights : tuple of float or None
        One number >= 0 for each prefix; None means 1.
    pre_bias : bool
        Whether the encoder subtracts `b_dec` from its input; it needs ``n_outputs = n_features``.
    decoder_norm : {"unit", "rescale", "free"}
        ``unit``: the rows of W_dec are set to norm 1 after each step, a zero row excepted; the averages that
        ``sign_sgd`` learns are of such rows, and a little shorter. ``rescale``: they are free, and the selection and
        the code count ``a_j nu_j``. ``free``: neither.
    project_gradient : bool
        Under ``unit``, whether each row of W_dec's gradient loses its part along the row, before the norm of the
        gradient is taken.
    loss_reduction : {"fvu", "fvu_data", "sum", "mean", "ufldl"}
        ``R = sum_b u_b |y^_b - y_b|^2 / D``: D = 1 for ``sum``, o for ``mean``, 2 for ``ufldl``, and for ``fvu`` the
        variance ``sum_b u_b |y_b - ybar|^2`` of the batch around its weighted mean; where that is 0, so is R.
        ``fvu_data`` divides by the state `data_variance`, one number for all batches, which is 1 until it is set:
        estimators take the variance of the rows that a training begins with.
    sparsity : {"none", "l1", "tanh", "step", "quadratic", "quadratic_rows"}
        Omega, with ``q_j = nu_j`` if `sparsity_by_norm`, else 1, and p = a, or ``max(pi, 0)`` of ``gated``:

        - ``l1``: ``sum_b u_b sum_j p_bj q_j``, for ``relu``, ``jump_relu`` and ``gated``.
        - ``tanh``: ``sum_b u_b sum_j tanh(tanh_scale a_bj q_j)``, for ``relu`` and ``jump_relu``.
        - ``step``: ``L0 = sum_b u_b |{j: z_bj > threshold_j}|``, for ``jump_relu``.
        - ``quadratic``: ``(L0 / target_l0 - 1)^2``, for ``jump_relu``.
        - ``quadratic_rows``: ``sum_b u_b (L0_b / target_l0 - 1)^2`` of each row's own number, for ``jump_relu``;
          ``2 target_l0`` times this is SAELens's.
    sparsity_weight : float
        >= 0.
    sparsity_by_norm : bool
        Whether `l1` and `tanh` weigh a latent by the norm of its row of W_dec, so that shrinking one and growing the
        other does not pay.
    sparsity_warm_up : int
        Steps in which the weight of Omega rises linearly from 0, >= 0.
    target_l0 : float or None
        Of ``quadratic`` and ``quadratic_rows``, which need it: in (0, n].
    tanh_scale : float
        Of ``tanh``, > 0.
    pre_act_weight : float
        >= 0, of ``sum_b u_b sum over dead j of max(threshold_j - z_bj, 0) nu_j``, which brings dead latents of
        ``jump_relu`` back: its auxiliary loss.
    bandwidth : float
        epsilon > 0 of the straight-through slopes of ``jump_relu``, rectangles of this width around the threshold.
    initial_threshold : float
        First threshold of ``jump_relu``, >= 0.
    gate_weight : float
        >= 0, of the auxiliary loss of ``gated``: ``1 / D sum_b u_b |max(pi, 0) W_dec + b_dec - y|^2``.
    gate_detached : bool
        Whether that loss leaves W_dec and b_dec alone.
    aux_k : int or None
        K0 >= 1 of AuxK, the auxiliary loss of ``topk`` and ``batch_topk`` (Gao et al. 2024): the residual
        ``r = y - y^``, a constant, is reconstructed by the ``min(K0, n_dead)`` largest ``z s`` of each row among the
        dead latents, without b_dec. None means ``n_outputs // 2``, at least 1.
    aux_weight : float
        >= 0, of that loss.
    aux_relu : bool
        Whether negative coefficients count as 0 there.
    aux_share : bool
        Whether it is multiplied by ``min(1, n_dead / K0)``.
    aux_reduction : {"sum", "mean", "fvu", "residual"}
        Its divisor: the first three as `loss_reduction`; ``residual`` is ``sum_b u_b |r_b - rbar|^2``. Where the
        divisor is 0, so is the loss.
    dead_after : int or None
        A latent is dead that was 0 in more than so many rows, >= 0, of the steps until now; None: none ever is.
    threshold_decay : float
        d in [0, 1) of ``batch_threshold <- d batch_threshold + (1 - d) (smallest code that a step keeps)``.
    threshold_start : float or None
        Its first value, >= 0; None means the smallest code that the first step keeps.

    state_precision : {"full", "bf16", "8bit"}
        How the optimiser's moments of W_enc and W_dec are kept between steps: in `dtype`; in bfloat16; or in 8 bits, as
        shares in the largest one of each 256 columns of a row, by the dynamic tree of Dettmers et al. ("8-bit
        optimizers via block-wise quantization", 2022). They are rounded up or down by chance, so that their mean is
        right, with numbers that depend on the seed and the step alone; :mod:`fastsae.reference.moments` has the
        formulas. Adam then keeps, for each weight, 8, 4 or 2.03 bytes beside a float32. A step takes the moments before
        they are rounded. For ``momentum``, ``nesterov`` and ``adam``: ``sgd`` keeps nothing, and ``sign_sgd`` keeps
        where its steps have led, to which each step adds less than what rounding would.

    The optimiser's options, all by keyword, are those of :class:`fastsae.optimizer.OptimizerConfig`. There is no weight
    decay, so ``adamw`` is refused.

    Notes
    -----
    An option other than its default that the rest of the configuration would ignore is refused.
    """

    n_features: int
    n_latents: int
    n_outputs: int | None = None
    transcoder: bool = False
    skip: bool = False
    activation: str = "topk"
    k: float = 32
    k_start: float | None = None
    k_warm_up: int = 0
    prefixes: tuple[int, ...] = ()
    prefix_weights: tuple[float, ...] | None = None
    pre_bias: bool = True
    decoder_norm: str = "unit"
    project_gradient: bool = True
    loss_reduction: str = "sum"
    sparsity: str = "none"
    sparsity_weight: float = 1.0
    sparsity_by_norm: bool = True
    sparsity_warm_up: int = 0
    target_l0: float | None = None
    tanh_scale: float = 4.0
    pre_act_weight: float = 0.0
    bandwidth: float = 0.05
    initial_threshold: float = 0.01
    gate_weight: float = 1.0
    gate_detached: bool = True
    aux_k: int | None = None
    aux_weight: float = 1 / 32
    aux_relu: bool = True
    aux_share: bool = True
    aux_reduction: str = "residual"
    dead_after: int | None = 10_000_000
    threshold_decay: float = 0.999
    threshold_start: float | None = None
    state_precision: str = "full"

    @property
    def output_width(self) -> int:
        """Width of the output."""
        return self.n_features if self.n_outputs is None else self.n_outputs

    @property
    def selects(self) -> bool:
        """Whether the largest of z are kept."""
        return self.activation in SELECTIONS

    @property
    def multiplications(self) -> int:
        """Multiply-adds of one row's forward pass."""
        active = math.ceil(self.k) if self.selects else self.n_latents
        return self.n_latents * self.n_features + active * self.output_width

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name."""
        n, d, o = self.n_latents, self.n_features, self.output_width
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, o), "b_dec": (o,)}
        if self.activation == "jump_relu":
            shapes["threshold"] = (n,)
        if self.activation == "gated":
            del shapes["b_enc"]
            shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (n,))
        if self.skip:
            shapes["W_skip"] = (o, d)
        return shapes

    def check_decodable(self) -> None:
        """A code always tells what it decodes to; what a skip connection adds is not of the code."""

    def core(self) -> dict[str, Any]:
        """What the compiled engine is made from: every option, and in place of None what it stands for."""
        prefixes = self.prefixes or (self.n_latents,)
        core: dict[str, Any] = plain(
            self._values()
            | {
                "family": "sparse_code",
                "n_outputs": self.output_width,
                "k_start": self.k if self.k_start is None else self.k_start,
                "prefixes": prefixes,
                "prefix_weights": tuple(map(float, self.prefix_weights or [1.0] * len(prefixes))),
                "target_l0": 0.0 if self.target_l0 is None else self.target_l0,
                "aux_k": max(1, self.output_width // 2) if self.aux_k is None else self.aux_k,
                "dead_after": -1 if self.dead_after is None else self.dead_after,
                "threshold_start": -1.0 if self.threshold_start is None else self.threshold_start,
            }
        )
        return core

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        options: dict[str, Any] = plain(self._values())
        return options

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SparseCodeConfig:
        """The inverse of `to_dict`; unknown or missing options raise ValueError."""
        options = cls._known(values)
        try:
            config = cls(**options)
        except TypeError as error:
            raise ValueError(f"config: {error}") from None
        config.validate()
        return config

    def validate(self) -> None:
        """Raise ValueError, naming the option, if an option or a combination has no meaning."""
        check_integer("n_features", self.n_features, 1)
        check_integer("n_latents", self.n_latents, 1)
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        for name in _FLAGS:
            check_bool(name, getattr(self, name))
        self._validate_outputs()
        for name, (low, high, ends) in _RANGES.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                check_real(name, getattr(self, name), low, high, ends)
        for name, least in _INTEGERS.items():
            if getattr(self, name) is not None or name not in _OPTIONAL:
                check_integer(name, getattr(self, name), least)
        self._validate_ignored()
        self._validate_k()
        self._validate_prefixes()
        self._validate_sparsity()
        self._validate_optimizer()
        if self.optimizer == "adamw":
            raise ValueError("optimizer: 'adamw' is 'adam' with weight decay, which a sparse code has not; got 'adamw'")
        check_state_precision(self.state_precision, self.optimizer)

    def _validate_outputs(self) -> None:
        if self.n_outputs is not None:
            check_integer("n_outputs", self.n_outputs, 1)
        if self.output_width != self.n_features:
            got = f"got {self.output_width}"
            if not self.transcoder:
                raise ValueError(f"n_outputs: other than n_features={self.n_features} needs transcoder=True, {got}")
            if self.pre_bias:
                raise ValueError(f"pre_bias: True needs n_outputs=n_features={self.n_features}, {got}")

    def _validate_ignored(self) -> None:
        for names, is_used, wanted in _USED_BY:
            for name in () if is_used(self) else names:
                if (value := getattr(self, name)) != (default := getattr(type(self), name)):
                    raise ValueError(f"{name}: other than {default!r} needs {wanted}, got {value!r}")

    def _validate_k(self) -> None:
        if not self.selects:
            return
        n = self.n_latents
        for name in ("k", "k_start"):
            value = getattr(self, name)
            if name == "k_start" and value is None:
                continue
            if self.activation == "topk":
                check_integer(name, value, 1, n)
            else:
                check_real(name, value, 0.0, n, "(]")
        if (self.k_start is None) == (self.k_warm_up > 0):
            raise ValueError(
                "k_start, k_warm_up: a warm-up needs both or neither, "
                f"got k_start={self.k_start!r} and k_warm_up={self.k_warm_up!r}"
            )

    def _validate_prefixes(self) -> None:
        if not isinstance(self.prefixes, (tuple, list)):
            raise ValueError(f"prefixes: expected a tuple of integers, got {self.prefixes!r}")
        least = 1
        for prefix in self.prefixes:
            check_integer("prefixes", prefix, 1, self.n_latents)
            if prefix < least:
                raise ValueError(f"prefixes: expected rising numbers, got {self.prefixes!r}")
            least = prefix + 1
        if len(self.prefixes) > MOST_PREFIXES:
            raise ValueError(f"prefixes: expected at most {MOST_PREFIXES}, got {len(self.prefixes)}")
        if self.prefixes and self.prefixes[-1] != self.n_latents:
            raise ValueError(f"prefixes: the last must be n_latents={self.n_latents}, got {self.prefixes!r}")
        if (weights := self.prefix_weights) is None:
            return
        if not isinstance(weights, (tuple, list)) or len(weights) != len(self.prefixes):
            raise ValueError(f"prefix_weights: expected {len(self.prefixes)}, one for each prefix, got {weights!r}")
        for weight in weights:
            check_real("prefix_weights", weight, 0.0)
        if not any(weights):
            raise ValueError(f"prefix_weights: expected one above 0, else nothing is learned, got {weights!r}")

    def _validate_sparsity(self) -> None:
        if self.activation not in (fitting := PENALISED[self.sparsity]):
            raise ValueError(
                f"sparsity={self.sparsity!r} needs activation={' or '.join(map(repr, fitting))}, "
                f"got {self.activation!r}"
            )
        if self.sparsity in TARGETING:
            check_real("target_l0", self.target_l0, 0.0, self.n_latents, "(]")


_CHOICES = {
    "activation": ACTIVATIONS,
    "decoder_norm": DECODER_NORMS,
    "loss_reduction": LOSS_REDUCTIONS,
    "sparsity": SPARSITIES,
    "aux_reduction": AUX_REDUCTIONS,
}
_FLAGS = (
    *("transcoder", "skip", "pre_bias", "project_gradient", "sparsity_by_norm"),
    *("gate_detached", "aux_relu", "aux_share"),
)
_RANGES = {
    **dict.fromkeys(("sparsity_weight", "pre_act_weight", "gate_weight", "aux_weight"), (0.0, math.inf, "[)")),
    **dict.fromkeys(("initial_threshold", "threshold_start"), (0.0, math.inf, "[)")),
    **dict.fromkeys(("tanh_scale", "bandwidth"), (0.0, math.inf, "()")),
    "threshold_decay": (0.0, 1.0, "[)"),
}
_INTEGERS = {"k_warm_up": 0, "sparsity_warm_up": 0, "aux_k": 1, "dead_after": 0}
#: Of those, which may be None.
_OPTIONAL = ("threshold_start", "aux_k", "dead_after")

_SELECTED = ("k", "k_start", "k_warm_up", "aux_k", "aux_weight", "aux_relu", "aux_share", "aux_reduction")
_JUMPING = ("bandwidth", "initial_threshold", "pre_act_weight")
#: Options, whether a configuration uses them, and what it needs for that.
_USED_BY: tuple[tuple[tuple[str, ...], Callable[[SparseCodeConfig], bool], str], ...] = (
    (("skip",), lambda c: c.transcoder, "transcoder=True"),
    (_SELECTED, lambda c: c.selects, "activation='topk' or 'batch_topk'"),
    (("threshold_decay", "threshold_start"), lambda c: c.activation == "batch_topk", "activation='batch_topk'"),
    (_JUMPING, lambda c: c.activation == "jump_relu", "activation='jump_relu'"),
    (("gate_weight", "gate_detached"), lambda c: c.activation == "gated", "activation='gated'"),
    (("prefixes",), lambda c: c.selects, "activation='topk' or 'batch_topk'"),
    (("prefix_weights",), lambda c: bool(c.prefixes), "prefixes"),
    (("project_gradient",), lambda c: c.decoder_norm == "unit", "decoder_norm='unit'"),
    (("sparsity_weight", "sparsity_warm_up"), lambda c: c.sparsity != "none", "sparsity other than 'none'"),
    (("sparsity_by_norm",), lambda c: c.sparsity in ("l1", "tanh"), "sparsity='l1' or 'tanh'"),
    (("tanh_scale",), lambda c: c.sparsity == "tanh", "sparsity='tanh'"),
    (("target_l0",), lambda c: c.sparsity in TARGETING, "sparsity='quadratic' or 'quadratic_rows'"),
    (("pre_act_weight",), lambda c: c.dead_after is not None, "dead_after"),
)
