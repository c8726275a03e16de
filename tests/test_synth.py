"""The synthetic benchmark: its generator against a plain one, its scores against their definitions, and its command."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse, special

FOLDER = Path(__file__).parents[1] / "benchmarks"
#: Standard errors that the largest of a few hundred differences may have.
MOST = 5.5


@pytest.fixture(scope="module")
def synth() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("synth_world")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def metrics(synth: Any) -> Any:
    return importlib.import_module("synth_metrics")


@pytest.fixture(scope="module")
def world(synth: Any) -> Any:
    return synth.World.make(synth.SIZES["tiny"])


def children(world: Any, feature: int) -> range:
    """Trees are numbered level by level."""
    size = world.size
    first = size.roots + 4 * feature
    return range(first, first + 4) if first < size.in_trees else range(0)


def test_probabilities_follow_zipfs_law(synth: Any) -> None:
    p = synth.zipf(16384)
    assert p[0] == pytest.approx(0.4)
    assert p[-1] == pytest.approx(5e-4)
    # What was added to every one is gone in differences, which fall as those of rank^-0.5.
    assert (p[0] - p[3]) / (p[3] - p[15]) == pytest.approx((1 - 1 / 2) / (1 / 2 - 1 / 4))


def test_probabilities_are_compensated(synth: Any, world: Any) -> None:
    """A child's rate beside its parent is p / p_parent, times 1 + what its rivals have together."""
    p, found = world.rates, world.probabilities
    np.testing.assert_array_equal(found[: world.size.roots], p[: world.size.roots])
    np.testing.assert_array_equal(found[world.size.in_trees :], p[world.size.in_trees :])
    seen = 0
    for parent in range(world.size.in_trees):
        for child in children(world, parent):
            rivals = sum(p[other] for other in children(world, parent) if other != child)
            assert found[child] == pytest.approx(min(1, p[child] / p[parent] * (1 + rivals / p[parent])))
            seen += 1
    assert seen == world.size.in_trees - world.size.roots
    assert (found == 1).any()


def test_vectors_become_nearly_orthogonal(synth: Any) -> None:
    def cost(f: np.ndarray) -> float:
        products = f @ f.T
        own = np.diag(products)
        return float((products**2).sum() - (own**2).sum() + len(f) * ((own - 1) ** 2).sum())

    start = np.random.default_rng(0).standard_normal((30, 12))
    unit = start / np.linalg.norm(start, axis=1, keepdims=True)
    end = synth.nearly_orthogonal(start, chunk=7)
    np.testing.assert_allclose(np.linalg.norm(end, axis=1), 1)
    assert cost(end) < 0.97 * cost(unit)
    np.testing.assert_allclose(end, synth.nearly_orthogonal(start, chunk=30))
    # Adam's first step goes along the sign of the gradient.
    rate, slopes = 1e-4, np.empty_like(unit)
    for i, j in np.ndindex(unit.shape):
        step = np.zeros_like(unit)
        step[i, j] = 1e-5
        slopes[i, j] = (cost(unit + step) - cost(unit - step)) / 2e-5
    moved = unit - rate * np.sign(slopes)
    np.testing.assert_allclose(
        synth.nearly_orthogonal(start, steps=1, rate=rate), moved / np.linalg.norm(moved, axis=1, keepdims=True)
    )


def test_a_world_is_what_was_described(world: Any, synth: Any, tmp_path: Path) -> None:
    size = world.size
    assert np.linalg.norm(world.bias) == pytest.approx(0.5)
    assert (world.means[0], world.means[-1]) == (5, 4)
    assert np.diff(world.means).max() < 0
    assert world.deviations.min() >= 0
    assert (world.factor**2).sum(axis=1).max() <= 0.99 + 1e-6
    assert world.factor.std() == pytest.approx(0.1, rel=0.1)
    assert size.prefixes[-1] == size.n_latents
    for named in synth.SIZES.values():  # the shares of the published one
        assert named.in_trees < named.n_features
        assert named.in_trees / named.n_features == pytest.approx(85 / 128)
        assert 4 * named.n_latents == named.n_features
    world.save(tmp_path / "world.npz")
    read = synth.World.load(tmp_path / "world.npz")
    assert read.size == size
    np.testing.assert_array_equal(read.vectors, world.vectors)
    same = (each.code(9, np.random.default_rng(1)).data for each in (read, world))
    np.testing.assert_array_equal(*same)


def plainly(world: Any, rows: int, random: np.random.Generator) -> np.ndarray:
    """[rows x n] all numbers drawn for all features, and then what trees forbid set to 0, level by level."""
    size, n = world.size, world.size.n_features
    spread = np.sqrt(1 - (world.factor**2).sum(axis=1))
    normal = random.standard_normal((rows, size.rank)) @ world.factor.T + random.standard_normal((rows, n)) * spread
    fires = normal > -special.ndtri(world.probabilities)
    code = np.maximum(world.means + world.deviations * random.standard_normal((rows, n)), 0) * fires
    for parent in range(size.in_trees):
        if not (below := list(children(world, parent))):
            continue
        code[:, below] *= (code[:, parent] / world.means[parent])[:, None]
        rivals = random.random((rows, 4)) * (code[:, below] > 0)
        for i, child in enumerate(below):
            code[rivals[:, i] < rivals.max(axis=1), child] = 0
    return code


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_rows_have_the_distribution_of_plain_ones(world: Any) -> None:
    """Rates, coefficients and pairs differ by no more than chance."""
    n = 60_000
    ours = world.code(n, np.random.default_rng(3)).toarray()
    plain = plainly(world, n, np.random.default_rng(4))

    def agree(a: np.ndarray, b: np.ndarray, least: float = 30) -> None:
        p = (a + b) / (2 * n)
        seen = a + b > least
        assert seen.sum() > 20
        assert np.abs((a - b) / n / np.sqrt(2 * np.maximum(p * (1 - p), 1e-12) / n))[seen].max() < MOST

    agree((ours > 0).sum(axis=0), (plain > 0).sum(axis=0))
    pairs = (fires.T @ fires for fires in ((code[:, :40] > 0).astype(float) for code in (ours, plain)))
    agree(*pairs)
    for feature in (*range(12), 200, 210, 230):
        a, b = (code[code[:, feature] > 0, feature] for code in (ours, plain))
        for u, v in ((a, b), (a**2, b**2)):
            assert abs(u.mean() - v.mean()) < MOST * np.sqrt(u.var() / len(u) + v.var() / len(v))
    active = (ours > 0).sum(axis=1), (plain > 0).sum(axis=1)
    assert abs(active[0].mean() - active[1].mean()) < MOST * np.sqrt((active[0].var() + active[1].var()) / n)
    assert active[0].var() == pytest.approx(active[1].var(), rel=0.05)


def test_trees_hold_in_every_row(world: Any) -> None:
    code = world.code(5000, np.random.default_rng(0))
    assert code.dtype == np.float32
    assert code.has_sorted_indices
    assert code.data.min() > 0
    fires = code.toarray() > 0
    checked = 0
    for parent in range(world.size.in_trees):
        if below := list(children(world, parent)):
            together = fires[:, below].sum(axis=1)
            assert together.max(initial=0) <= 1
            assert not together[~fires[:, parent]].any()
            checked += int(together.sum())
    assert checked > 100
    np.testing.assert_allclose(world.rows(code), code.toarray() @ world.vectors + world.bias, atol=1e-5)


def test_a_stream_reads_what_was_drawn(world: Any, synth: Any, tmp_path: Path) -> None:
    n = synth.BLOCK + 1000
    one = synth.Stream.write(world, tmp_path / "one", n, seed=7, threads=1)
    two = synth.Stream.write(world, tmp_path / "two", n, seed=7, threads=2)
    other = synth.Stream.write(world, tmp_path / "other", 300, seed=8)
    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.indices, two.indices)
    assert (other.code(0, 300) != one.code(0, 300)).nnz > 0
    first = world.code(synth.BLOCK, np.random.default_rng([7, 0]))
    assert (one.code(5, 400) != first[5:400]).nnz == 0
    assert one.n_rows == n
    assert one.rows(n - 3, n).dtype == np.float32
    np.testing.assert_array_equal(one.rows(5, 400), world.rows(first[5:400]))


def test_a_perfect_dictionary_has_perfect_scores(world: Any, metrics: Any) -> None:
    code = world.code(2000, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(world.size.n_features)
    sums = metrics.Scores(-3 * world.vectors[order], world.vectors)  # signs and norms do not count
    X = world.rows(code)
    for rows in (slice(0, 900), slice(900, 2000)):
        sums.add(code[rows].toarray()[:, order], X[rows], X[rows], code[rows])
    found = sums.result()
    seen = (code.toarray() > 0).any(axis=0)
    assert found["mcc"] == pytest.approx(1)
    assert found["uniqueness"] == 1
    assert found["explained_variance"] == 1
    assert found["shrinkage"] == 1
    assert found["dead"] == (~seen).sum()
    for name in ("precision", "recall", "f1"):
        assert found[name] == pytest.approx(seen.mean())
    assert found["l0"] == found["true_l0"] == pytest.approx(code.nnz / 2000)


def test_scores_are_what_they_are_called(metrics: Any) -> None:
    random = np.random.default_rng(0)
    vectors, decoder = random.standard_normal((6, 4)), random.standard_normal((3, 4))
    truth = random.random((200, 6)) * (random.random((200, 6)) < 0.3)
    code = random.random((200, 3)) * (random.random((200, 3)) < 0.4)
    X, rebuilt = 5 + random.standard_normal((200, 4)), 5 + random.standard_normal((200, 4))
    sums = metrics.Scores(decoder, vectors)
    for rows in (slice(0, 50), slice(50, 200)):
        sums.add(code[rows], rebuilt[rows], X[rows], sparse.csr_array(truth[rows]))
    found = sums.result()

    cosine = np.abs([[d @ v / np.linalg.norm(d) / np.linalg.norm(v) for v in vectors] for d in decoder])
    best = max(np.mean([cosine[i, j] for i, j in enumerate(taken)]) for taken in itertools.permutations(range(6), 3))
    assert found["mcc"] == pytest.approx(best)
    closest = cosine.argmax(axis=1)
    assert found["uniqueness"] == len(set(closest)) / 3
    parts = []
    for latent, feature in enumerate(closest):
        hits = np.sum((code[:, latent] > 0) & (truth[:, feature] > 0))
        p, r = hits / np.sum(code[:, latent] > 0), hits / np.sum(truth[:, feature] > 0)
        parts.append((p, r, 2 * p * r / (p + r)))
    np.testing.assert_allclose([found[name] for name in ("precision", "recall", "f1")], np.mean(parts, axis=0))
    error, variance = ((X - rebuilt) ** 2).sum(), ((X - X.mean(axis=0)) ** 2).sum()
    assert found["explained_variance"] == pytest.approx(1 - error / variance)
    ratios = np.linalg.norm(rebuilt, axis=1) / np.linalg.norm(X, axis=1)
    assert found["shrinkage"] == pytest.approx(ratios.mean())


def test_a_latent_that_never_fires_counts_as_dead(metrics: Any) -> None:
    sums = metrics.Scores(np.array([[1.0, 0.0], [0.0, 0.0]]), np.eye(2))
    X = np.array([[2.0, 0.0], [0.0, 1.0]])
    sums.add(np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]]), X, sparse.csr_array(X))
    found = sums.result()
    assert found["dead"] == 1
    assert found["f1"] == found["precision"] == found["recall"] == 0.5
    assert found["mcc"] == 0.5


def test_a_summary_says_whether_the_goal_is_reached(synth: Any) -> None:
    command = importlib.import_module("synth")

    def run(library: str, seed: int, mcc: float, variance: float) -> dict[str, Any]:
        return {"library": library, "model": "topk", "seed": seed,
                "mcc": mcc, "f1": 0.5, "explained_variance": variance}  # fmt: skip

    theirs = [run("saelens", 0, 0.80, 0.70), run("saelens", 1, 0.90, 0.72)]
    (saelens, ours) = command.summary([*theirs, run("ours", 0, 0.82, 0.71), run("ours", 1, 0.84, 0.702)])
    assert saelens["mcc"] == pytest.approx(0.85)
    assert saelens["spread"]["mcc"] == pytest.approx(0.1)
    assert ours["above_saelens"] == pytest.approx({"mcc": -0.02, "f1": 0, "explained_variance": -0.004})
    assert ours["reached"]
    assert not command.summary([*theirs, run("ours", 0, 0.81, 0.71)])[-1]["reached"]
    assert not command.summary([*theirs, run("ours", 0, 0.9, 0.70)])[-1]["reached"]


def test_bad_options_are_refused(tmp_path: Path) -> None:
    def call(*options: str) -> str:
        done = subprocess.run(
            [sys.executable, FOLDER / "synth.py", *options], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        return done.stderr

    assert "--rows: expected at least 1024, got 5" in call("--rows", "5")
    assert "--seeds: expected at least 1, got 0" in call("--seeds", "0")
    (tmp_path / "settings.json").write_text(json.dumps({"size": "16k", "rows": 1024, "held_out": 1024}))
    assert "--folder: expected an empty one" in call("--size", "tiny", "--rows", "1024", "--folder", str(tmp_path))


def test_ours_trains_and_is_told(synth: Any, tmp_path: Path) -> None:
    """The whole command on a tiny world, going on where it was, and the table of its result."""
    output = tmp_path / "synth.json"
    options = {"size": "tiny", "rows": 30720, "held-out": 2048, "seeds": 1, "threads": 1,
               "folder": tmp_path / "rows", "output": output}  # fmt: skip
    named = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, FOLDER / "synth.py", "--libraries", "ours", "ours_preset", *named]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    first = json.loads(output.read_text())
    assert {(run["library"], run["model"]) for run in first["runs"]} == {
        (library, model) for library in ("ours", "ours_preset") for model in ("topk", "batch_topk", "matryoshka")
    }
    size = synth.SIZES["tiny"]
    for run in first["runs"]:
        assert run["rows"] == 30720
        assert run["seconds"] > 0
        assert (0.3 if run["library"] == "ours" else -0.5) < run["explained_variance"] < 1
        assert run["mcc"] > 0.4
        assert 1 < run["l0"] < (2 * size.k if run["library"] == "ours" else size.n_latents)
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert json.loads(output.read_text())["runs"] == first["runs"]
    text = importlib.import_module("tables").synth_table(first)
    assert text.count("| fastsae |") == 3
    assert f"{first['summary'][0]['mcc']:.4f}" in text
    assert "| batch_topk | 16k, 200 million rows, L0 25 | 0.7316 | 0.7574 |" in text


def test_the_readme_says_what_the_result_says(synth: Any) -> None:
    tables = importlib.import_module("tables")
    readme = "benchmarks/README.md"
    found = tables.between((FOLDER.parent / readme).read_text(), "synth")
    assert found == tables.expected("synth", tables.committed("synth"), readme)
