"""Figures of a fitted model: its filters, reconstructions, loss and mean activations.

Each function draws into `ax`, or into a new figure, and returns the axes; ``ax.figure`` is the figure. Matplotlib is
imported when a function is called.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae.checks import check_integer
from fastsae.metrics import mean_activation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

_BLUE, _ORANGE, _GREEN, _RED = "#3366aa", "#dd7722", "#44995a", "#bb3333"
# Part of the cost in history_: its label, colour and line style.
_CURVES = {
    "loss": ("cost J", "black", "-"),
    "validation_loss": ("cost J, held-out rows", "black", "--"),
    "reconstruction": ("reconstruction", _BLUE, "-"),
    "penalty": ("sparsity penalty", _ORANGE, "-"),
    "decay": ("weight decay", _GREEN, "-"),
}


def filters(
    model: Any,
    image_shape: tuple[int, ...] | None = None,
    *,
    n_filters: int | None = None,
    n_columns: int | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The filters as a mosaic of images, each with its own contrast.

    As in the UFLDL tutorial's ``display_network``, a tile shows a filter minus its mean, divided by its largest
    absolute value: mid grey is 0.

    Parameters
    ----------
    model : fitted model or array of shape (n_units, n_pixels) or (n_units, channels, height, width)
        A model shows its ``components_``; a :class:`fastsae.ConvAutoencoder` its ``decoder_filters_``.
    image_shape : (height, width) or (height, width, 3), optional
        How a row becomes an image; the last form is in colour. Filters of four dimensions need none: with 1 or 3
        channels each is an image, in grey or colour, and with others each channel of each filter is one.
    n_filters : int, optional
        Show only the first so many.
    n_columns : int, optional
        Tiles in a row; by default the mosaic is about square.
    title : str, optional
        Title of the axes.
    ax : matplotlib.axes.Axes, optional
        Where to draw.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `image_shape` does not fit the filters, or an option is out of range.
    ImportError
        If Matplotlib is not installed.
    """
    weights = model
    if hasattr(model, "fit"):
        weights = model.decoder_filters_ if image_shape is None and _is_of_images(model) else model.components_
    tiles = _tiles("model", weights, image_shape)
    shape = tiles.shape[1:]
    if n_filters is not None:
        check_integer("n_filters", n_filters, 1)
        tiles = tiles[: int(n_filters)]
    if n_columns is None:
        n_columns = math.ceil(math.sqrt(len(tiles) * shape[0] / shape[1]))
    check_integer("n_columns", n_columns, 1)
    n_columns = min(int(n_columns), len(tiles))
    mosaic = _mosaic(_contrast(tiles), n_columns)
    ax = _axes(ax, _size(mosaic, 6.0))
    _show(ax, mosaic, title)
    return ax


def reconstructions(
    model: Any,
    X: ArrayLike,
    image_shape: tuple[int, ...] | None = None,
    *,
    n_images: int = 12,
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The first rows of X above what the model makes of them; a pair shares its grey scale.

    Parameters
    ----------
    model : fitted model
        Has ``reconstruct``.
    X : array, shape (n_samples, n_pixels) or (n_samples, channels, height, width)
        Rows to reconstruct.
    image_shape : (height, width) or (height, width, 3), optional
        How a row becomes an image. A model of images needs none: with 1 or 3 channels a row is one, in grey or
        colour, and with others its channels are shown one above the other.
    n_images : int
        Number of pairs.
    title, ax
        As in `filters`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `image_shape` does not fit X, or `n_images` is not positive.
    ImportError
        If Matplotlib is not installed.
    """
    check_integer("n_images", n_images, 1)
    rows = np.asarray(X)
    if image_shape is None and _is_of_images(model):
        rows = rows[: int(n_images)]
        inputs, outputs = (
            _of_channels(_rows("X", part.reshape(len(part), -1)), model.image_shape_)
            for part in (rows, model.reconstruct(rows))
        )
    else:
        rows = _rows("X", X)[: int(n_images)]
        inputs, outputs = (_tiles("X", part, image_shape) for part in (rows, model.reconstruct(rows)))
    shape = inputs.shape[1:]
    low = inputs.min(axis=(1, 2, 3), keepdims=True)
    span = inputs.max(axis=(1, 2, 3), keepdims=True) - low
    span[span == 0] = 1.0
    pairs = np.clip(np.concatenate([(inputs - low) / span, (outputs - low) / span]), 0.0, 1.0)
    mosaic = _mosaic(pairs, len(inputs), background=1.0)
    ax = _axes(ax, (max(4.0, 0.75 * len(inputs)), 2.2))
    _show(ax, mosaic, title)
    ax.set_yticks([shape[0] / 2, shape[0] * 3 / 2 + 1], ["input", "output"])
    ax.tick_params(axis="y", length=0)
    return ax


def loss(model: Any, *, parts: bool = True, title: str | None = None, ax: Axes | None = None) -> Axes:
    """The cost of each epoch and, with `parts`, what it is made of, on a logarithmic scale.

    Parameters
    ----------
    model : fitted model
        Has ``history_``.
    parts : bool
        Draw reconstruction, penalty and decay beside the cost.
    title, ax
        As in `filters`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If the history holds no epoch.
    ImportError
        If Matplotlib is not installed.
    """
    history = model.history_
    if not history.get("loss"):
        raise ValueError("model: expected a history of at least one epoch, got none")
    ax = _axes(ax, (6.0, 4.0))
    epochs = history.get("epoch") or range(1, len(history["loss"]) + 1)
    marker = "o" if len(history["loss"]) == 1 else None
    for name, (label, colour, style) in _CURVES.items():
        values = np.asarray(history.get(name, ()), dtype=np.float64)
        if not (values > 0).any() or not (parts or "loss" in name):
            continue
        width = 2.0 if "loss" in name else 1.4
        ax.plot(epochs, values, color=colour, linestyle=style, linewidth=width, marker=marker, label=label)
    ax.set_yscale("log")
    _finish(ax, "iteration" if getattr(model, "solver", "") == "lbfgs" else "epoch", "cost per row", title)
    ax.legend(frameon=False)
    return ax


def rho_hat(model: Any, X: ArrayLike, *, bins: int = 30, title: str | None = None, ax: Axes | None = None) -> Axes:
    """Histogram of the units' mean activations over X, and the target rho if the model has one.

    Under the KL penalty a tanh unit's mean is mapped to (0, 1), where rho is. Where the penalty takes a map for one
    unit, so does the histogram.

    Parameters
    ----------
    model : fitted model
        Has ``transform``; a model with ``penalty="kl"`` also has ``rho``.
    X : array, shape (n_samples, n_features)
        Rows to average over.
    bins : int
        Number of bars.
    title, ax
        As in `filters`.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `bins` is not positive or X does not fit the model.
    ImportError
        If Matplotlib is not installed.
    """
    check_integer("bins", bins, 1)
    code = model.transform(X)
    if _is_of_images(model) and not model.per_position:
        code = np.asarray(code).reshape(len(code), model.code_shape_[0], -1).mean(axis=2)
    means = mean_activation(code)
    rho = getattr(model, "rho", None) if getattr(model, "penalty", None) == "kl" else None
    if rho is not None and getattr(model, "activation", None) == "tanh":
        means = (means + 1) / 2
    ax = _axes(ax, (6.0, 4.0))
    ax.hist(means, bins=_bins(means, rho, int(bins)).tolist(), color=_BLUE, edgecolor="white", linewidth=0.5)
    ax.axvline(float(means.mean()), color="black", linewidth=1.4, label=f"mean of units, {means.mean():.3g}")
    if rho is not None:
        ax.axvline(rho, color=_RED, linestyle="--", linewidth=1.4, label=f"target rho, {rho:.3g}")
    _finish(ax, "mean activation", "units", title)
    ax.legend(frameon=False)
    return ax


def _bins(means: Array, rho: float | None, count: int) -> Array:
    """Edges that hold every mean; a narrow histogram is widened so that rho is no speck at its side."""
    low, high = float(means.min()), float(means.max())
    if rho is not None:
        low, high = min(low, 0.5 * rho), max(high, 1.5 * rho)
    scale = max(abs(low), abs(high)) or 1.0
    if high - low < 1e-6 * scale:
        low, high = low - 0.5 * scale, high + 0.5 * scale
    return np.linspace(low, high, count + 1)


def _contrast(tiles: Array) -> Array:
    """Each tile about its own mean, its largest deviation at 0 or 1."""
    centred = tiles - tiles.mean(axis=(1, 2, 3), keepdims=True)
    largest = np.abs(centred).max(axis=(1, 2, 3), keepdims=True)
    largest[largest == 0] = 1.0
    scaled: Array = 0.5 + 0.5 * centred / largest
    return scaled


def _mosaic(tiles: Array, n_columns: int, background: float = 0.0) -> Array:
    """Tiles of shape (n, height, width, channels) row by row, one pixel apart; a last gap is left empty."""
    count, height, width, channels = tiles.shape
    n_rows = -(-count // n_columns)
    image = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1, channels), background)
    for i, tile in enumerate(tiles):
        top, left = i // n_columns * (height + 1), i % n_columns * (width + 1)
        image[top : top + height, left : left + width] = tile
    empty = count % n_columns
    if empty:
        image[-height:, empty * (width + 1) :] = 1.0
    return image


def _image_shape(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, (tuple, list)) or len(value) not in (2, 3):
        raise ValueError(f"image_shape: expected (height, width) or (height, width, 3), got {value!r}")
    for side in value:
        check_integer("image_shape", side, 1)
    if len(value) == 3 and value[2] not in (1, 3):
        raise ValueError(f"image_shape: expected 1 or 3 channels, got {value[2]}")
    return int(value[0]), int(value[1]), int(value[2]) if len(value) == 3 else 1


def _is_of_images(model: Any) -> bool:
    return hasattr(model, "image_shape_")


def _tiles(name: str, value: Any, image_shape: tuple[int, ...] | None) -> Array:
    """Images of shape (n, height, width, channels) from rows, or from what has four dimensions."""
    array = np.asarray(value)
    if image_shape is not None or array.ndim != 4:
        if image_shape is None:
            raise ValueError("image_shape: expected (height, width) or (height, width, 3) for rows, got None")
        return _images(name, value, _image_shape(image_shape))
    if 0 in array.shape or array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected images of real numbers, got {array.dtype} of shape {array.shape}")
    _, channels, height, width = array.shape
    if channels not in (1, 3):
        array = array.reshape(-1, 1, height, width)
    return np.moveaxis(array, 1, 3).astype(np.float64)


def _of_channels(rows: NDArray[Any], shape: tuple[int, int, int]) -> Array:
    """Rows with one channel after the other as images: in grey or colour, or the channels one above the other."""
    channels, height, width = shape
    if channels not in (1, 3):
        channels, height = 1, channels * height
    return _tiles("X", rows.reshape(len(rows), channels, height, width), None)


def _rows(name: str, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 2 or not len(array) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name}: expected a 2-D array of real numbers with at least one row, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array


def _images(name: str, value: Any, shape: tuple[int, int, int]) -> Array:
    rows = _rows(name, value)
    if rows.shape[1] != math.prod(shape):
        raise ValueError(
            f"image_shape: expected height * width * channels = {rows.shape[1]}, the columns of {name}, got {shape}"
        )
    return rows.astype(np.float64).reshape(-1, *shape)


def _size(mosaic: Array, width: float) -> tuple[float, float]:
    return width, min(10.0, max(1.0, width * mosaic.shape[0] / mosaic.shape[1]))


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("fastsae.plots needs Matplotlib: pip install 'fastsae[plots]'") from error
    new: Axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    return new


def _show(ax: Axes, mosaic: Array, title: str | None) -> None:
    if mosaic.shape[2] == 1:
        ax.imshow(mosaic[:, :, 0], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    else:
        ax.imshow(mosaic, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if title:
        ax.set_title(title)


def _finish(ax: Axes, x_label: str, y_label: str, title: str | None) -> None:
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    ax.spines[["top", "right"]].set_visible(False)
    if title:
        ax.set_title(title)
