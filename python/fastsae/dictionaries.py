"""What all overcomplete dictionaries share: sparse autoencoders and transcoders of one wide layer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from fastsae._core import DeviceArray
from fastsae.base import Array, Autoencoder
from fastsae.checks import check_choice, check_integer, check_real
from fastsae.codes import OUTPUTS, as_csr, csr_of, pairs_of
from fastsae.config import TrainingConfig
from fastsae.initializers import CENTERS, MATCHED, MOST_ROWS, center_of, initialize_code, variance_of
from fastsae.optimizer import OPTIMIZERS
from fastsae.presets import DEFAULTS, LEARNING_RATE, PerPrefix, PerRootLatents, Steps, preset_options
from fastsae.resampling import dead_latents
from fastsae.scaling import SCALES
from fastsae.sparse_code import SparseCodeConfig
from fastsae.stores import ArrayStore
from fastsae.trainer import Callback

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

AUTO = "auto"

_SOLVERS = tuple(name for name in OPTIMIZERS if name != "adamw")  # which is for weight decay
_CODE_OPTIONS = tuple(field.name for field in dataclasses.fields(SparseCodeConfig))
_TRAINING_OPTIONS = tuple(field.name for field in dataclasses.fields(TrainingConfig))
#: What "auto" stands for where neither the preset nor the architecture says something else.
_PLAIN = {
    **{field.name: field.default for field in dataclasses.fields(SparseCodeConfig)},
    "solver": SparseCodeConfig.optimizer,
    "batch_size": 4096,
    "bias_init": "geometric_median",
    "encoder_init_norm": None,
    "learning_rate": LEARNING_RATE,
    "scale": TrainingConfig.scale,
}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class Dictionary(Autoencoder[SparseCodeConfig]):
    """An overcomplete dictionary: x is approximated by a few of many directions.

    ``y^ = b_dec + sum_j a_j W_dec_j`` with coefficients a of ``z = W_enc (x - b_dec) + b_enc``, most of them 0. The
    classes differ in how a is made of z and in what keeps it sparse; :class:`fastsae.SparseCodeConfig` has all
    formulas. The code is ``a_j``, times ``|W_dec_j|`` under ``decoder_norm="rescale"``.

    An option that is ``"auto"`` is the one of `preset`, or else our default for the architecture: `resolved_params`
    shows it.

    Parameters
    ----------
    n_latents : int, default 16384
        Directions in the dictionary.
    preset : {"saelens", "sparsify", "dictionary_learning", "openai"} or None
        The library whose constants and conventions the ``"auto"`` options take; see :mod:`fastsae.presets`.
    pre_bias : bool
        Whether the encoder subtracts b_dec.
    decoder_norm : {"unit", "rescale", "free"}
        ``unit`` keeps the rows of W_dec at norm 1; ``rescale`` counts ``a_j |W_dec_j|`` in selection and code.
    project_gradient : bool
        Under ``unit``: take from each row's gradient its part along the row.
    loss_reduction : {"sum", "mean", "fvu", "fvu_data", "ufldl"}
        What the squared error is divided by: 1, n_features, the variance of the batch, or 2.
    dead_after : int or None
        Rows without a firing after which a latent counts as dead; None: never.
    bias_init : {"geometric_median", "mean", "zeros"}
        First b_dec: of up to 8192 rows, drawn at random.
    decoder_init_norm, encoder_init_norm : float
        Norms of the first rows of W_dec, >= 0, and of W_enc; None takes the decoder's. Both have the same random
        directions. By default 1 under ``unit``, else 0.1. Of a TopK autoencoder ``encoder_init_norm="matched"`` gives
        random unit vectors outputs of the mean norm 1.
    solver : {"adam", "sign_sgd", "sgd", "momentum", "nesterov"}
        The optimiser; ``sign_sgd`` is averaged without a schedule.
    learning_rate : float or None
        None takes ``2e-4 / sqrt(n_latents / 2**14)``.
    momentum, beta1, beta2, epsilon, lr_schedule, lr_warm_up, lr_start, lr_decay_steps, lr_total_steps, lr_final, \
lr_step_size, lr_gamma, max_grad_norm
        See :class:`fastsae.optimizer.OptimizerConfig`. Schedules end with `max_steps` or `max_epochs` unless
        `lr_total_steps` says where.
    batch_size : int or None
        Rows per step, 4096 by default; None means all.
    max_epochs : int, default 10
        Passes over X.
    max_steps : int or None
        Optimiser steps, in the place of `max_epochs`. `partial_fit` takes one pass whatever both say.
    log_every : int or None, default 100
        Steps between two entries of `step_history_`.
    shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, dtype, precision, device, random_state
        As for :class:`fastsae.SparseAutoencoder`.
    state_precision : {"full", "bf16", "8bit"}
        How the optimiser's moments of W_enc and W_dec are kept between steps: in `dtype`, in bfloat16, or in 8 bits,
        rounded by chance; see :class:`fastsae.SparseCodeConfig`. It is for large dictionaries: with ``solver="adam"``
        and float32 each weight takes 12, 8 or 6.03 bytes. Not for ``sgd`` and ``sign_sgd``.
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm", "row_norm", "layer_norm"} or None
        What is done to rows before the model sees them; see :mod:`fastsae.scaling`. "auto" is ``mean_norm`` where
        penalties and thresholds have units, as of JumpReLU, Gated and L1, else None. `inverse_transform` needs a scale
        that codes alone are enough to undo: not ``row_norm`` or ``layer_norm``.
    checkpoint : path, optional
        File that `fit` writes every `checkpoint_every` epochs, every `checkpoint_steps` steps, and at its end, also
        when it is interrupted.
    checkpoint_every, checkpoint_steps : int; int or None
        In epochs and in steps.
    callback : callable, optional
        Called with each entry of `history_`, which has ``epoch``, and of `step_history_`, which has ``step``;
        returning True ends the training.
    verbose : bool
        Show a progress bar on a terminal when training takes more than a second.

    Attributes
    ----------
    encoder_ : ndarray, shape (n_latents, n_features_in_)
        W_enc: the direction that each latent reads.
    decoder_ : ndarray, shape (n_latents, n_outputs)
        W_dec: the direction that each latent writes.
    encoder_bias_, decoder_bias_ : ndarray, shape (n_latents,), (n_outputs,)
        b_enc (of a gated encoder b_gate) and b_dec.
    latent_frequency_ : ndarray of float64, shape (n_latents,)
        Share of the training rows in which each latent fired: over the last full `log_every` steps, or the last epoch
        without `log_every`. :func:`fastsae.metrics.frequency_histogram` draws on it.
    dead_latents_ : ndarray of int
        The latents that have not fired in more than `dead_after` rows.
    history_, step_history_ : dict of list
        Per epoch, and per `log_every` steps: ``epoch`` or ``step``; loss = reconstruction + sparsity + auxiliary;
        gradient_norm; l0, the mean number of active latents; fvu, the squared error as a share of the variance of the
        batches, and explained_variance = 1 - fvu; dead_share at that moment. Means over the rows since the entry
        before. Also, with held-out rows, validation_loss and validation_reconstruction per epoch, and rows_per_second
        per `log_every` steps.
    n_iter_, n_steps_ : int
        Epochs and steps done.
    center_, scale_ : ndarray of float64, shape (n_features_in_,), or None
        Of `scale`.
    n_features_in_ : int
        Width of X.
    """

    n_latents: int = dataclasses.field(default=16384, kw_only=False)
    preset: str | None = None
    pre_bias: bool | str = AUTO
    decoder_norm: str = AUTO
    project_gradient: bool | str = AUTO
    loss_reduction: str = AUTO
    dead_after: int | str | None = AUTO
    bias_init: str = AUTO
    decoder_init_norm: float | str = AUTO
    encoder_init_norm: float | str | None = AUTO
    solver: str = AUTO
    learning_rate: float | str | None = AUTO
    momentum: float | str = AUTO
    beta1: float | str = AUTO
    beta2: float | str = AUTO
    epsilon: float | str = AUTO
    lr_schedule: str = AUTO
    lr_warm_up: int | str = AUTO
    lr_start: float | str | None = AUTO
    lr_decay_steps: int | None = SparseCodeConfig.lr_decay_steps
    lr_total_steps: int | None = SparseCodeConfig.lr_total_steps
    lr_final: float = SparseCodeConfig.lr_final
    lr_step_size: int = SparseCodeConfig.lr_step_size
    lr_gamma: float = SparseCodeConfig.lr_gamma
    max_grad_norm: float | str | None = AUTO
    batch_size: int | str | None = AUTO
    max_epochs: int = 10
    max_steps: int | None = None
    log_every: int | None = 100
    shuffle: bool = TrainingConfig.shuffle
    validation_fraction: float = TrainingConfig.validation_fraction
    early_stopping: bool = TrainingConfig.early_stopping
    n_iter_no_change: int = TrainingConfig.n_iter_no_change
    tol: float = TrainingConfig.tol
    scale: str | None = AUTO
    dtype: str = SparseCodeConfig.dtype
    precision: str = SparseCodeConfig.precision
    state_precision: str = SparseCodeConfig.state_precision
    device: str = "auto"
    random_state: Any = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = 1
    checkpoint_steps: int | None = None
    callback: Callback | None = None
    verbose: bool = True

    _scales = SCALES  # without a type, which would make it a parameter
    _architecture: ClassVar[str]
    _activation: ClassVar[str]

    def resolved_params(self) -> dict[str, Any]:
        """`get_params` with what every ``"auto"`` stands for.

        Raises
        ------
        ValueError
            If the preset is unknown or does not train this architecture.
        """
        check_integer("n_latents", self.n_latents, 1)
        table = {**_PLAIN, **self._defaults()}
        # Asking scikit-learn for the names takes as long as a small step.
        given = {name: getattr(self, name) for name in sorted(field.name for field in dataclasses.fields(self))}
        values = {
            name: table[name] if isinstance(value, str) and value == AUTO and name != "device" else value
            for name, value in given.items()
        }
        if self.lr_start == AUTO and (values["lr_warm_up"] == 0 or values["solver"] == "sign_sgd"):
            values["lr_start"] = None
        if values["learning_rate"] is None:
            values["learning_rate"] = LEARNING_RATE
        for name, value in values.items():
            if isinstance(value, PerRootLatents):
                values[name] = value.at(self.n_latents)
            elif isinstance(value, Steps):
                check_integer(f"batch_size (preset={self.preset!r} counts {name} in steps)", values["batch_size"], 1)
                values[name] = round(value.value * values["batch_size"])
            elif isinstance(value, PerPrefix):
                n_prefixes = len(values["prefixes"])
                values[name] = (1 / n_prefixes**value.power,) * n_prefixes
        return values

    def _defaults(self) -> dict[str, Any]:
        """What "auto" stands for, but for what is in `_PLAIN`."""
        return self._defaults_of(self._architecture)

    def _defaults_of(self, architecture: str) -> dict[str, Any]:
        own = DEFAULTS[architecture]
        norm = own.get("decoder_norm", "unit") if self.decoder_norm == AUTO else self.decoder_norm
        free = own.get("decoder_init_norm", 0.1) if norm == "free" else 0.1
        own = {**own, "decoder_init_norm": 1.0 if norm == "unit" else free}
        return own if self.preset is None else own | preset_options(self.preset, architecture)

    # Inference

    def transform(self, X: Any, out: Any = None, *, output: str = "dense") -> Any:
        """The code of each row; safe to call from many threads.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            As for `fit`.
        out : array, shape (n_rows, n_latents), optional
            For ``dense``: memory to write to, as for :meth:`fastsae.SparseAutoencoder.transform`.
        output : {"dense", "csr", "pairs"}
            An array; a SciPy matrix of compressed rows, columns ascending; or two arrays ``(values, indices)`` of shape
            (n_rows, most active latents of a row), of a TopK code (n_rows, k): values fall, and places that are left
            over have the value 0 and the index 0.

        Returns
        -------
        ndarray, DeviceArray, scipy.sparse.csr_matrix, or tuple of two ndarrays
        """
        check_is_fitted(self)
        check_choice("output", output, OUTPUTS)
        if output == "dense":
            return super().transform(X, out)
        if out is not None:
            raise ValueError(f"out: needs output='dense', got {output!r}")
        if (frames := getattr(self, "_sklearn_output_config", {}).get("transform", "default")) != "default":
            raise ValueError(f"output: set_output(transform={frames!r}) needs 'dense', got {output!r}")
        codes = self._codes(self._check(X))
        return codes if output == "csr" else pairs_of(codes, self._pairs_width())

    def inverse_transform(self, H: Any, out: Any = None) -> Any:
        """Reconstructions of codes, shape (n_rows, n_features).

        Parameters
        ----------
        H : array, SciPy sparse matrix, or tuple of two arrays
            What `transform` returns with any `output`.
        out : array, shape (n_rows, n_features), optional
            Memory to write to, where H is an array.
        """
        check_is_fitted(self)
        codes = as_csr(H, self._engine.code_width)
        if codes is None:
            return super().inverse_transform(H, out)
        if out is not None:
            raise ValueError("out: needs a dense H")
        if np.abs(codes.data).max(initial=0.0) > np.finfo(self._engine.config.dtype).max:
            raise ValueError(f"H: contains a number too large for {self._engine.config.dtype}")
        scaler = self._scaler if self._inverts else None
        if scaler is not None:
            scaler.check_inverse()
        rows = self._engine.decode_sparse(codes.indptr, codes.indices, codes.data)
        if scaler is not None:
            scaler.invert(rows)
        return rows

    def jacobian_norm(self, X: Any) -> NDArray[np.float64]:
        """How much the code moves with its input: ``|dc/dx|`` of each row, the Frobenius norm, shape (n_rows,).

        ``sqrt(sum over active j of |s_j W_enc_j|^2)``, with ``s_j`` the slope of the code by ``z_j``: where the row is
        between two switches of a latent. With `scale` the input is the scaled row.
        """
        check_is_fitted(self)
        active = self._codes(self._check(X))
        active.data = np.ones(active.nnz)
        squares = (self._slopes() * np.linalg.norm(self.encoder_.astype(np.float64), axis=1)) ** 2
        norms: NDArray[np.float64] = np.sqrt(active @ squares)
        return norms

    # Fitted attributes

    @property
    def components_(self) -> Array:
        """W_enc, shape (n_latents, n_features_in_)."""
        return self._tensor("components_", "W_enc")

    @property
    def encoder_(self) -> Array:
        """W_enc, shape (n_latents, n_features_in_)."""
        return self._tensor("encoder_", "W_enc")

    @property
    def encoder_bias_(self) -> Array:
        """b_enc, or b_gate of a gated encoder, shape (n_latents,)."""
        gated = self._fitted_engine("encoder_bias_").config.activation == "gated"
        return self._tensor("encoder_bias_", "b_gate" if gated else "b_enc")

    @property
    def decoder_(self) -> Array:
        """W_dec, shape (n_latents, n_outputs)."""
        return self._tensor("decoder_", "W_dec")

    @property
    def decoder_bias_(self) -> Array:
        """b_dec, shape (n_outputs,)."""
        return self._tensor("decoder_bias_", "b_dec")

    @property
    def latent_frequency_(self) -> NDArray[np.float64]:
        """Share of the training rows in which each latent fired, shape (n_latents,)."""
        self._fitted_engine("latent_frequency_")
        if self._state.frequency is not None:
            return self._state.frequency
        fired = self._state.fired
        n_latents = self._engine.code_width
        return np.full(n_latents, np.nan) if fired is None or not fired[-1] else fired[:-1] / fired[-1]

    @property
    def dead_latents_(self) -> NDArray[np.int64]:
        """The latents that have not fired in more than `dead_after` rows."""
        return np.flatnonzero(dead_latents(self._fitted_engine("dead_latents_")))

    @property
    def step_history_(self) -> dict[str, list[float]]:
        """Per `log_every` steps: step, loss and its parts, and what the code is like."""
        self._fitted_engine("step_history_")
        return self._state.step_history

    @property
    def n_steps_(self) -> int:
        """Steps done."""
        return self._fitted_engine("n_steps_").steps

    # Details

    @contextlib.contextmanager
    def _setting_up(self) -> Iterator[None]:
        self._resolved = self.resolved_params()
        try:
            with super()._setting_up():
                yield
        finally:
            del self._resolved

    def _options(self) -> dict[str, Any]:
        """`resolved_params`, made once for a training that is set up."""
        options: dict[str, Any] | None = self.__dict__.get("_resolved")
        return self.resolved_params() if options is None else options

    def _tensor(self, attribute: str, name: str) -> Array:
        return self._fitted_engine(attribute).get(name)

    def _codes(self, rows: Any) -> csr_matrix:
        parts = [self._engine.encode_sparse(block) for _, block in self._blocks_of(rows)]
        return csr_of(parts, self._engine.code_width)

    def _pairs_width(self) -> int | None:
        """Columns that pairs have whatever the rows are."""
        return None

    def _slopes(self) -> NDArray[np.float64]:
        """Of an active latent's code by its z, shape (n_latents,)."""
        if self._engine.config.decoder_norm != "rescale":
            return np.ones(self._engine.code_width)
        norms: NDArray[np.float64] = np.linalg.norm(self.decoder_.astype(np.float64), axis=1)
        return norms

    def _config(self, n_features: int) -> SparseCodeConfig:
        options = self._options()
        check_choice("bias_init", options["bias_init"], CENTERS)
        # From 0 a decoder that counts in the selection never moves.
        ends = "()" if options["decoder_norm"] == "rescale" else "[)"
        check_real("decoder_init_norm", options["decoder_init_norm"], 0.0, ends=ends)
        if (norm := options["encoder_init_norm"]) == MATCHED:
            if getattr(type(self), "_architecture", "") != "topk":
                raise ValueError(f"encoder_init_norm: {MATCHED!r} is for TopKSAE, got {type(self).__name__}")
            check_real(
                f"decoder_init_norm (encoder_init_norm={MATCHED!r})", options["decoder_init_norm"], 0.0, ends="()"
            )
        elif norm is not None:
            check_real("encoder_init_norm", norm, 0.0, ends="()")
        values = {name: options[name] for name in _CODE_OPTIONS if name in options}
        values |= {"n_features": n_features, "optimizer": options["solver"]}
        config = SparseCodeConfig(**values | self._code_options(options))
        config.validate()
        return config

    def _code_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of the model that are not parameters of the same name."""
        return {"activation": self._activation}

    def _kind_of_scale(self) -> str | None:
        kind: str | None = self._options()["scale"]
        return kind

    def _training_options(self) -> dict[str, Any]:
        options = self._options()
        check_choice("solver", options["solver"], _SOLVERS)
        if self.checkpoint_steps is not None:
            check_integer("checkpoint_steps", self.checkpoint_steps, 1)
        return {name: options[name] for name in _TRAINING_OPTIONS if name in options}

    @classmethod
    def _config_from_dict(cls, values: Any) -> SparseCodeConfig:
        return SparseCodeConfig.from_dict(values)

    @classmethod
    def _has_model(cls, config: Any) -> bool:
        nested = cls._architecture == "matryoshka"
        return bool(config.activation == cls._activation and not config.transcoder and bool(config.prefixes) == nested)

    @classmethod
    def _names_of_options(cls, config: Any) -> dict[str, Any]:
        options = {name: getattr(config, name) for name in _CODE_OPTIONS}
        options["solver"] = options.pop("optimizer")
        return options

    def _place_first_parameters(
        self, config: Any, store: ArrayStore, weights: NDArray[np.float64] | None, targets: Any
    ) -> None:
        options, seed = self._options(), self._state.seed
        centers: dict[str, Any] = {}
        kind, divides = options["bias_init"], config.loss_reduction == "fvu_data"
        if kind != "zeros" or divides:
            numbers = np.arange(len(store)) if weights is None else np.flatnonzero(weights)
            if len(numbers) > MOST_ROWS:
                numbers = np.sort(np.random.default_rng([seed, 6]).choice(numbers, MOST_ROWS, replace=False))
            rows = store.rows(None if len(numbers) == len(store) else numbers)
            rows = rows.numpy() if isinstance(rows, DeviceArray) else rows
            shares = None if weights is None else weights[numbers]
            outputs = rows if targets is None else targets[numbers]
            if divides:
                self._engine.set("data_variance", [variance_of(outputs, shares)])
            if kind != "zeros":
                centers["output_center"] = center_of(kind, outputs, shares)
                if not config.pre_bias:
                    centers["input_center"] = center_of(kind, rows, shares)
        norms = {"decoder_norm": float(options["decoder_init_norm"]), "encoder_norm": options["encoder_init_norm"]}
        random = np.random.default_rng([seed, 2])
        self._engine.set_parameters(initialize_code(config, random, **norms, **centers))
