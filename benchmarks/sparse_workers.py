"""Those that gpu.py's sparse stage compares: a training step of a TopK dictionary by fastsae, and by PyTorch in the
manner of three libraries: what they compute, and by which operators, is theirs; the words are ours.

python benchmarks/sparse_workers.py NAME --device cuda|cpu
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from frameworks import ByTorch, use_precision
from step_workers import precision_here
from worker import Repeated, Row, Worker, as_numpy, on_device, serve

RATE = 1e-3
CHECKED = 3  # steps, after which those that train alike must explain as much
LOOKED_AT = 512  # rows of which that is measured


def problem(row: Row) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A batch and the first weights: a block of unit rows, of which the others are rotations."""
    d, n = row["features"], row["latents"]
    rng = np.random.default_rng(0)
    block = rng.standard_normal((min(n, 8192), d), dtype=np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    W = np.concatenate([np.roll(block, i, axis=1) for i in range(-(-n // len(block)))])[:n]
    X = rng.standard_normal((row["batch"], d), dtype=np.float32)
    return X, {"W_enc": W, "W_dec": W, "b_enc": np.zeros(n, np.float32), "b_dec": np.zeros(d, np.float32)}


def unexplained(X: np.ndarray, Y: np.ndarray) -> float:
    """FVU of the first rows."""
    X = X[:LOOKED_AT]
    return float(((X - Y) ** 2).sum() / ((X - X.mean(0)) ** 2).sum())


class Ours(Repeated):
    """Engine.run_epoch on a batch that lies on the device."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "numpy": np.__version__}

    def setup(self, row: Row) -> dict[str, Any]:
        from fastsae import Engine
        from fastsae.sparse_code import SparseCodeConfig

        X, weights = problem(row)
        precision = precision_here(row, self.device)
        config = SparseCodeConfig(
            row["features"], row["latents"], k=row["active"], learning_rate=RATE, aux_weight=0.0, precision=precision
        )
        self.engine = Engine(config, self.device)
        for name, value in weights.items():
            self.engine.set(name, value)
        self.X, where = on_device(X, self.device)
        self.work = functools.partial(self.engine.run_epoch, self.X, None, row["batch"])
        self.run(CHECKED)
        return {"fvu": unexplained(X, as_numpy(self.engine.reconstruct(X[:LOOKED_AT]))), "data": where}


class Torch(ByTorch, Repeated):
    """The step of a library: `way` names it."""

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        torch.backends.cuda.matmul.allow_tf32 = row["precision"] != "fp32"
        X, weights = problem(row)
        self.k, self.low = row["active"], row["precision"] == "bf16"
        self.X = torch.from_numpy(X).to(self.device)
        self.p = {name: torch.nn.Parameter(torch.tensor(w, device=self.device)) for name, w in weights.items()}
        self.adam = torch.optim.Adam(self.p.values(), lr=RATE, fused=True)
        self.work = self.product if self.way == "product" else self.step
        if self.way == "product":
            factors = self.X, self.p["W_enc"].detach()
            self.factors = [factor.bfloat16() if self.low else factor for factor in factors]
            self.work()
            return {}
        self.run(CHECKED)
        with torch.no_grad():
            return {"fvu": unexplained(X, self.decoded(self.X[:LOOKED_AT]).float().cpu().numpy())}

    def product(self) -> None:
        X, W = self.factors
        X @ W.T

    def decoded(self, x: Any) -> Any:
        import torch

        p = self.p
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.low):
            z = torch.nn.functional.linear(x - p["b_dec"], p["W_enc"], p["b_enc"])
            if self.way == "saelens":  # scores count by the decoder's norms; the code is dense
                norms = p["W_dec"].norm(dim=1)
                values, indices = (z * norms).relu().topk(self.k, dim=1)
                code = torch.zeros_like(z).scatter(1, indices, values.to(z.dtype))
                return (code / norms).to(z.dtype) @ p["W_dec"] + p["b_dec"]
            values, indices = z.relu().topk(self.k, dim=1, sorted=False)
            bag = torch.nn.functional.embedding_bag
            return bag(indices, p["W_dec"], per_sample_weights=values.float(), mode="sum") + p["b_dec"]

    def step(self) -> None:
        import torch

        x, p = self.X, self.p
        error = (self.decoded(x).float() - x).pow(2).sum()
        if self.way == "sparsify":  # the fraction of the variance
            error = error / (x - x.mean(0)).pow(2).sum()
        elif self.way == "openai":  # of the mean square, on a scale that the data had at first
            error = error / x.numel()
        else:
            error = error / len(x)
        error.backward()
        if self.way == "saelens":
            torch.nn.utils.clip_grad_norm_(p.values(), 1.0)
            self.adam.step()
        else:
            with torch.no_grad():
                W, G = p["W_dec"], p["W_dec"].grad
                G -= (W * G).sum(1, keepdim=True) * W
                self.adam.step()
                W /= W.norm(dim=1, keepdim=True)
        self.adam.zero_grad()


WORKERS: dict[str, Callable[[str], Worker]] = {
    "sparse ours": Ours,
    **{f"sparse {way}": functools.partial(Torch, way=way) for way in ("sparsify", "openai", "saelens", "product")},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
