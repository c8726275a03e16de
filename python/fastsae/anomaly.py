"""Anomalies: rows that an autoencoder trained on normal ones cannot reconstruct."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from fastsae import checkpoint as _checkpoint
from fastsae.base import Array, Autoencoder, tensor_as_array
from fastsae.checks import check_bool, check_real
from fastsae.estimators import SparseAutoencoder
from fastsae.scaling import Scaler

if TYPE_CHECKING:
    from typing_extensions import Self

_ROWS_AT_ONCE = 4096
_FENCE = 1.5


class AnomalyDetector(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Finds rows unlike the training rows by the error of their reconstruction (Hawkins et al. 2002).

    ``score_samples(x) = -1/d sum_k ((x_k - x_hat_k) / s_k)^2``, where s_k is the standard deviation of column k in the
    training rows (1 for a constant column, and for all with ``scale=False``) and x_hat what the autoencoder makes of x.

    Parameters
    ----------
    autoencoder : Autoencoder, optional
        Any estimator of fastsae with `reconstruct`; a clone of it is trained. None takes a sparse autoencoder with a
        bottleneck, see :func:`default_autoencoder`. With ``scale=True`` its output layer must be ``identity``, since
        standardised columns have any sign and size.
    contamination : "auto" or float
        Share of the training rows, in (0, 0.5], that `predict` calls anomalous. ``auto`` calls a row so whose error
        is above ``Q3 + 1.5 (Q3 - Q1)``, with the quartiles of the training rows' errors (Tukey 1977): for training
        rows that are all, or nearly all, normal.
    scale : bool
        Subtract each column's mean and divide by its standard deviation before the autoencoder sees them.
    random_state : int, RandomState or None
        Unless None, given to the clone in place of its own.

    Attributes
    ----------
    autoencoder_ : Autoencoder
        The trained clone. It sees standardised rows.
    mean_, scale_ : ndarray, shape (n_features_in_,)
        Of the training rows; 0 and 1 with ``scale=False``.
    offset_ : float
        `score_samples` below which a row is an anomaly.
    n_features_in_ : int
        Width of X.

    Notes
    -----
    As everywhere in scikit-learn, higher is more normal. Other libraries (PyOD) have the opposite sign: take
    ``-detector.score_samples(X)``.

    Scaling and threshold are those of all training rows, so there is no `partial_fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import AnomalyDetector
    >>> X = np.random.default_rng(0).normal(size=(300, 5))
    >>> detector = AnomalyDetector(contamination=0.05, random_state=0).fit(X)
    >>> detector.predict([[0, 0, 0, 0, 0], [9, 9, -9, 9, 9]])
    array([ 1, -1])
    """

    mean_: Array
    scale_: Array
    offset_: float

    def __init__(
        self,
        autoencoder: Autoencoder[Any] | None = None,
        *,
        contamination: str | float = "auto",
        scale: bool = True,
        random_state: Any = None,
    ) -> None:
        self.autoencoder = autoencoder
        self.contamination = contamination
        self.scale = scale
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Train a clone of the autoencoder, and set the threshold by the errors of these rows.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            Without NaN or infinity: normal rows, with at most about `contamination` of others among them.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If an option or X is not usable; what was fitted before is kept then.
        """
        self._check_options()
        before = dict(self.__dict__)
        try:
            X = self._validate(X, reset=True)
            n_features = X.shape[1]
            self.mean_, self.scale_ = np.zeros(n_features), np.ones(n_features)
            if self.scale:
                scaler = Scaler.fit("zscore", X)
                self.mean_, self.scale_ = scaler.center, scaler.scale
            self.autoencoder_ = self._new_autoencoder(n_features)
            self.autoencoder_.fit(self._standardise(X))
            self.offset_ = self._threshold(self._scores(X))
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Minus the mean squared error of each row's standardised features, shape (n_rows,): low for anomalies."""
        check_is_fitted(self)
        return self._scores(self._validate(X, reset=False))

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """``score_samples(X) - offset_``, shape (n_rows,): negative for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """-1 for anomalies and +1 for the others, shape (n_rows,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def feature_errors(self, X: Any) -> NDArray[np.float64]:
        """``((x_k - x_hat_k) / s_k)^2`` of every feature, shape (n_rows, n_features): which make a row anomalous.

        Minus their mean over a row is its `score_samples`.
        """
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        errors = np.empty(X.shape)
        for first in range(0, len(X), _ROWS_AT_ONCE):
            errors[first : first + _ROWS_AT_ONCE] = self._errors(X[first : first + _ROWS_AT_ONCE])
        return errors

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint with the trained autoencoder, the scaling and the threshold, for :func:`fastsae.load`.

        Raises
        ------
        OSError
            If the file cannot be written; an older file of that name is untouched.
        """
        check_is_fitted(self)
        _checkpoint.save(self.autoencoder_, path, around=self)

    # Files

    @staticmethod
    def _tensors_like(n_features: int) -> dict[str, Array]:
        """What a checkpoint holds beside the autoencoder, in shape and dtype."""
        return {"mean": np.zeros(n_features), "scale": np.ones(n_features), "offset": np.zeros(1)}

    def _fitted(self) -> dict[str, Array]:
        """What a checkpoint holds beside the autoencoder."""
        return {"mean": self.mean_, "scale": self.scale_, "offset": np.array([self.offset_])}

    def _adopt(self, autoencoder: Autoencoder[Any], fitted: Mapping[str, Array]) -> None:
        """Take what a checkpoint held."""
        if (fitted["scale"] <= 0).any():
            raise ValueError("scale: expected positive numbers")
        self.autoencoder_, self.n_features_in_ = autoencoder, autoencoder.n_features_in_
        self.mean_, self.scale_, self.offset_ = fitted["mean"], fitted["scale"], float(fitted["offset"][0])

    # Details

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")

    def _check_options(self) -> None:
        if self.autoencoder is not None and not isinstance(self.autoencoder, Autoencoder):
            raise ValueError(f"autoencoder: expected an autoencoder of fastsae or None, got {self.autoencoder!r}")
        if self.contamination != "auto":
            check_real("contamination", self.contamination, 0.0, 0.5, "(]")
        check_bool("scale", self.scale)

    def _new_autoencoder(self, n_features: int) -> Autoencoder[Any]:
        made = default_autoencoder(n_features) if self.autoencoder is None else clone(self.autoencoder)
        if self.random_state is not None:
            made.set_params(random_state=self.random_state)
        layers = getattr(made._config(n_features), "layers", ())
        output = getattr(layers[-1], "activation", "identity") if layers else "identity"
        if self.scale and output != "identity" and made._kind_of_scale() != "minmax":
            raise ValueError(
                f"autoencoder: scale=True gives numbers of any sign and size, which an output layer of {output!r} "
                "does not reach; take an identity output layer, scale='minmax' of the autoencoder, or scale=False"
            )
        return made

    def _validate(self, X: Any, reset: bool) -> Array:
        X = validate_data(self, tensor_as_array("X", X), reset=reset, dtype="numeric")
        if X.dtype.kind not in "fiub":
            raise ValueError(f"X: expected an array of real numbers, got dtype {X.dtype}")
        checked: Array = X
        return checked

    def _standardise(self, X: Array) -> Array:
        return Scaler("zscore", self.mean_, self.scale_).transform_finite(X, self.autoencoder_.dtype)

    def _errors(self, X: Array) -> NDArray[np.float64]:
        rows = self._standardise(X)
        difference: NDArray[np.float64] = self.autoencoder_.reconstruct(rows).astype(np.float64) - rows
        with np.errstate(over="ignore"):  # infinitely far is an anomaly too
            return np.square(difference, out=difference)

    def _scores(self, X: Array) -> NDArray[np.float64]:
        # Blocks bound the memory; the model gives the same bits for any of 1024 rows.
        blocks = range(0, len(X), _ROWS_AT_ONCE)
        return -np.concatenate([self._errors(X[first : first + _ROWS_AT_ONCE]).mean(axis=1) for first in blocks])

    def _threshold(self, scores: NDArray[np.float64]) -> float:
        if self.contamination == "auto":
            low, high = np.percentile(-scores, (25, 75))
            return float(-(high + _FENCE * (high - low)))
        return float(np.percentile(scores, 100 * float(self.contamination)))


def default_autoencoder(n_features: int) -> SparseAutoencoder:
    """What :class:`AnomalyDetector` trains unless it is given another one.

    A bottleneck of half as many tanh units as features, at most 64: the units saturate, so that a row far along a
    direction in which the training rows vary is no better reconstructed than one far from all of them.
    """
    return SparseAutoencoder(
        n_hidden=min(64, max(1, n_features // 2)),
        activation="tanh",
        output_activation="identity",
        penalty="none",
        weight_decay=1e-3,
        batch_size=32,
        max_epochs=200,
        verbose=False,
    )
