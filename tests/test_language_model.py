"""The example on a language model's activations: its model, its hooks, and the whole of it on little text."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("language_model")
    sys.path.remove(str(FOLDER))


@pytest.fixture
def model(example: Any) -> Any:
    torch.manual_seed(0)
    return example.Transformer(n_words=30, length=8, width=16, heads=2, blocks=3)


@pytest.fixture
def rows() -> Any:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 30, (70, 8)))


def test_words_keep_the_text(example: Any) -> None:
    text = "A  set, e.g. {1, x_2}:\n\n    no order."
    assert example.words_of(text) == [
        "A", " set", ",", " e", ".", "g", ".", " {", "1", ",", " x_2", "}", ":", "\n\n", " no", " order", ".",
    ]  # fmt: skip
    assert len(example.words_of(example.documentation(2))) > 50_000


def test_words_see_only_earlier_ones(model: Any, rows: Any) -> None:
    changed = rows.clone()
    changed[:, 5] = (rows[:, 5] + 1) % 30
    before, after = model(rows), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4


def test_hooks_collect_and_replace(example: Any, model: Any, rows: Any) -> None:
    class Shifted:
        def reconstruct(self, X: Any) -> np.ndarray:
            return X.numpy() + np.float32(0.5)

    def loss_of(x: Any) -> float:
        """From the residual stream behind block 1, of rows that go through at once."""
        logits = model.norm(model.blocks[2](x)) @ model.words.weight.T
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), once[:, 1:].flatten()))

    with torch.no_grad():
        x = model.blocks[1](model.blocks[0](model.words(rows) + model.places.weight))
        torch.testing.assert_close(example.residuals(model, 1, rows), x.flatten(0, 1))
        parts = [model.loss(part).item() for part in (rows[:64], rows[64:])]
        assert example.loss_with(model, 1, rows, None) == pytest.approx(np.mean(parts))
        once, x = rows[:64], x[:64, :-1]
        for options, streamed in (((None,), x), ((Shifted(),), x + 0.5), ((None, True), 0 * x)):
            assert example.loss_with(model, 1, once, *options) == pytest.approx(loss_of(streamed), rel=1e-5)
    assert not model.blocks[1]._forward_hooks


def test_it_learns_and_shows_contexts(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--files 2 --vocabulary 300 --length 16 --steps 30 --latents 256 --k 8 --epochs 2 --shown 3"
    figures = example.main(options.split())
    assert figures["loss"] < 5.7  # log 300
    assert 0.3 < figures["explained_variance"] < 1
    assert figures["loss"] - 0.05 < figures["loss_reconstructed"] < figures["loss_without"]
    text = capsys.readouterr().out
    assert text.count("latent ") == 3
    for line in text.splitlines():
        if line.startswith("latent"):
            assert "makes likelier: '" in line
    assert text.count(" [") >= 15
