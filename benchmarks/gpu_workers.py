"""Those that gpu.py compares, each in a process of its own: fastsae, PyTorch in several ways, JAX, the products alone.

A worker reads one JSON request a line and answers one JSON line: ``prepare`` a row, run a ``slice`` of it, ``release``.

    python benchmarks/gpu_workers.py NAME --device cuda|cpu
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from worker import CHECKED_STEPS, Arrays, Row, Worker, as_numpy, on_device, serve, synchronize

RHO, BETA, DECAY = 0.05, 3.0, 1e-4
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


def layered_problem(row: Row) -> tuple[np.ndarray, Arrays]:
    """The rows of all batches and the first weights, the same in every process."""
    d, h = row["features"], row["hidden"]
    rng = np.random.default_rng(0)
    X = rng.random((row["batches"] * row["batch"], d), dtype=np.float32)
    reach = np.float32((6 / (d + h + 1)) ** 0.5)
    weights = {
        name: (2 * rng.random(shape, dtype=np.float32) - 1) * reach for name, shape in (("W1", (h, d)), ("W2", (d, h)))
    }
    return X, {**weights, "b1": np.zeros(h, np.float32), "b2": np.zeros(d, np.float32)}


def selection_problem(row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, weights and biases of an encoder."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((row["batch"], row["features"]), dtype=np.float32)
    weight = rng.standard_normal((row["latents"], row["features"]), dtype=np.float32) / np.float32(
        row["features"] ** 0.5
    )
    return X, weight, rng.standard_normal(row["latents"], dtype=np.float32) / np.float32(10)


# --- fastsae ---


class Ours(Worker):
    """Engine.run_epoch on rows that lie on the device."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}

    def setup(self, row: Row) -> dict[str, Any]:
        import fastsae
        from fastsae import Config, Engine, LayerConfig

        X, parameters = layered_problem(row)
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

    def release(self) -> None:
        del self.engine, self.X


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


def precision_here(row: Row, device: str) -> str:
    """fastsae's name of the precision; the CPU has no tf32."""
    name = {"fp32": "full"}.get(row["precision"], row["precision"])
    return "full" if device == "cpu" and name == "tf32" else name


# --- PyTorch ---


class Torch(Worker):
    """The step by autograd and Adam, in one of several ways."""

    def __init__(self, device: str, way: str) -> None:
        super().__init__(device)
        self.way = way

    def versions(self) -> dict[str, str]:
        import torch

        return {"torch": torch.__version__, "torch_cuda": str(torch.version.cuda)}

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        X, parameters = layered_problem(row)
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

    def release(self) -> None:
        import torch

        for name in ("X", "p", "adam", "cost_of", "step"):
            self.__dict__.pop(name, None)
        gc.collect()
        torch._dynamo.reset()
        if self.device != "cpu":
            torch.cuda.empty_cache()


class TorchSelection(Worker):
    """The product, then torch.topk; or the product alone."""

    def __init__(self, device: str, way: str) -> None:
        super().__init__(device)
        self.way = way

    versions = Torch.versions

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

    def run(self, steps: int) -> int:
        for _ in range(steps):
            self.work()
        synchronize(self.device)
        return steps

    def release(self) -> None:
        del self.work
        gc.collect()


class Products(Worker):
    """The five products of a step and nothing else; on a GPU as a graph, so that no launch is waited for."""

    versions = Torch.versions

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        kind = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
        n, d, h = row["batch"], row["features"], row["hidden"]
        random = functools.partial(torch.rand, dtype=kind, device=self.device)
        x, hidden, y, delta = random(n, d), random(n, h), random(n, d), random(n, h)
        w1, w2, dw1, dw2 = random(h, d), random(d, h), random(h, d), random(d, h)

        def five() -> None:
            torch.mm(x, w1.T, out=hidden)
            torch.mm(hidden, w2.T, out=y)
            torch.mm(y, w2, out=delta)
            torch.mm(y.T, hidden, out=dw2)
            torch.mm(delta.T, x, out=dw1)

        self.each, self.work = 1, five
        if self.device != "cpu":
            for _ in range(3):
                five()
            torch.cuda.synchronize()
            graph, self.each = torch.cuda.CUDAGraph(), 10
            with torch.cuda.graph(graph):
                for _ in range(self.each):
                    five()
            self.work = graph.replay
        parameters = 2 * d * h + d + h
        # A batch is read once; parameters and both moments are read and written.
        return {"bytes": 4 * n * d + 24 * parameters, "copy_bytes_per_second": copy_bandwidth(self.device)}

    def run(self, steps: int) -> int:
        calls = -(-steps // self.each)
        for _ in range(calls):
            self.work()
        synchronize(self.device)
        return calls * self.each

    def release(self) -> None:
        del self.work
        gc.collect()


def use_precision(row: Row) -> None:
    """Full float32 or TF32 in PyTorch's products."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = row["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


@functools.cache
def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy of 1 GB (on a CPU 64 MB)."""
    import torch

    source = torch.ones((2**28 if device != "cpu" else 2**24,), device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            target.copy_(source)
        synchronize(device)
        seconds.append((time.perf_counter() - start) / 10)
    return 2 * source.numel() * 4 / sorted(seconds)[2]


class Rates(Worker):
    """The rate of one product."""

    versions = Torch.versions

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        use_precision(row)
        kind = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
        m, n, k = row["shape"]
        # Random numbers: a product of zeros runs faster than one of data.
        a, b = torch.randn(m, k, dtype=kind, device=self.device), torch.randn(n, k, dtype=kind, device=self.device)
        out = torch.empty(m, n, dtype=kind, device=self.device)
        self.work = lambda: torch.mm(a, b.T, out=out)
        return {"flops": 2.0 * m * n * k, "copy_bytes_per_second": copy_bandwidth(self.device)}

    run = TorchSelection.run
    release = TorchSelection.release


# --- JAX ---


class Jax(Worker):
    """The step by hand-written backpropagation under jit; with `scan`, an epoch at a time."""

    def __init__(self, device: str, way: str) -> None:
        super().__init__(device)
        self.way = way

    def versions(self) -> dict[str, str]:
        import jax

        return {"jax": jax.__version__, "jax_backend": jax.default_backend()}

    def setup(self, row: Row) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp

        if self.device != "cpu" and jax.default_backend() != "gpu":
            raise RuntimeError(f"JAX computes on {jax.default_backend()} here")
        X, parameters = layered_problem(row)
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

    def release(self) -> None:
        import jax

        for name in ("state", "X", "pieces", "one", "epoch"):
            self.__dict__.pop(name, None)
        jax.clear_caches()
        gc.collect()


WAYS = {
    "torch": (Torch, ("default", "fused", "compiled", "captured", "autotuned")),
    "jax": (Jax, ("jit", "scan")),
    "select torch": (TorchSelection, ("default", "compiled", "product")),
}
WORKERS: dict[str, Callable[[str], Worker]] = {
    "ours": Ours,
    "select ours": OurSelection,
    "products": Products,
    "rates": Rates,
    **{f"{name} {way}": functools.partial(kind, way=way) for name, (kind, ways) in WAYS.items() for way in ways},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
