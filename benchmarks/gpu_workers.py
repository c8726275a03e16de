"""Those that gpu.py compares: the contenders of step_workers.py, and those that select the k largest.

python benchmarks/gpu_workers.py NAME --device cuda|cpu
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import step_workers
from frameworks import ByTorch, use_precision
from step_workers import Ours, precision_here
from worker import Repeated, Row, Worker, as_numpy, on_device, serve, synchronize


def selection_problem(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, weights and biases of an encoder."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((row["batch"], row["features"]), dtype=np.float32)
    weight = rng.standard_normal((row["latents"], row["features"]), dtype=np.float32) / np.float32(
        row["features"] ** 0.5
    )
    return X, weight, rng.standard_normal(row["latents"], dtype=np.float32) / np.float32(10)


class OurSelection(Ours):
    """TopKEncoder.encode."""

    def setup(self, row: Row) -> dict[str, Any]:
        from fastsae import TopKEncoder

        X, weight, bias = selection_problem(row)
        self.X, where = on_device(X, self.device)
        device_weight, _ = on_device(weight, self.device)
        device_bias, _ = on_device(bias, self.device)
        encoder = functools.partial(TopKEncoder, device=self.device, precision=precision_here(row, self.device))
        try:
            self.engine = encoder(device_weight, device_bias, row["active"])
        except (ValueError, TypeError):  # a build that takes weights of host memory only
            self.engine = encoder(weight, bias, row["active"])
        try:
            answer = self.engine.encode(self.X)
        except (ValueError, TypeError) as error:
            self.X, where = X, f"host memory: {error}"
            answer = self.engine.encode(self.X)
        values, indices = map(as_numpy, answer)
        np.savez(row["answers"] + "/ours.npz", values=values, indices=indices)
        return {"data": where}

    def run(self, steps: int) -> int:
        for _ in range(steps):
            self.engine.encode(self.X)
        synchronize(self.device)
        return steps


class TorchSelection(ByTorch, Repeated):
    """The product, then torch.topk; or the product alone."""

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        kind = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
        X, weight, bias = (torch.from_numpy(part).to(self.device, kind) for part in selection_problem(row))

        def select(X: Any, weight: Any, bias: Any) -> Any:
            scores = torch.addmm(bias, X, weight.T)
            return scores if self.way == "product" else torch.topk(scores, row["active"])

        work = torch.compile(select, mode="max-autotune-no-cudagraphs") if self.way == "compiled" else select
        self.work = torch.no_grad()(functools.partial(work, X, weight, bias))
        answer = self.work()
        if self.way == "default":
            values, indices = answer.values.float().cpu().numpy(), answer.indices.cpu().numpy()
            np.savez(row["answers"] + "/torch.npz", values=values, indices=indices)
        return {}


WORKERS: dict[str, Callable[[str], Worker]] = {
    **step_workers.WORKERS,
    "select ours": OurSelection,
    **{f"select torch {way}": functools.partial(TorchSelection, way=way) for way in ("default", "compiled", "product")},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
