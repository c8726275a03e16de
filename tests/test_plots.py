"""Figures: that they show what they should, and what bad input does."""

import subprocess
import sys

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402

import fastsae  # noqa: E402
from fastsae import SparseAutoencoder, plots  # noqa: E402


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(0.1, 0.9, (60, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def model(X):
    options = {"max_epochs": 3, "validation_fraction": 0.2, "random_state": 0, "verbose": False}
    return SparseAutoencoder(10, **options).fit(X)


def test_filters_are_contrast_normalised_tiles(model):
    ax = plots.filters(model, (4, 6), n_columns=4, title="filters")
    mosaic = ax.images[0].get_array()
    assert mosaic.shape == (3 * 5 - 1, 4 * 7 - 1)
    for i, weights in enumerate(model.components_.astype(np.float64)):
        top, left = i // 4 * 5, i % 4 * 7
        centred = weights - weights.mean()
        wanted = 0.5 + 0.5 * centred / np.abs(centred).max()
        np.testing.assert_allclose(mosaic[top : top + 4, left : left + 6], wanted.reshape(4, 6))
    assert (mosaic[4] == 0).all()
    assert (mosaic[-4:, 14:] == 1).all()
    assert ax.get_title() == "filters"
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("count", "shape"), [(1, (1, 1)), (2, (3, 5)), (9, (4, 4)), (7, (2, 2, 3))])
def test_filters_of_an_array(count, shape):
    rows = np.random.default_rng(0).standard_normal((count, int(np.prod(shape))))
    ax = plots.filters(rows, shape)
    assert ax.images[0].get_array().ndim == len(shape)
    ax.figure.canvas.draw()


@pytest.mark.parametrize(
    "relative",
    [
        fastsae.DeepAutoencoder(hidden=(10, 4)),
        fastsae.DenoisingAutoencoder(10),
        fastsae.VariationalAutoencoder(3, hidden=(10,)),
        fastsae.ContractiveAutoencoder(10),
    ],
    ids=lambda model: type(model).__name__,
)
def test_figures_of_the_relatives(relative, X):
    relative.set_params(max_epochs=2, random_state=0, verbose=False).fit(X)
    assert plots.filters(relative, (4, 6), n_columns=4).images[0].get_array().shape == (3 * 5 - 1, 4 * 7 - 1)
    plots.reconstructions(relative, X[:3], (4, 6)).figure.canvas.draw()
    assert len(plots.loss(relative).lines[0].get_xdata()) == 2


def test_filters_constant_and_first(model):
    assert (plots.filters(np.ones((1, 4)), (2, 2)).images[0].get_array() == 0.5).all()
    assert plots.filters(model, (4, 6), n_filters=2, n_columns=5).images[0].get_array().shape == (4, 13)


def test_reconstructions_pair_input_and_output(model, X):
    ax = plots.reconstructions(model, X, (4, 6), n_images=5)
    mosaic = ax.images[0].get_array()
    assert mosaic.shape == (9, 5 * 7 - 1)
    low, high = X[1].min(), X[1].max()
    scaled = (model.reconstruct(X)[1] - low) / (high - low)
    np.testing.assert_allclose(mosaic[5:, 7:13], np.clip(scaled, 0, 1).reshape(4, 6), atol=1e-5)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["input", "output"]
    assert plots.reconstructions(model, X[:2], (4, 6)).images[0].get_array().shape == (9, 13)


def test_loss_draws_the_history(model):
    ax = plots.loss(model)
    labels = [line.get_label() for line in ax.lines]
    assert labels == ["cost J", "cost J, held-out rows", "reconstruction", "sparsity penalty", "weight decay"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), model.history_["loss"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "cost per row")
    assert len(plots.loss(model, parts=False).lines) == 2


def test_loss_of_another_solver(X):
    model = SparseAutoencoder(4, penalty="none", weight_decay=0.0, solver="lbfgs", max_epochs=3, verbose=False)
    ax = plots.loss(model.fit(X))
    assert [line.get_label() for line in ax.lines] == ["cost J", "reconstruction"]
    assert ax.get_xlabel() == "iteration"
    ax.figure.canvas.draw()


def test_rho_hat_counts_every_unit(model, X):
    ax = plots.rho_hat(model, X, bins=7)
    assert len(ax.patches) == 7
    assert sum(bar.get_height() for bar in ax.patches) == 10
    mean, rho = (line.get_xdata()[0] for line in ax.lines)
    assert mean == pytest.approx(model.transform(X).mean(), rel=1e-5)
    assert rho == model.rho


@pytest.mark.parametrize(
    "options", [{"activation": "tanh"}, {"activation": "relu", "penalty": "l1"}, {"penalty": "none"}]
)
def test_rho_hat_of_any_model(options, X):
    model = SparseAutoencoder(6, max_epochs=2, random_state=0, verbose=False, **options).fit(X)
    ax = plots.rho_hat(model, X)
    assert sum(bar.get_height() for bar in ax.patches) == 6
    assert len(ax.lines) == (2 if options.get("penalty", "kl") == "kl" else 1)
    expected = model.transform(X).mean()
    if options.get("activation") == "tanh":
        expected = (expected + 1) / 2
    assert ax.lines[0].get_xdata()[0] == pytest.approx(expected, rel=1e-5)


def test_axes_are_used_and_no_other_figure_made(model, X):
    axes = pyplot.figure().subplots(2, 2).ravel()
    drawn = [
        plots.filters(model, (4, 6), ax=axes[0]),
        plots.reconstructions(model, X, (4, 6), ax=axes[1]),
        plots.loss(model, ax=axes[2]),
        plots.rho_hat(model, X, ax=axes[3]),
    ]
    assert all(got is given for got, given in zip(drawn, axes, strict=True))
    assert len(pyplot.get_fignums()) == 1


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda model, X: plots.filters(model, (4, 5)), "image_shape"),
        (lambda model, X: plots.filters(model, 24), "image_shape"),
        (lambda model, X: plots.filters(model, (4, 0)), "image_shape"),
        (lambda model, X: plots.filters(model, (3, 4, 2)), "image_shape"),
        (lambda model, X: plots.filters(model, (4, 6), n_filters=0), "n_filters"),
        (lambda model, X: plots.filters(model, (4, 6), n_columns=0), "n_columns"),
        (lambda model, X: plots.filters(np.zeros(24), (4, 6)), "model"),
        (lambda model, X: plots.filters("text", (4, 6)), "model"),
        (lambda model, X: plots.reconstructions(model, X[:0], (4, 6)), "X"),
        (lambda model, X: plots.reconstructions(model, 1.0, (4, 6)), "X"),
        (lambda model, X: plots.reconstructions(model, X, (4, 6), n_images=0), "n_images"),
        (lambda model, X: plots.rho_hat(model, X, bins=0), "bins"),
        (lambda model, X: plots.loss(SparseAutoencoder(3, max_epochs=0, verbose=False).fit(X)), "model"),
    ],
)
def test_bad_input_is_named(call, name, model, X):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call(model, X)
    assert not pyplot.get_fignums()


def test_missing_matplotlib_says_what_to_install():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "import numpy as np, fastsae\n"
        "fastsae.plots.filters(np.ones((2, 4)), (2, 2))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: fastsae.plots needs Matplotlib: pip install 'fastsae[plots]'" in result.stderr
