"""The generator of `synth.py` beside that of SAELens; run by an interpreter that has SAELens.

    peers/bin/python benchmarks/synth_check.py --size 2k --output benchmarks/results/synth-check.json

What is computed without chance must be the same: probabilities and their compensation, trees, the gradient steps that
make vectors nearly orthogonal, from the same start, and the scores of a dictionary. Then SAELens draws from a world
with our vectors, deviations and factors, and what both draw must differ by no more than chance: rates, coefficients,
pairs that fire together, rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from sae_lens.evals import ExplainedVarianceCalculator
from sae_lens.synthetic import (
    FoldedNormalMagnitudeConfig,
    HierarchyConfig,
    LinearMagnitudeConfig,
    LowRankCorrelationConfig,
    OrthogonalizationConfig,
    SyntheticModel,
    SyntheticModelConfig,
    ZipfianFiringProbabilityConfig,
)
from sae_lens.synthetic.evals import (
    ShrinkageCalculator,
    compute_classification_metrics,
    feature_uniqueness,
    mean_correlation_coefficient,
)
from sae_lens.synthetic.feature_dictionary import orthogonalize_embeddings
from scipy import sparse
from synth_metrics import Scores
from synth_world import BRANCHES, DEPTH, SIZES, World, nearly_orthogonal

#: Standard errors that the largest of thousands of differences may have.
MOST = 6.0


def theirs(world: World) -> SyntheticModel:
    """SAELens's model of the same size, with what we drew in place of what it drew."""
    size = world.size
    model = SyntheticModel(
        SyntheticModelConfig(
            num_features=size.n_features,
            hidden_dim=size.width,
            firing_probability=ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.4, min_prob=5e-4),
            hierarchy=HierarchyConfig(
                total_root_nodes=size.roots,
                branching_factor=BRANCHES,
                max_depth=DEPTH,
                mutually_exclusive_portion=1.0,
                compensate_probabilities=True,
                scale_children_by_parent=True,
            ),
            orthogonalization=OrthogonalizationConfig(num_steps=1, lr=3e-4),  # its vectors are replaced
            correlation=LowRankCorrelationConfig(rank=size.rank, correlation_scale=0.1),
            mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
            std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
            bias=0.5,
            seed=42,
        )
    )
    generator = model.activation_generator
    model.feature_dict.feature_vectors.data = torch.from_numpy(world.vectors)
    model.feature_dict.bias.data = torch.from_numpy(world.bias)
    generator.std_firing_magnitudes = torch.from_numpy(world.deviations)
    spread = np.sqrt(1 - (world.factor**2).sum(axis=1))
    generator.low_rank_correlation = (torch.from_numpy(world.factor), torch.from_numpy(spread))
    return model


class Moments:
    """Sums over rows of a code."""

    def __init__(self, world: World) -> None:
        n = world.size.n_features
        self.world, self.rows = world, 0
        self.fired, self.total, self.squares = np.zeros((3, n))
        self.pairs = np.zeros((64, 64))  # of the most frequent features
        self.active: list[np.ndarray] = []
        self.norms: list[np.ndarray] = []
        self.orphans = self.rivals = 0

    def add(self, code: sparse.csr_array, X: np.ndarray) -> None:
        size, fires = self.world.size, (code.toarray() > 0)
        self.rows += len(X)
        self.fired += fires.sum(axis=0)
        self.total += code.sum(axis=0)
        self.squares += (code**2).sum(axis=0)
        self.pairs += fires[:, :64].T.astype(float) @ fires[:, :64]
        self.active.append(fires.sum(axis=1))
        self.norms.append(np.linalg.norm(X, axis=1))
        children = fires[:, size.roots : size.in_trees].reshape(len(X), -1, BRANCHES)
        self.orphans += int((children.any(axis=2) & ~fires[:, : children.shape[1]]).sum())
        self.rivals += int((children.sum(axis=2) > 1).sum())


def largest(ours: np.ndarray, other: np.ndarray, error: np.ndarray) -> float:
    """The largest difference in standard errors of it."""
    return float(np.max(np.abs(ours - other) / np.maximum(error, 1e-12)))


def differences(ours: Moments, other: Moments) -> dict[str, float]:
    """Each in standard errors of the difference, as if rows were independent, which they are."""
    n, seen = ours.rows, np.minimum(ours.fired, other.fired) > 50

    def of_rates(a: np.ndarray, b: np.ndarray) -> float:
        p = (a + b) / (2 * n)
        return largest(a / n, b / n, np.sqrt(2 * p * (1 - p) / n) + 1e-9)

    def means(sums: Moments) -> tuple[np.ndarray, np.ndarray]:
        mean = sums.total[seen] / sums.fired[seen]
        return mean, np.maximum(sums.squares[seen] / sums.fired[seen] - mean**2, 0) / sums.fired[seen]

    def of_lists(a: list[np.ndarray], b: list[np.ndarray]) -> float:
        x, y = np.concatenate(a).astype(float), np.concatenate(b).astype(float)
        both = [(x, y), ((x - x.mean()) ** 2, (y - y.mean()) ** 2)]  # mean and variance
        return max(largest(u.mean(), v.mean(), np.sqrt(u.var() / len(u) + v.var() / len(v))) for u, v in both)

    (mean, error), (mean_other, error_other) = means(ours), means(other)
    return {
        "rates": of_rates(ours.fired, other.fired),
        "coefficients": largest(mean, mean_other, np.sqrt(error + error_other)),
        "pairs": of_rates(ours.pairs, other.pairs),
        "active_features": of_lists(ours.active, other.active),
        "norms": of_lists(ours.norms, other.norms),
    }


def scores(world: World) -> dict[str, float]:
    """How far our scores are from those of SAELens, on a dictionary that is half right."""
    random, n = np.random.default_rng(2), world.size.n_latents
    noise = random.standard_normal((n, world.size.width)).astype(np.float32)
    decoder = world.vectors[:n] + np.float32(0.7 / np.sqrt(world.size.width)) * noise
    truth = world.code(4096, random)
    X = world.rows(truth)
    code = np.maximum((X - world.bias) @ decoder.T - 2, 0)
    rebuilt = code @ decoder + world.bias
    sums = Scores(decoder, world.vectors)
    sums.add(code, rebuilt, X, truth)
    ours = sums.result()
    tensors = {"decoder": decoder, "vectors": world.vectors, "code": code, "rebuilt": rebuilt, "X": X}
    t = {name: torch.from_numpy(array) for name, array in tensors.items()}
    classes = compute_classification_metrics(t["code"], torch.from_numpy(truth.toarray()), t["decoder"], t["vectors"])
    variance, shrinkage = ExplainedVarianceCalculator(), ShrinkageCalculator()
    for sums_of in (variance, shrinkage):
        sums_of.add_batch(t["rebuilt"], t["X"])
    other = {
        "mcc": mean_correlation_coefficient(t["decoder"], t["vectors"]),
        "uniqueness": feature_uniqueness(t["decoder"], t["vectors"]),
        "precision": classes.precision,
        "recall": classes.recall,
        "f1": classes.f1_score,
        "explained_variance": variance.compute(),
        "shrinkage": shrinkage.compute(),
    }
    return {name: abs(ours[name] - value) for name, value in other.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="2k")
    parser.add_argument("--rows", type=int, default=204_800)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    world = World.make(SIZES[options.size])
    model = theirs(world)
    start = np.random.default_rng(0).standard_normal((300, 40), np.float32)
    vectors = orthogonalize_embeddings(torch.from_numpy(start), num_steps=100, lr=3e-4, chunk_size=128).numpy()
    exact = {
        "probabilities": np.abs(model.activation_generator.firing_probabilities.numpy() - world.probabilities).max(),
        "means": np.abs(model.activation_generator.mean_firing_magnitudes.numpy() - world.means).max(),
        "vectors": np.abs(nearly_orthogonal(start) - vectors).max(),
    }
    exact |= scores(world)
    ours, other = Moments(world), Moments(world)
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    for _ in range(options.rows // 1024):
        code = world.code(1024, random)
        ours.add(code, world.rows(code))
        X, acts = model.sample_with_features(1024)
        other.add(sparse.csr_array(acts.numpy()), X.detach().numpy())
    result: dict[str, Any] = {
        "sae_lens": sae_lens.__version__,
        "size": options.size,
        "rows": ours.rows,
        "largest_difference": {name: float(value) for name, value in exact.items()},
        "standard_errors": differences(ours, other),
        "l0": {"ours": ours.fired.sum() / ours.rows, "saelens": other.fired.sum() / other.rows},
        "children_without_parent": {"ours": ours.orphans, "saelens": other.orphans},
        "rivals_together": {"ours": ours.rivals, "saelens": other.rivals},
    }
    agree = max(exact.values()) < 1e-4 and max(result["standard_errors"].values()) < MOST
    result["agree"] = bool(agree and not ours.orphans and not ours.rivals)
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")
    raise SystemExit(not result["agree"])


if __name__ == "__main__":
    main()
