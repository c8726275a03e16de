"""The demonstration behind ``fastsae demo``: two small experiments on data that ship with scikit-learn.

The photographs repeat the experiment of Ng's CS294A lecture notes (2011): a KL sparse autoencoder that sees whitened
patches of natural images learns localised, oriented edges. The digits ask what such features are good for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from fastsae import _core, metrics, plots
from fastsae.estimators import SparseAutoencoder

Array = NDArray[np.float64]

PATCH = 12
# Patches that errors and figures are taken from: not trained on, but of the same photographs, so they may overlap.
_FRESH = 2000
# Pixels at the edge of a photograph where whitening wraps around.
_MARGIN = 8


@dataclass(frozen=True)
class Budget:
    """How much a run of the demonstration computes."""

    n_patches: int = 16000
    patch_units: int = 144
    digit_units: int = 196
    patch_epochs: int = 100
    digit_epochs: int = 200


FULL = Budget()
SHORT = Budget(n_patches=6000, patch_units=64, patch_epochs=80, digit_epochs=50)


def run(output: Path, *, short: bool = False, seed: int = 0, verbose: bool = True) -> dict[str, float]:
    """Train on both data sets, print what was learned and write the figures.

    Parameters
    ----------
    output : Path
        Folder of the figures; it is made if it does not exist.
    short : bool
        Compute less: enough to see that all parts work, too little for clean filters.
    seed : int
        Of the patches, the first weights, the row orders and the split of the digits.
    verbose : bool
        Show progress bars.

    Returns
    -------
    dict
        The printed numbers by name.

    Raises
    ------
    ImportError
        If Matplotlib is not installed.
    OSError
        If the figures cannot be written.
    """
    _require_matplotlib()
    output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    budget = SHORT if short else FULL
    print(f"fastsae demo on {_core.num_threads()} thread(s), {_core.isa()}, {_core.blas()}\n")
    results = photographs(output, budget, seed, verbose)
    results |= digits(output, budget, seed, verbose)
    results["seconds"] = time.perf_counter() - started
    print(f"\nFigures in {output.resolve()}\n{results['seconds']:.0f} s in all")
    return results


def photographs(output: Path, budget: Budget, seed: int, verbose: bool) -> dict[str, float]:
    """Train on patches of the photographs and measure how many filters are Gabor functions."""
    shape = (PATCH, PATCH)
    random = np.random.default_rng(seed)
    patches = scale_patches(draw_patches(load_photographs(), budget.n_patches + _FRESH, PATCH, random))
    X, fresh = patches[_FRESH:], patches[:_FRESH]
    print(f"Photographs: {len(X)} whitened {PATCH} x {PATCH} patches, {budget.patch_units} hidden units")
    model = SparseAutoencoder(
        budget.patch_units,
        rho=0.02,
        beta=1.0,
        weight_decay=1e-4,
        learning_rate=0.02,
        max_epochs=budget.patch_epochs,
        random_state=seed,
        verbose=verbose,
    )
    untrained = SparseAutoencoder(budget.patch_units, max_epochs=0, random_state=seed, verbose=False).fit(X)
    with _timed("training"):
        model.fit(X)
    H = model.transform(fresh)
    live = metrics.live_units(H)
    results = {
        "photographs_error": _relative_error(model, fresh),
        "photographs_mean_activation": float(H.mean(dtype=np.float64)),
        "photographs_live": float(live.mean()),
        "photographs_gabor_share": metrics.gabor_share(model.components_, shape, live=live),
        "random_gabor_share": metrics.gabor_share(untrained.components_, shape),
    }
    _print_common(results, "photographs", "fresh patches", model.rho)
    _line("live units", f"{live.sum()} of {len(live)}")
    _line("Gabor-like", f"{results['photographs_gabor_share']:.0%} of the live units fit a Gabor with R^2 > 0.5")
    _line("", f"{results['random_gabor_share']:.0%} before training (random weights)")
    _write_figures(model, fresh, shape, output, "photographs")
    return results


def digits(output: Path, budget: Budget, seed: int, verbose: bool) -> dict[str, float]:
    """Train on half of the digits and compare classifiers on pixels and on features with the other half."""
    X, X_test, y, y_test = _split_digits(seed)
    print(f"\nDigits: {len(X)} images of 8 x 8 pixels, {len(X_test)} to test on, {budget.digit_units} hidden units")
    model = SparseAutoencoder(
        budget.digit_units,
        rho=0.1,
        beta=0.1,
        weight_decay=1e-4,
        learning_rate=0.01,
        batch_size=64,
        max_epochs=budget.digit_epochs,
        random_state=seed,
        verbose=verbose,
    )
    with _timed("training"):
        model.fit(X)
    results = {
        "digits_error": _relative_error(model, X_test),
        "digits_mean_activation": float(model.transform(X_test).mean(dtype=np.float64)),
        "digits_accuracy_pixels": _probe(X, y, X_test, y_test),
        "digits_accuracy_features": _probe(model.transform(X), y, model.transform(X_test), y_test),
    }
    _print_common(results, "digits", "held-out digits", model.rho)
    _line("accuracy", f"{results['digits_accuracy_features']:.1%} by logistic regression on the learned features")
    _line("", f"{results['digits_accuracy_pixels']:.1%} on the pixels")
    _write_figures(model, X_test, (8, 8), output, "digits")
    return results


def load_photographs() -> list[Array]:
    """scikit-learn's two sample photographs, in grey and whitened."""
    from sklearn.datasets import load_sample_images

    # Luma weights of ITU-R BT.601.
    return [whiten(image @ np.array([0.299, 0.587, 0.114])) for image in load_sample_images().images]


def whiten(image: ArrayLike, cutoff: float = 0.4) -> Array:
    """Flatten the 1/f amplitude spectrum of a natural image and remove the highest frequencies.

    The amplitude at frequency f is multiplied by ``f exp(-(f / cutoff)^4)`` (Olshausen and Field, "Sparse coding with
    an overcomplete basis set", Vision Research 37, 1997).

    Parameters
    ----------
    image : array, shape (height, width)
        Grey values.
    cutoff : float
        In cycles per pixel; the paper's 200 cycles per picture of 512 pixels are 0.39.

    Returns
    -------
    array, shape (height, width)
        With standard deviation 1 (0 for a constant image).
    """
    grey = np.asarray(image, dtype=np.float64)
    f = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1]))
    white: Array = np.fft.irfft2(np.fft.rfft2(grey - grey.mean()) * f * np.exp(-((f / cutoff) ** 4)), s=grey.shape)
    return white / (white.std() or 1.0)


def draw_patches(images: list[Array], count: int, side: int, random: np.random.Generator) -> Array:
    """Square patches at random places, shape (count, side * side), in random order.

    Twice as many are drawn and the half with less contrast is passed over: much of a photograph is sky or out of
    focus and shows nothing but noise once it is whitened.
    """
    drawn = []
    for image in images:
        windows = sliding_window_view(image[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], (side, side))
        places = random.integers(0, windows.shape[:2], size=(-(-2 * count // len(images)), 2))
        drawn.append(windows[places[:, 0], places[:, 1]].reshape(-1, side * side))
    patches = np.concatenate(drawn)
    kept: Array = patches[random.permutation(np.argsort(patches.var(axis=1))[-count:])]
    return kept


def scale_patches(patches: Array) -> NDArray[np.float32]:
    """CS294A's scaling: each patch minus its mean, cut off at 3 standard deviations of all, mapped to [0.1, 0.9]."""
    centred = patches - patches.mean(axis=1, keepdims=True)
    limit = 3 * centred.std()
    scaled: NDArray[np.float32] = (0.5 + 0.4 * np.clip(centred / limit, -1, 1)).astype(np.float32)
    return scaled


def _split_digits(seed: int) -> list[Any]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    halves: list[Any] = train_test_split((X / 16).astype(np.float32), y, test_size=0.5, stratify=y, random_state=seed)
    return halves


def _probe(X: Any, y: Any, X_test: Any, y_test: Any) -> float:
    """Test accuracy of logistic regression; C = 1 is the best of 0.01 to 10 on pixels by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    return float(classifier.fit(X, y).score(X_test, y_test))


def _relative_error(model: SparseAutoencoder, X: Any) -> float:
    """Squared error of the reconstruction over that of the mean row."""
    difference = np.asarray(X, dtype=np.float64) - model.reconstruct(X)
    return float((difference**2).mean() / np.asarray(X, dtype=np.float64).var(axis=0).mean())


def _print_common(results: dict[str, float], name: str, rows: str, rho: float) -> None:
    _line("error", f"{results[name + '_error']:.1%} of the variance of {rows} is not reconstructed")
    _line("mean activation", f"{results[name + '_mean_activation']:.3f}, rho = {rho}")


def _line(label: str, text: str) -> None:
    print(f"  {label:<17}{text}")


@contextmanager
def _timed(label: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    _line(label, f"{time.perf_counter() - started:.1f} s")


def _require_matplotlib() -> None:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError("fastsae demo draws with Matplotlib: pip install 'fastsae[plots]'") from error


def _write_figures(model: SparseAutoencoder, X: Any, shape: tuple[int, int], output: Path, name: str) -> None:
    title = name.capitalize()
    figures = {
        "filters": ((6.0, 6.3), lambda ax: plots.filters(model, shape, title=f"{title}: learned filters", ax=ax)),
        "reconstructions": (
            (9.0, 2.0),
            lambda ax: plots.reconstructions(model, X, shape, title=f"{title}: inputs and reconstructions", ax=ax),
        ),
        "loss": ((6.0, 4.0), lambda ax: plots.loss(model, title=f"{title}: training", ax=ax)),
        "rho_hat": ((6.0, 4.0), lambda ax: plots.rho_hat(model, X, title=f"{title}: mean activations", ax=ax)),
    }
    for kind, (size, draw) in figures.items():
        _save(output / f"{name}-{kind}.png", size, draw)


def _save(path: Path, size: tuple[float, float], draw: Any) -> None:
    """Draw without pyplot, so that no window system is asked for."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=150)
