"""Transcoders: sparse codes that predict other activations than those that they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array, check_consistent_length, check_is_fitted

from fastsae.base import check_range, is_mapped, tensor_as_array
from fastsae.checks import check_choice
from fastsae.dictionaries import AUTO, Dictionary
from fastsae.optimizer import DTYPES
from fastsae.saes import fitting_target

if TYPE_CHECKING:
    from typing_extensions import Self

ARCHITECTURES = ("topk", "batch_topk", "jump_relu", "gated", "relu")
_PENALTIES = {"gated": "l1", "relu": "l1"}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Transcoder(Dictionary):
    """A sparse code of x that predicts y (Dunefsky et al., "Transcoders find interpretable feature circuits", 2024).

    ``y^ = b_dec + sum_j a_j W_dec_j`` with a sparse a of ``z = W_enc x + b_enc``: typically from what enters a layer of
    a language model to what leaves it. With `skip` it is plus ``W_skip x`` (Paulo et al., "Transcoders beat sparse
    autoencoders", 2025).

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    architecture : {"topk", "batch_topk", "jump_relu", "gated", "relu"}
        How a is made of z: as by TopKSAE, BatchTopKSAE, JumpReLUSAE, GatedSAE and L1SAE.
    skip : bool
        Whether the output has a linear part.
    k, k_start, k_warm_up, prefixes, prefix_weights, threshold_decay, threshold_start, sparsity, sparsity_weight, \
sparsity_by_norm, sparsity_warm_up, target_l0, tanh_scale, pre_act_weight, bandwidth, initial_threshold, gate_weight, \
gate_detached, aux_k, aux_weight, aux_relu, aux_share, aux_reduction
        As for the autoencoder of that architecture; one that it has no use for must be left as it is.
    pre_bias : bool
        Whether the encoder subtracts b_dec, which needs a y as wide as X; by default not.
    scale : str or None
        What is done to X. y stays as it is.

    All other parameters and the attributes are those of every :class:`fastsae.dictionaries.Dictionary`. `decoder_` and
    `decoder_bias_` have the width of y.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import Transcoder
    >>> X = np.random.default_rng(0).standard_normal((500, 20), dtype=np.float32)
    >>> transcoder = Transcoder(64, k=4, batch_size=100, max_steps=20, random_state=0).fit(X, X[:, :7] ** 2)
    >>> transcoder.predict(X).shape
    (500, 7)
    """

    architecture: str = "topk"
    skip: bool = False
    k: float | str = AUTO
    k_start: float | str | None = AUTO
    k_warm_up: int | str = AUTO
    prefixes: tuple[int, ...] = ()
    prefix_weights: tuple[float, ...] | None = None
    threshold_decay: float | str = AUTO
    threshold_start: float | str | None = AUTO
    sparsity: str = AUTO
    sparsity_weight: float | str = AUTO
    sparsity_by_norm: bool | str = AUTO
    sparsity_warm_up: int | str = AUTO
    target_l0: float | str | None = AUTO
    tanh_scale: float | str = AUTO
    pre_act_weight: float | str = AUTO
    bandwidth: float | str = AUTO
    initial_threshold: float | str = AUTO
    gate_weight: float | str = AUTO
    gate_detached: bool | str = AUTO
    aux_k: int | str | None = AUTO
    aux_weight: float | str = AUTO
    aux_relu: bool | str = AUTO
    aux_share: bool | str = AUTO
    aux_reduction: str = AUTO

    _inverts = False
    _n_outputs = 1  # of the y that is in work

    # Training

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Train from new weights; arguments and errors as those of :meth:`fastsae.SparseAutoencoder.fit`.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
        y : array-like, shape (n_rows, n_outputs) or (n_rows,)
            What the output of each row should be, in host memory.
        sample_weight : array-like, shape (n_rows,), optional
            Weights >= 0.
        """
        return self._with_targets(X, y, lambda targets: self._fit(X, sample_weight, targets=targets))

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Train one more pass over these rows: for data that comes in pieces."""
        return self._with_targets(X, y, lambda targets: self._partial_fit(X, sample_weight, targets))

    def resume(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:  # type: ignore[override]
        """Go on with an interrupted `fit` on the same rows and targets; see `SparseAutoencoder.resume`."""
        check_is_fitted(self)
        return self._with_targets(X, y, lambda targets: self._resume(X, sample_weight, targets=targets))

    # Inference

    def predict(self, X: Any, out: Any = None) -> Any:
        """What y is expected to be, shape (n_rows, n_outputs); the same as `reconstruct`.

        `inverse_transform` gives that of a code, which leaves out the linear part of `skip`.
        """
        return self.reconstruct(X, out)

    @property
    def score_samples(self) -> Any:
        """Not there: a score needs y, see `score_rows`."""
        raise AttributeError(f"a {type(self).__name__} scores rows with their y: score_rows(X, y)")

    def score_rows(self, X: Any, y: Any) -> NDArray[np.float64]:
        """Minus the reconstruction loss of each row's y, shape (n_rows,)."""
        check_is_fitted(self)
        rows, targets = self._check(X), self._checked_targets(X, y)
        width = self._engine.config.output_width
        if targets.shape[1] != width:
            raise ValueError(f"y: expected {width} columns, got {targets.shape[1]}")
        return -np.concatenate([self._engine.score(block, targets[part]) for part, block in self._blocks_of(rows)])

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_rows`, so that a grid search keeps the best prediction."""
        return float(self.score_rows(X, y).mean())

    # scikit-learn

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.one_d_labels = False
        tags.target_tags.two_d_labels = False
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags

    # Details

    def _with_targets(self, X: Any, y: Any, train: Callable[[NDArray[Any]], Self]) -> Self:
        targets = self._checked_targets(X, y)
        self._n_outputs = targets.shape[1]
        return train(targets)

    def _checked_targets(self, X: Any, y: Any) -> NDArray[Any]:
        if y is None:
            raise ValueError(f"This {type(self).__name__} requires y to be passed, but the target y is None.")
        finite = not is_mapped(y)
        targets: NDArray[Any] = check_array(
            tensor_as_array("y", y), dtype="numeric", ensure_2d=False, ensure_all_finite=finite, input_name="y"
        )
        check_consistent_length(X, targets)
        if targets.ndim == 1:
            targets = targets[:, None]
        if targets.ndim != 2 or targets.dtype.kind not in "fiub":
            raise ValueError(f"y: expected a 2-D array of real numbers, got {targets.dtype} of shape {targets.shape}")
        if finite and self.dtype in DTYPES:  # any other is refused with the other options
            check_range("y", targets, self.dtype)
        return targets

    def _defaults(self) -> dict[str, Any]:
        check_choice("architecture", self.architecture, ARCHITECTURES)
        options = self._defaults_of(f"transcoder {self.architecture}")
        return fitting_target(options, self.sparsity, self.n_latents)

    def _code_options(self, options: dict[str, Any]) -> dict[str, Any]:
        penalty = _PENALTIES.get(self.architecture, options["sparsity"]) if self.sparsity == AUTO else self.sparsity
        model = {"activation": self.architecture, "sparsity": penalty}
        return model | {"transcoder": True, "n_outputs": self._n_outputs}

    def _pairs_width(self) -> int | None:
        return int(self._engine.config.k) if self._engine.config.activation == "topk" else None

    def _slopes(self) -> NDArray[np.float64]:
        slopes = super()._slopes()
        return slopes * np.exp(self._engine.get("r_mag")) if self._engine.config.activation == "gated" else slopes

    @classmethod
    def _has_model(cls, config: Any) -> bool:
        return bool(config.transcoder)
