"""The convolutional autoencoder, and its sparse and winner-take-all kinds."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from fastsae.arrays import as_array
from fastsae.base import Array, Network
from fastsae.checks import check_integer
from fastsae.config import (
    Config,
    ConvConfig,
    ConvTransposeConfig,
    Layer,
    LayerConfig,
    ReshapeConfig,
    Shape,
    TrainingConfig,
)
from fastsae.engine import Engine
from fastsae.layered import LayeredAutoencoder
from fastsae.trainer import Callback
from fastsae.trainer_state import TrainerState


class ConvAutoencoder(LayeredAutoencoder):
    """An autoencoder of convolutions, whose decoder mirrors its encoder by transposed convolutions.

    Each convolution has zeros of width ``kernel // 2`` around its input, so that with an odd kernel its output is
    ``ceil(size / stride)`` high and wide; the decoder gives every size back. The maps of the last convolution are the
    code, or a dense layer behind it is (`n_hidden`); penalty and winners are the code's.

    ``winners="both"`` is CONV-WTA (Makhzani and Frey, 2015, "Winner-take-all autoencoders"): in training, a map keeps
    its largest activation alone, and that in the ``ceil(lifetime * rows)`` rows of the batch where it is largest. The
    filters of the last layer (`decoder_filters_`) then are the strokes that images are put together from. Inference
    gives all activations of the relu code, as in the paper.

    Parameters
    ----------
    channels : tuple of int, default (16, 32)
        Maps of each convolution of the encoder.
    kernel, stride : int or tuple of int
        Height and width of the filters, and the step from one window to the next; one for all or one for each layer.
    image_shape : (channels, height, width) or None
        What a row of X is, one channel after the other. One of the three may be -1: what remains, so that
        ``(1, 1, -1)`` is a signal. None takes it from an X of four dimensions, or takes rows for square images of one
        channel.
    n_hidden : int or None
        Units of a dense code behind the convolutions.
    activation, output_activation : {"sigmoid", "tanh", "relu", "softplus", "identity"}
        Of all hidden layers, and of the output. A sigmoid reaches (0, 1): scale X to it.
    penalty : {"none", "kl", "l1", "log"}
        Sparsity penalty of the code. A map is one unit, whose activation is its mean over the positions. ``kl`` needs
        a bounded activation. See :class:`fastsae.ConvConfig`.
    rho : float
        Target of the mean activation for ``kl``, in (0, 1).
    beta : float
        Weight of the penalty, >= 0.
    per_position : bool
        Each position of a map is a unit of its own to the penalty.
    winners : {"", "spatial", "lifetime", "both"}
        Winner-take-all in place of a penalty; needs relu. A dense code takes ``lifetime`` alone. The rows of a batch
        compete under ``lifetime`` and ``both``, and all of them must fit into 1 GiB of scratch: rows that are held
        out compete as one batch too.
    lifetime : float
        Share of the rows of a batch that a map or unit wins, in (0, 1].
    tied : bool
        The decoder's filters are the encoder's.
    weight_decay, weight_l1, rho_hat, rho_hat_decay, loss, loss_reduction, solver, learning_rate, momentum, beta1, \
beta2, epsilon, lr_schedule, lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma, \
max_grad_norm
        As of :class:`fastsae.SparseAutoencoder`.
    batch_size, max_epochs, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, init, dtype, precision
        As of :class:`fastsae.SparseAutoencoder`.
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm"} or None
        As of :class:`fastsae.SparseAutoencoder`: each pixel of each channel is a column with statistics of its own.
    device, random_state, checkpoint, checkpoint_every, callback, verbose
        As of :class:`fastsae.SparseAutoencoder`.

    Attributes
    ----------
    image_shape_ : tuple of int
        (channels, height, width) of a row.
    code_shape_ : tuple of int
        (channels, height, width) of a row's code, or (n_hidden,).
    filters_ : ndarray, shape (channels, in_channels, kernel, kernel)
        Of the first convolution.
    components_ : ndarray, shape (channels, in_channels * kernel * kernel)
        `filters_` as rows.
    intercept_ : ndarray, shape (channels,)
        b of the first convolution.
    decoder_filters_ : ndarray, shape (channels, in_channels, kernel, kernel)
        Of the last layer: what one unit of each map before it adds to the image.
    history_, n_iter_, n_features_in_
        As of :class:`fastsae.SparseAutoencoder`; `n_features_in_` is ``channels * height * width``.

    Notes
    -----
    X may have the shape (n_rows, n_features) or (n_rows, channels, height, width). `transform` gives two dimensions
    for both, as scikit-learn expects, a row being the maps of the code one after the other: ``H.reshape(-1,
    *code_shape_)`` are the maps. `reconstruct` gives the shape of its X, and `inverse_transform`, which takes codes of
    both forms, that of the X of `fit`. What is left on a GPU (:class:`fastsae.DeviceArray`) has two dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import ConvAutoencoder
    >>> X = np.random.default_rng(0).random((100, 1, 12, 12), dtype=np.float32)
    >>> cae = ConvAutoencoder(channels=(4, 8), max_epochs=2, random_state=0).fit(X)
    >>> cae.transform(X).shape, cae.code_shape_, cae.reconstruct(X).shape
    ((100, 72), (8, 3, 3), (100, 1, 12, 12))
    """

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32),
        *,
        kernel: int | tuple[int, ...] = ConvConfig.kernel,
        stride: int | tuple[int, ...] = 2,
        image_shape: tuple[int, int, int] | None = None,
        n_hidden: int | None = None,
        activation: str = ConvConfig.activation,
        output_activation: str = LayerConfig.activation,
        penalty: str = ConvConfig.penalty,
        rho: float = ConvConfig.rho,
        beta: float = ConvConfig.beta,
        per_position: bool = ConvConfig.per_position,
        winners: str = ConvConfig.winners,
        lifetime: float = ConvConfig.lifetime,
        weight_decay: float = Config.weight_decay,
        weight_l1: float = Config.weight_l1,
        rho_hat: str = Config.rho_hat,
        rho_hat_decay: float = Config.rho_hat_decay,
        loss: str = Config.loss,
        loss_reduction: str = Config.loss_reduction,
        tied: bool = Config.tied,
        solver: str = TrainingConfig.solver,
        learning_rate: float = Config.learning_rate,
        momentum: float = Config.momentum,
        beta1: float = Config.beta1,
        beta2: float = Config.beta2,
        epsilon: float = Config.epsilon,
        lr_schedule: str = Config.lr_schedule,
        lr_warm_up: int = Config.lr_warm_up,
        lr_start: float | None = Config.lr_start,
        lr_total_steps: int | None = Config.lr_total_steps,
        lr_decay_steps: int | None = Config.lr_decay_steps,
        lr_final: float = Config.lr_final,
        lr_step_size: int = Config.lr_step_size,
        lr_gamma: float = Config.lr_gamma,
        max_grad_norm: float | None = Config.max_grad_norm,
        batch_size: int | None = TrainingConfig.batch_size,
        max_epochs: int = TrainingConfig.max_epochs,
        shuffle: bool = TrainingConfig.shuffle,
        validation_fraction: float = TrainingConfig.validation_fraction,
        early_stopping: bool = TrainingConfig.early_stopping,
        n_iter_no_change: int = TrainingConfig.n_iter_no_change,
        tol: float = TrainingConfig.tol,
        init: str = TrainingConfig.init,
        scale: str | None = TrainingConfig.scale,
        dtype: str = Config.dtype,
        precision: str = Config.precision,
        device: str = "auto",
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        callback: Callback | None = None,
        verbose: bool = True,
    ) -> None:
        self._take(locals())

    # Inference

    def inverse_transform(self, H: Any, out: Any = None) -> Any:
        """Reconstructions of codes, in the shape of the X of `fit`.

        Parameters
        ----------
        H : array-like, shape (n_rows, n_code) or (n_rows, channels, height, width) of the code
        out : array, optional
            C-contiguous memory of the model's dtype to write to.
        """
        check_is_fitted(self)
        rows, shape = _as_rows("H", H)
        if shape is not None and shape != self._engine.config.shapes[self._code_layer]:
            raise ValueError(f"H: expected codes of shape {self.code_shape_}, got {shape}")
        return self._shaped(super().inverse_transform(rows, _rows_of(out)), out, self._takes_images)

    def reconstruct(self, X: Any, out: Any = None) -> Any:
        """``inverse_transform(transform(X))``, in the shape of X. Arrays as for `transform`."""
        return self._shaped(super().reconstruct(X, _rows_of(out)), out, _as_rows("X", X)[1] is not None)

    # Fitted attributes

    @property
    def code_shape_(self) -> tuple[int, ...]:
        """Shape of a row's code."""
        shape: tuple[int, ...] = self._fitted_engine("code_shape_").config.shapes[self._code_layer]
        return shape if self._n_convolutions == self._code_layer else shape[:1]

    @property
    def filters_(self) -> Array:
        """The first convolution's, shape (channels, in_channels, kernel, kernel)."""
        return self._filters("filters_", 1)

    @property
    def components_(self) -> Array:
        """`filters_` as rows, shape (channels, in_channels * kernel * kernel)."""
        filters = self._filters("components_", 1)
        return filters.reshape(len(filters), -1)

    @property
    def intercept_(self) -> Array:
        """Biases of the first convolution, shape (channels,)."""
        return self._fitted_engine("intercept_").get("b1")

    @property
    def decoder_filters_(self) -> Array:
        """The last layer's, shape (channels, in_channels, kernel, kernel)."""
        config = self._fitted_engine("decoder_filters_").config
        return self._filters("decoder_filters_", 1 if config.tied else len(config.layers))

    # Details

    @property
    def _code_layer(self) -> int:
        return int(self._engine.config.code_layer)

    @property
    def _n_convolutions(self) -> int:
        return sum(isinstance(layer, ConvConfig) for layer in self._engine.config.layers)

    def _filters(self, attribute: str, number: int) -> Array:
        engine = self._fitted_engine(attribute)
        layer = engine.config.layers[number - 1]
        assert isinstance(layer, ConvConfig | ConvTransposeConfig)
        kernel = layer.kernel
        weight = engine.get(f"W{number}")
        return np.ascontiguousarray(weight.reshape(len(weight), kernel, kernel, -1).transpose(0, 3, 1, 2))

    def _shaped(self, result: Any, out: Any, as_images: bool) -> Any:
        if out is not None:
            return out
        return result.reshape(-1, *self.image_shape_) if as_images and isinstance(result, np.ndarray) else result

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        if not isinstance(self.channels, (tuple, list)) or not self.channels:
            raise ValueError(f"channels: expected a tuple of at least one integer, got {self.channels!r}")
        count = len(self.channels)
        channels = _for_each("channels", self.channels, count)
        kernels, strides = _for_each("kernel", self.kernel, count), _for_each("stride", self.stride, count)
        penalty = {"penalty": self.penalty, "beta": self.beta, "rho": self.rho}
        penalty |= {"winners": self.winners, "lifetime": self.lifetime}
        shapes: list[Shape] = [self.image_shape_]
        encoder: list[Layer] = []
        for i, (units, kernel, stride) in enumerate(zip(channels, kernels, strides, strict=True)):
            is_code = i == count - 1 and self.n_hidden is None
            options = {**penalty, "per_position": self.per_position} if is_code else {}
            encoder.append(ConvConfig(units, kernel, stride, kernel // 2, self.activation, **options))
            shapes.append(encoder[-1].out_shape(shapes[-1]))
        decoder: list[Layer] = []
        if self.n_hidden is not None:
            check_integer("n_hidden", self.n_hidden, 1)
            if self.per_position:
                raise ValueError(f"per_position: a dense code has no positions, got {self.per_position!r}")
            width = math.prod(shapes[-1])
            encoder += [ReshapeConfig((width, 1, 1)), LayerConfig(int(self.n_hidden), self.activation, **penalty)]
            decoder += [LayerConfig(width, self.activation), ReshapeConfig(shapes[-1])]
        for i in range(count - 1, -1, -1):
            units, activation = shapes[i][0], self.output_activation if i == 0 else self.activation
            # Of the sizes that the convolution maps to the same one: that which it had.
            rest = tuple((size + 2 * (kernels[i] // 2) - kernels[i]) % strides[i] for size in shapes[i][1:])
            decoder.append(
                ConvTransposeConfig(units, kernels[i], strides[i], kernels[i] // 2, rest, activation)  # type: ignore[arg-type]
            )
        return *encoder, *decoder

    def _model_options(self, n_features: int) -> dict[str, Any]:
        return {"input_shape": self.image_shape_}

    @classmethod
    def _has_model(cls, config: Config) -> bool:
        kinds = [layer.kind for layer in config.layers]
        count = kinds.count("conv")
        middles: tuple[list[str], ...] = ([], ["reshape", "dense", "dense", "reshape"])
        wanted = [["conv"] * count + middle + ["conv_transpose"] * count for middle in middles]
        return count > 0 and kinds in wanted and config.input_shape is not None and 2 * config.code_layer == len(kinds)

    def _validate(self, X: Any, sample_weight: Any, reset: bool) -> tuple[Any, Any]:
        rows, shape = _as_rows("X", X)
        if not reset:
            self._check_image(shape)
        rows, sample_weight = super()._validate(rows, sample_weight, reset)
        if reset:
            self.image_shape_ = _image_shape(self.image_shape, rows.shape[1], shape)
            self._takes_images = shape is not None
        return rows, sample_weight

    def _check(self, X: Any) -> Any:
        rows, shape = _as_rows("X", X)
        self._check_image(shape)
        return super()._check(rows)

    def _check_image(self, shape: Shape | None) -> None:
        if shape is not None and shape != self.image_shape_:
            raise ValueError(f"X: expected images of shape {self.image_shape_}, as in fit, got {shape}")

    def _adopt(self, engine: Engine[Config], state: TrainerState) -> None:
        super()._adopt(engine, state)
        assert engine.config.input_shape is not None
        self.image_shape_ = engine.config.input_shape

    def _more_state(self) -> dict[str, Any]:
        return {"takes_images": self._takes_images}

    def _restore_more(self, state: dict[str, Any], parts: dict[str, Network[Any]]) -> None:
        if parts or set(state) != {"takes_images"} or not isinstance(state["takes_images"], bool):
            raise ValueError("its header entry 'more' does not say whether X had four dimensions")
        self._takes_images = state["takes_images"]


def _as_rows(name: str, X: Any) -> tuple[Any, Shape | None]:
    """Images as rows, and their shape; None for what has not four dimensions."""
    if isinstance(X, (list, tuple)):
        try:
            array = np.asarray(X)
        except ValueError:
            return X, None  # which is refused later, as all that is no array
        X = array if array.ndim == 4 else X
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) != 4:
        return X, None
    count, channels, height, width = (int(size) for size in shape)
    if not hasattr(X, "reshape"):
        X = as_array(name, X)
    return X.reshape(count, channels * height * width), (channels, height, width)


def _rows_of(out: Any) -> Any:
    images = isinstance(out, np.ndarray) and out.ndim == 4 and out.flags.c_contiguous
    return out.reshape(len(out), math.prod(out.shape[1:])) if images else out


def _image_shape(option: Any, n_features: int, seen: Shape | None) -> Shape:
    if option is None:
        if seen is not None:
            return seen
        side = math.isqrt(n_features)
        if side * side != n_features:
            raise ValueError(
                f"image_shape: rows of {n_features} numbers are no square images of one channel: "
                "pass image_shape=(channels, height, width), or X of shape (n_rows, channels, height, width)"
            )
        return 1, side, side
    if not isinstance(option, (tuple, list)) or len(option) != 3:
        raise ValueError(f"image_shape: expected (channels, height, width), one of which may be -1, got {option!r}")
    for size in option:
        if not isinstance(size, (int, np.integer)) or size != -1:
            check_integer("image_shape", size, 1)
    known = math.prod(int(size) for size in option if size != -1)
    channels, height, width = (n_features // known if size == -1 else int(size) for size in option)
    shape = channels, height, width
    if sum(size == -1 for size in option) > 1 or math.prod(shape) != n_features or 0 in shape:
        raise ValueError(f"image_shape: expected {n_features} numbers, the columns of X, got {tuple(option)}")
    if seen is not None and shape != seen:
        raise ValueError(f"image_shape: expected {seen}, the shape of the images of X, got {tuple(option)}")
    return shape


def _for_each(name: str, value: Any, count: int) -> list[int]:
    """`value`, or what it holds, for each of so many layers."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * count
    if len(values) != count:
        raise ValueError(f"{name}: expected one integer, or one for each of the {count} channels, got {value!r}")
    for number in values:
        check_integer(name, number, 1)
    return [int(number) for number in values]
