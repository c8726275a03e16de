"""Those that bench_step.py and gpu.py compare, each in a process of its own: a whole training step by fastsae, by
PyTorch in several ways, by JAX; and its five products alone, and one product (product_workers.py).

    python benchmarks/step_workers.py NAME --device cuda|cpu
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import product_workers
from frameworks import ByJax, ByTorch, use_precision
from worker import CHECKED_STEPS, Arrays, Row, Worker, on_device, serve, synchronize

RHO, BETA, DECAY = 0.05, 3.0, 1e-4
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


def problem(row: Row) -> tuple[np.ndarray, Arrays]:
    """The rows of all batches and the first weights, the same in every process."""
    d, h = row["features"], row["hidden"]
    rng = np.random.default_rng(0)
    X = rng.random((row["batches"] * row["batch"], d), dtype=np.float32)
    reach = np.float32((6 / (d + h + 1)) ** 0.5)
    weights = {
        name: (2 * rng.random(shape, dtype=np.float32) - 1) * reach for name, shape in (("W1", (h, d)), ("W2", (d, h)))
    }
    return X, {**weights, "b1": np.zeros(h, np.float32), "b2": np.zeros(d, np.float32)}


# --- fastsae ---


class Ours(Worker):
    """Engine.run_epoch on rows that lie on the device."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}

    def setup(self, row: Row) -> dict[str, Any]:
        import fastsae
        from fastsae import Config, Engine, LayerConfig

        X, parameters = problem(row)
        config = Config(
            row["features"],
            (LayerConfig(row["hidden"], "sigmoid", "kl", beta=BETA, rho=RHO), LayerConfig(row["features"], "sigmoid")),
            weight_decay=DECAY,
            learning_rate=RATE,
            beta1=BETA1,
            beta2=BETA2,
            epsilon=EPSILON,
            precision=precision_here(row, self.device),
        )
        self.batch, self.batches = row["batch"], row["batches"]
        first = X[: self.batch]
        self.engine = Engine(config, self.device)
        self.engine.set_parameters(parameters)
        self.X, where = on_device(X, self.device)
        try:
            self.engine.run_epoch(self.X[: self.batch], None, self.batch)
        except (ValueError, TypeError) as error:  # a build that takes rows of host memory only
            self.X, where = X, f"host memory: {error}"
            self.engine.run_epoch(self.X[: self.batch], None, self.batch)
        done = 1
        while done < CHECKED_STEPS:
            begin = done % self.batches
            count = min(CHECKED_STEPS - done, self.batches - begin)
            self.engine.run_epoch(self.X[begin * self.batch : (begin + count) * self.batch], None, self.batch)
            done += count
        cost = self.engine.evaluate(first)
        return {
            "loss": cost["loss"],
            "reconstruction": cost["reconstruction"],
            "data": where,
            "devices": fastsae.devices(),
        }

    def run(self, steps: int) -> int:
        epochs = -(-steps // self.batches)
        for _ in range(epochs):
            self.engine.run_epoch(self.X, None, self.batch)
        return epochs * self.batches


class OursByBlas(Ours):
    """With all products by the BLAS."""

    def setup(self, row: Row) -> dict[str, Any]:
        os.environ["FASTSAE_PRODUCTS"] = "blas"  # read at the first product
        return super().setup(row)


class OursWithMkl(Ours):
    """The same by a build with another BLAS."""

    def versions(self) -> dict[str, str]:
        return {"fastsae_with_mkl": super().versions()["fastsae"]}

    def setup(self, row: Row) -> dict[str, Any]:
        from fastsae import _core

        if "MKL" not in _core.blas():
            raise RuntimeError(f"expected an interpreter whose fastsae was built with MKL, got {_core.blas()}")
        return super().setup(row)


def precision_here(row: Row, device: str) -> str:
    """fastsae's name of the precision; the CPU has no TF32."""
    names = {"fp32": "full"} if device != "cpu" else {"fp32": "full", "tf32": "full"}
    return names.get(row["precision"], row["precision"])


# --- PyTorch ---


class Torch(ByTorch):
    """The step by autograd and Adam, in one of several ways."""

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        X, parameters = problem(row)
        self.batch, self.batches, self.precision = row["batch"], row["batches"], row["precision"]
        self.X = torch.from_numpy(X).to(self.device).split(self.batch)
        self.p = {name: torch.from_numpy(value).to(self.device).requires_grad_() for name, value in parameters.items()}
        weights, biases = [self.p["W1"], self.p["W2"]], [self.p["b1"], self.p["b2"]]
        groups = [{"params": weights, "weight_decay": DECAY}, {"params": biases, "weight_decay": 0.0}]
        fused = {} if self.way == "default" else {"fused": True}
        capturable = {"capturable": True} if self.way == "captured" else {}
        self.adam = torch.optim.Adam(groups, RATE, (BETA1, BETA2), EPSILON, **fused, **capturable)
        modes = {"compiled": "reduce-overhead", "autotuned": "max-autotune", "captured": "default"}
        self.cost_of = self.cost
        if self.way in modes:
            self.cost_of = torch.compile(self.cost, mode=modes[self.way], dynamic=False, fullgraph=True)
        self.step = self.capture(parameters) if self.way == "captured" else self.one_step
        self.done = 0
        self.run(CHECKED_STEPS)
        with torch.no_grad():
            cost, reconstruction = self.cost(self.X[0])
            decay = DECAY / 2 * sum((self.p[name].double() ** 2).sum() for name in ("W1", "W2"))
        return {"loss": float(cost + decay), "reconstruction": float(reconstruction)}

    def cost(self, x: Any) -> tuple[Any, Any]:
        """J without its decay, whose gradient Adam adds, and the reconstruction's part."""
        import torch
        from torch.nn.functional import linear

        kind = "cpu" if self.device == "cpu" else "cuda"
        low = torch.autocast(kind, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        with low:
            h = torch.sigmoid(linear(x, self.p["W1"], self.p["b1"]))
            y = torch.sigmoid(linear(h, self.p["W2"], self.p["b2"]))
        q = h.float().mean(0)
        kl = (RHO * (np.log(RHO) - torch.log(q)) + (1 - RHO) * (np.log(1 - RHO) - torch.log1p(-q))).sum()
        reconstruction = 0.5 * ((y.float() - x) ** 2).sum() / x.shape[0]
        return reconstruction + BETA * kl, reconstruction

    def one_step(self, x: Any) -> None:
        import torch

        if self.way in ("compiled", "autotuned"):
            torch.compiler.cudagraph_mark_step_begin()
        self.adam.zero_grad(set_to_none=True)
        self.cost_of(x)[0].backward()
        self.adam.step()

    def capture(self, parameters: Arrays) -> Callable[[Any], None]:
        """The whole step as one CUDA graph over a batch that is copied in."""
        import torch

        x = self.X[0].clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.one_step(x)
        torch.cuda.current_stream().wait_stream(side)
        self.adam.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.cost_of(x)[0].backward()
            self.adam.step()
        with torch.no_grad():  # back to the start
            for name, value in parameters.items():
                self.p[name].copy_(torch.from_numpy(value))
                for state in self.adam.state[self.p[name]].values():
                    state.zero_()

        def replay(batch: Any) -> None:
            x.copy_(batch)
            graph.replay()

        return replay

    def run(self, steps: int) -> int:
        for _ in range(steps):
            self.step(self.X[self.done % self.batches])
            self.done += 1
        synchronize(self.device)
        return steps


# --- JAX ---


class Jax(ByJax):
    """The step by hand-written backpropagation under jit; with `scan`, an epoch at a time."""

    def setup(self, row: Row) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp

        self.check_device()
        X, parameters = problem(row)
        n, self.batches = row["batch"], row["batches"]
        low = row["precision"] == "bf16"
        precision = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}[row["precision"]]

        def dot(a: Any, b: Any) -> Any:
            if low:
                a, b = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
            with jax.default_matmul_precision(precision):
                return jnp.matmul(a, b, preferred_element_type=jnp.float32)

        def forward(p: Any, x: Any) -> tuple[Any, Any, Any]:
            h = jax.nn.sigmoid(dot(x, p["W1"].T) + p["b1"])
            return h, jax.nn.sigmoid(dot(h, p["W2"].T) + p["b2"]), h.mean(0)

        def cost(p: Any, x: Any) -> tuple[Any, Any]:
            _, y, q = forward(p, x)
            kl = (RHO * jnp.log(RHO / q) + (1 - RHO) * jnp.log((1 - RHO) / (1 - q))).sum()
            reconstruction = 0.5 * ((y - x) ** 2).sum() / n
            decay = DECAY / 2 * ((p["W1"] ** 2).sum() + (p["W2"] ** 2).sum())
            return reconstruction + BETA * kl + decay, reconstruction

        def step(state: Any, x: Any) -> tuple[Any, Any]:
            p, m, v, t = state
            h, y, q = forward(p, x)
            outer = (y - x) * y * (1 - y) / n
            pull = BETA / n * (-RHO / q + (1 - RHO) / (1 - q))
            inner = (dot(outer, p["W2"]) + pull) * h * (1 - h)
            g = {
                "W1": dot(inner.T, x) + DECAY * p["W1"],
                "b1": inner.sum(0),
                "W2": dot(outer.T, h) + DECAY * p["W2"],
                "b2": outer.sum(0),
            }
            t = t + 1
            m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
            v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
            rate, root = RATE / (1 - BETA1**t), (1 - BETA2**t) ** -0.5
            p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * root + EPSILON), p, m, v)
            # What a loop reports: the cost of the step.
            return (p, m, v, t), 0.5 * ((y - x) ** 2).sum() / n + BETA * (RHO * jnp.log(RHO / q)).sum()

        self.X = jax.device_put(X.reshape(self.batches, n, -1))
        self.pieces = [self.X[i] for i in range(self.batches)]
        p = {name: jax.device_put(value) for name, value in parameters.items()}
        zeros = jax.tree.map(jnp.zeros_like, p)
        self.state = (p, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))
        one = jax.jit(step, donate_argnums=0)
        self.one = one
        self.epoch = jax.jit(lambda state, X: jax.lax.scan(step, state, X), donate_argnums=0)
        self.done = 0
        for i in range(CHECKED_STEPS):
            self.state, _ = one(self.state, self.pieces[i % self.batches])
        loss, reconstruction = jax.jit(cost)(self.state[0], self.pieces[0])
        return {"loss": float(loss), "reconstruction": float(reconstruction)}

    def run(self, steps: int) -> int:
        import jax

        if self.way == "scan":
            epochs = -(-steps // self.batches)
            for _ in range(epochs):
                self.state, _ = self.epoch(self.state, self.X)
            steps = epochs * self.batches
        else:
            for _ in range(steps):
                self.state, _ = self.one(self.state, self.pieces[self.done % self.batches])
                self.done += 1
        jax.block_until_ready(self.state)
        return steps


WAYS: dict[str, tuple[Callable[..., Worker], tuple[str, ...]]] = {
    "torch": (Torch, ("default", "fused", "compiled", "captured", "autotuned")),
    "jax": (Jax, ("jit", "scan")),
}
WORKERS: dict[str, Callable[[str], Worker]] = {
    "ours": Ours,
    "blas": OursByBlas,
    "mkl": OursWithMkl,
    **product_workers.WORKERS,
    **{f"{name} {way}": functools.partial(kind, way=way) for name, (kind, ways) in WAYS.items() for way in ways},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
