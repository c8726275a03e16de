"""Synthetic rows whose true features are known: the generator of SynthSAEBench-16k (Chanin and Garriga-Alonso,
arXiv 2602.14687; second version of its model), rebuilt in NumPy from its description.

A row is x = bias + sum_j a_j f_j over the few features that fire in it. Feature j fires with probability p_j, by Zipf's
law; a Gaussian copula of low rank makes features fire together. Most features form trees: a child fires only beside its
parent, at most one child of a parent does, and its coefficient is scaled by that of the parent. The draws are ours, so
rows have the distribution of the original and not its numbers.

Children are drawn only where their parent fires, which has the same distribution and is several times faster. This file
needs NumPy and SciPy alone: both sides of the comparison read it.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse, special

BRANCHES, DEPTH = 4, 3
#: Rows that are drawn from one stream of random numbers.
BLOCK = 8192
#: Rows that share a bound on their probabilities.
GROUP = 512


@dataclass(frozen=True)
class Size:
    """How large a world is, and what is trained on it: the shares are those of the published one."""

    n_features: int
    width: int
    roots: int
    rank: int
    n_latents: int
    k: int
    prefixes: tuple[int, ...]

    @property
    def in_trees(self) -> int:
        return self.roots * sum(BRANCHES**level for level in range(DEPTH + 1))


SIZES = {
    "16k": Size(16384, 768, 128, 25, 4096, 25, (128, 512, 2048, 4096)),
    "4k": Size(4096, 384, 32, 25, 1024, 12, (32, 128, 512, 1024)),
    "2k": Size(2048, 256, 16, 25, 512, 8, (16, 64, 256, 512)),
    "tiny": Size(256, 32, 2, 5, 64, 4, (8, 16, 32, 64)),
}


def zipf(n: int, exponent: float = 0.5, low: float = 5e-4, high: float = 0.4) -> np.ndarray:
    """Probabilities proportional to rank^-exponent, moved and stretched to [low, high]."""
    share = np.arange(1, n + 1) ** -exponent
    return low + (high - low) * (share - share[-1]) / (share[0] - share[-1])


def compensated(p: np.ndarray, size: Size) -> np.ndarray:
    """Probabilities of firing where the parent does, so that a child's overall rate comes near p: p_j / p_parent, times
    1 + the siblings' sum of the same, as only one of the rivals stays; at most 1.
    """
    children = np.arange(size.roots, size.in_trees)
    parents = (children - size.roots) // BRANCHES
    together = p[children].reshape(-1, BRANCHES).sum(axis=1).repeat(BRANCHES)
    out = p.copy()
    out[children] = np.minimum(p[children] / p[parents] * (1 + (together - p[children]) / p[parents]), 1)
    return out


def nearly_orthogonal(vectors: np.ndarray, steps: int = 100, rate: float = 3e-4, chunk: int = 1024) -> np.ndarray:
    """Unit vectors after Adam steps on sum_{i != j} (f_i f_j)^2 + n sum_i (|f_i|^2 - 1)^2."""
    n = len(vectors)
    f = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second, gradient = np.zeros_like(f), np.zeros_like(f), np.empty_like(f)
    for t in range(1, steps + 1):
        for start in range(0, n, chunk):
            rows = np.arange(start, min(start + chunk, n))
            products = f[rows] @ f.T
            products[rows - start, rows] = n * (products[rows - start, rows] - 1)
            gradient[rows] = 4 * products @ f
        first += 0.1 * (gradient - first)
        second += 0.001 * (gradient**2 - second)
        f -= rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return f / np.linalg.norm(f, axis=1, keepdims=True)


@dataclass(frozen=True)
class World:
    """The model that rows are drawn from; n features in d dimensions."""

    size: Size
    vectors: np.ndarray  # [n x d], unit rows
    bias: np.ndarray  # [d], norm 0.5
    rates: np.ndarray  # [n] p of Zipf's law
    probabilities: np.ndarray  # [n] of firing beside an active parent
    factor: np.ndarray  # [n x rank] of the copula
    means: np.ndarray  # [n] of coefficients
    deviations: np.ndarray  # [n]

    @classmethod
    def make(cls, size: Size, seed: int = 42) -> World:
        random = np.random.default_rng(seed)
        n, single = size.n_features, np.float32
        vectors = nearly_orthogonal(random.standard_normal((n, size.width), single))
        bias = random.standard_normal(size.width)
        factor = 0.1 * random.standard_normal((n, size.rank))
        factor *= np.sqrt(np.minimum(1, 0.99 / (factor**2).sum(axis=1, keepdims=True)))  # leaves 0.01 of its own
        return cls(
            size,
            vectors,
            (0.5 * bias / np.linalg.norm(bias)).astype(single),
            zipf(n),
            compensated(zipf(n), size),
            factor.astype(single),
            np.linspace(5, 4, n).astype(single),
            np.abs(0.5 + 0.5 * random.standard_normal(n)).astype(single),
        )

    @classmethod
    def load(cls, path: Path) -> World:
        with np.load(path) as file:
            arrays = {field.name: file[field.name] for field in dataclasses.fields(cls) if field.name != "size"}
            return cls(SIZES[str(file["size"])], **arrays)

    def save(self, path: Path) -> None:
        name = next(name for name, size in SIZES.items() if size == self.size)
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        np.savez(path, **{**arrays, "size": np.array(name)})

    def code(self, rows: int, random: np.random.Generator) -> sparse.csr_array:
        """The true code of new rows: coefficients of the features that fire in each."""
        size, single = self.size, np.float32
        least, slopes = self._copula
        wanted, rows = rows, -(-rows // GROUP) * GROUP
        common = random.standard_normal((rows, size.rank), single)
        row, column = self._fire_freely(common, random)
        value = self.means[column] + self.deviations[column] * random.standard_normal(len(column), single)
        kept = value > 0
        found = [(row[kept], column[kept], value[kept])]
        row, column, value = (part[found[0][1] < size.roots] for part in found[0])
        for _ in range(DEPTH):
            children = size.roots + BRANCHES * column[:, None] + np.arange(BRANCHES)
            reach = least[children] - np.einsum("pr,pcr->pc", common[row], slopes[children])
            values = self.means[children] + self.deviations[children] * random.standard_normal(children.shape, single)
            active = (random.standard_normal(children.shape, single) > reach) & (values > 0)
            winner = np.argmax(random.random(children.shape, single) * active + active, axis=1)[:, None]
            scale = value / self.means[column]
            column, value = (np.take_along_axis(part, winner, axis=1)[:, 0] for part in (children, values))
            kept = active.any(axis=1)
            row, column, value = row[kept], column[kept], (value * scale)[kept]
            found.append((row, column, value))
        row, column, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return sparse.csr_array((value, (row, column)), shape=(rows, size.n_features))[:wanted]

    @functools.cached_property
    def _copula(self) -> tuple[np.ndarray, np.ndarray]:
        """What a feature's own normal number must exceed, and how much less per common number."""
        spread = np.sqrt(1 - (self.factor**2).sum(axis=1))
        with np.errstate(divide="ignore"):
            least = -special.ndtri(self.probabilities) / spread
        return least.astype(np.float32), self.factor / spread[:, None]

    def _fire_freely(self, common: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows and features without a parent that fire: those where a uniform number is below their probability given
        what the row's features have in common. Its first 16 bits already rule out most.
        """
        free = np.r_[0 : self.size.roots, self.size.in_trees : self.size.n_features]
        least, slopes = (part[free] for part in self._copula)
        reach = (least - common @ slopes.T).reshape(-1, GROUP, len(free))
        highest = special.ndtr(-reach.min(axis=1, keepdims=True).astype(np.float64))
        bits = random.integers(0, 2**16, reach.shape, np.uint16)
        group, row, column = np.nonzero(bits <= np.minimum(highest * 2**16, 2**16 - 1).astype(np.uint16))
        uniform = (bits[group, row, column] + random.random(len(row))) / 2**16
        kept = uniform < special.ndtr(-reach[group, row, column].astype(np.float64))
        return (group * GROUP + row)[kept], free[column[kept]]

    def rows(self, code: sparse.csr_array) -> np.ndarray:
        """[rows x d] float32."""
        return np.asarray(code @ self.vectors) + self.bias


class Stream:
    """The true codes of many rows, drawn once and kept in files, so that all who train read the same rows."""

    FILES = (("counts", np.uint16), ("indices", np.uint16), ("values", np.float32))

    def __init__(self, world: World, folder: Path) -> None:
        self.world = world
        counts, self.indices, self.values = (np.memmap(folder / name, dtype, mode="r") for name, dtype in self.FILES)
        self.starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.n_rows = len(counts)

    @classmethod
    def write(cls, world: World, folder: Path, n_rows: int, seed: int, threads: int = 2) -> Stream:
        folder.mkdir(parents=True, exist_ok=True)
        blocks = range(-(-n_rows // BLOCK))

        def draw(block: int) -> sparse.csr_array:
            return world.code(min(BLOCK, n_rows - block * BLOCK), np.random.default_rng([seed, block]))

        files = [(folder / name).open("wb") for name, _ in cls.FILES]
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(blocks), 4 * threads):  # few blocks wait in memory
                for code in pool.map(draw, blocks[first : first + 4 * threads]):
                    parts = (np.diff(code.indptr), code.indices, code.data)
                    for file, part, (_, dtype) in zip(files, parts, cls.FILES, strict=True):
                        part.astype(dtype).tofile(file)
        for file in files:
            file.close()
        return cls(world, folder)

    def code(self, start: int, stop: int) -> sparse.csr_array:
        first, last = self.starts[start], self.starts[stop]
        indices, starts = self.indices[first:last].astype(np.int32), self.starts[start : stop + 1] - first
        return sparse.csr_array(
            (self.values[first:last], indices, starts), shape=(stop - start, self.world.size.n_features)
        )

    def rows(self, start: int, stop: int) -> np.ndarray:
        """[(stop - start) x d] float32."""
        return self.world.rows(self.code(start, stop))
