"""Those that bench_variants.py compares, each in a process of its own: fastsae, PyTorch, JAX, the products alone.

A row names its model and sizes, and the file with what all start from. Every step draws its batch at random from rows
that lie in memory, and ends with Adam; costs are divided by the rows of the batch:

    deep, conv     1/2 |y - x|^2, relu layers and a sigmoid output
    variational    binary cross-entropy + KL(code || N(0, 1)), relu layers, one draw of the code
    contractive    1/2 |y - x|^2 + lambda |dh/dx|^2 in closed form, sigmoid layers

    python benchmarks/variants_workers.py NAME --device cuda|cpu
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from frameworks import ByJax, ByTorch, torch_versions
from worker import CHECKED_STEPS, Arrays, Row, Worker, on_device, serve, synchronize

RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
CONTRACTION = 0.1
KERNEL, STRIDE, PADDING = 3, 2, 1


def shapes(row: Row) -> dict[str, tuple[int, int]]:
    """Shapes of the weights as fastsae has them; those of images are [channels x (ky, kx, in)] or, transposed,
    [in x (ky, kx, channels)]."""
    if row["model"] == "conv":
        few, many = row["channels"]
        area = KERNEL * KERNEL
        return {"W1": (few, area), "W2": (many, area * few), "W3": (many, area * few), "W4": (few, area)}
    widths = row["widths"]
    outputs = [2 * n if is_code(row, i) else n for i, n in enumerate(widths)][1:]
    return {f"W{i}": shape for i, shape in enumerate(zip(outputs, widths[:-1], strict=True), start=1)}


def is_code(row: Row, layer: int) -> bool:
    return row["model"] == "variational" and layer == len(row["widths"]) // 2


def problem(row: Row) -> Arrays:
    """Rows of all batches, first weights, and the noise of the steps that are checked."""
    rng = np.random.default_rng(0)
    made = {"X": rng.random((row["batches"] * row["batch"], row["features"]), dtype=np.float32)}
    for name, (n, m) in shapes(row).items():
        made[name] = (2 * rng.random((n, m), dtype=np.float32) - 1) * np.float32((6 / (n + m + 1)) ** 0.5)
        made["b" + name[1:]] = np.zeros(n, np.float32)
    if row["model"] == "conv":  # of a transposed convolution the outputs are its channels
        made["b3"], made["b4"] = np.zeros(row["channels"][0], np.float32), np.zeros(1, np.float32)
    if row["model"] == "variational":
        from fastsae.reference.random import draw, two_normals

        latents = row["widths"][len(row["widths"]) // 2]
        words = draw("code", 0, 0, np.arange(CHECKED_STEPS * row["batch"]), np.arange(latents))
        made["noise"] = two_normals(words[0], words[1])[0].astype(np.float32)
    return made


# --- fastsae ---


def layers(row: Row) -> tuple[Any, ...]:
    from fastsae import LayerConfig

    if row["model"] == "conv":
        from fastsae import ConvConfig, ConvTransposeConfig

        few, many = row["channels"]
        by = {"kernel": KERNEL, "stride": STRIDE, "padding": PADDING}
        back = functools.partial(ConvTransposeConfig, **by, output_padding=1)
        return (
            ConvConfig(few, **by, activation="relu"),
            ConvConfig(many, **by, activation="relu"),
            back(few, activation="relu"),
            back(1, activation="sigmoid"),
        )
    hidden = "sigmoid" if row["model"] == "contractive" else "relu"
    made: list[Any] = [LayerConfig(n, hidden) for n in row["widths"][1:-1]]
    if row["model"] == "variational":
        from fastsae import GaussianConfig

        made[len(made) // 2] = GaussianConfig(made[len(made) // 2].units)
    return (*made, LayerConfig(row["widths"][-1], "sigmoid"))


def configuration(row: Row) -> Any:
    from fastsae import Config

    side, options = round(row["features"] ** 0.5), {}
    if row["model"] == "conv":
        options = {"input_shape": (1, side, side)}
    elif row["model"] == "variational":
        options = {"loss": "cross_entropy"}
    elif row["model"] == "contractive":
        options = {"contraction": CONTRACTION}
    adam = {"learning_rate": RATE, "beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON}
    return Config(row["features"], layers(row), weight_decay=0.0, **adam, **options)


class Ours(Worker):
    """Engine.run_epoch in a new order for each epoch."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}

    def setup(self, row: Row) -> dict[str, Any]:
        import fastsae
        from fastsae import Engine

        if self.device == "cpu":
            fastsae.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        made = dict(np.load(row["problem"]))
        self.batch = row["batch"]
        self.engine = Engine(configuration(row), self.device)
        self.engine.set_parameters({name: value for name, value in made.items() if name[0] in "Wb"})
        self.X, where = on_device(made["X"], self.device)
        self.random = np.random.default_rng(0)
        self.engine.run_epoch(self.X, np.arange(CHECKED_STEPS * self.batch), self.batch)
        cost = self.engine.gradient(self.X[: self.batch])
        return {"loss": cost["loss"], "reconstruction": cost["reconstruction"], "data": where}

    def run(self, steps: int) -> int:
        done = 0
        while done < steps:
            order = self.random.permutation(len(self.X))[: (steps - done) * self.batch]
            self.engine.run_epoch(self.X, order, self.batch)
            self.engine.epoch += 1
            done += len(order) // self.batch
        return done


# --- PyTorch ---


class Torch(ByTorch):
    """Autograd and Adam, in one of several ways."""

    def setup(self, row: Row) -> dict[str, Any]:
        import torch

        made = dict(np.load(row["problem"]))
        self.row, self.batch = row, row["batch"]
        self.X = torch.from_numpy(made["X"]).to(self.device)
        self.noise = torch.from_numpy(made["noise"]).to(self.device) if "noise" in made else None
        self.p = {
            name: self.parameter(name, made[name]).to(self.device).requires_grad_() for name in made if name[0] in "Wb"
        }
        if self.way == "channels last":
            if row["model"] != "conv":
                raise NotImplementedError("only images have channels")
            self.p = {name: self.channels_last(value) for name, value in self.p.items()}
        fused = {} if self.way == "default" else {"fused": True}
        self.adam = torch.optim.Adam(self.p.values(), RATE, (BETA1, BETA2), EPSILON, **fused)
        self.cost_of = self.cost
        if self.way == "compiled":
            mode = "default" if self.device == "cpu" else "reduce-overhead"
            self.cost_of = torch.compile(self.cost, mode=mode, dynamic=False, fullgraph=True)
        for i in range(CHECKED_STEPS):
            self.step(torch.arange(i * self.batch, (i + 1) * self.batch, device=self.device), i)
        with torch.no_grad():
            cost, reconstruction = self.cost(self.X[: self.batch], self.drawn(0))
        self.order = torch.empty(0, dtype=torch.int64)
        return {"loss": float(cost), "reconstruction": float(reconstruction)}

    def parameter(self, name: str, value: np.ndarray) -> Any:
        """As PyTorch has it: of images [channels, in, ky, kx], transposed [in, channels, ky, kx]."""
        import torch

        if self.row["model"] == "conv" and name[0] == "W":
            value = value.reshape(len(value), KERNEL, KERNEL, -1).transpose(0, 3, 1, 2)
        return torch.from_numpy(np.ascontiguousarray(value))

    def channels_last(self, value: Any) -> Any:
        import torch

        if value.dim() < 4:
            return value
        return value.detach().contiguous(memory_format=torch.channels_last).requires_grad_()

    def drawn(self, step: int | None) -> Any:
        """The noise of a step that is checked; None draws another."""
        if self.noise is None or step is None:
            return None
        return self.noise[step * self.batch : (step + 1) * self.batch]

    def cost(self, x: Any, noise: Any) -> tuple[Any, Any]:
        return getattr(self, self.row["model"])(x, noise)

    def squared_error(self, y: Any, x: Any) -> Any:
        return 0.5 * ((y - x) ** 2).sum() / x.shape[0]

    def affine(self, x: Any, number: int) -> Any:
        from torch.nn.functional import linear

        return linear(x, self.p[f"W{number}"], self.p[f"b{number}"])

    def deep(self, x: Any, noise: Any) -> tuple[Any, Any]:
        a, last = x, len(self.row["widths"]) - 1
        for number in range(1, last):
            a = self.affine(a, number).relu()
        cost = self.squared_error(self.affine(a, last).sigmoid(), x)
        return cost, cost

    def conv(self, x: Any, noise: Any) -> tuple[Any, Any]:
        import torch
        from torch.nn.functional import conv2d, conv_transpose2d

        side = round(self.row["features"] ** 0.5)
        a, p, by = x.reshape(-1, 1, side, side), self.p, {"stride": STRIDE, "padding": PADDING}
        if self.way == "channels last":
            a = a.contiguous(memory_format=torch.channels_last)
        a = conv2d(a, p["W1"], p["b1"], **by).relu()
        a = conv2d(a, p["W2"], p["b2"], **by).relu()
        a = conv_transpose2d(a, p["W3"], p["b3"], **by, output_padding=1).relu()
        a = conv_transpose2d(a, p["W4"], p["b4"], **by, output_padding=1).sigmoid()
        cost = self.squared_error(a.reshape(x.shape), x)
        return cost, cost

    def variational(self, x: Any, noise: Any) -> tuple[Any, Any]:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        mean, log_variance = self.affine(self.affine(x, 1).relu(), 2).chunk(2, 1)
        z = mean + (0.5 * log_variance).exp() * (torch.randn_like(mean) if noise is None else noise)
        logits = self.affine(self.affine(z, 3).relu(), 4)
        reconstruction = binary_cross_entropy_with_logits(logits, x, reduction="sum") / x.shape[0]
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / x.shape[0]
        return reconstruction + kl, reconstruction

    def contractive(self, x: Any, noise: Any) -> tuple[Any, Any]:
        h = self.affine(x, 1).sigmoid()
        reconstruction = self.squared_error(self.affine(h, 2).sigmoid(), x)
        jacobian = ((h * (1 - h)) ** 2).sum(0) @ (self.p["W1"] ** 2).sum(1) / x.shape[0]
        return reconstruction + CONTRACTION * jacobian, reconstruction

    def step(self, rows: Any, number: int | None = None) -> None:
        self.adam.zero_grad(set_to_none=True)
        self.cost_of(self.X[rows], self.drawn(number))[0].backward()
        self.adam.step()

    def run(self, steps: int) -> int:
        import torch

        for _ in range(steps):
            if len(self.order) < self.batch:
                self.order = torch.randperm(len(self.X), device=self.device)
            self.step(self.order[: self.batch])
            self.order = self.order[self.batch :]
        synchronize(self.device)
        return steps


# --- JAX ---


class Jax(ByJax):
    """jax.grad and Adam under jit, a step at a time or, with `scan`, an epoch."""

    def setup(self, row: Row) -> dict[str, Any]:
        import jax
        import jax.numpy as jnp

        self.check_device()
        jax.config.update("jax_default_matmul_precision", "highest")
        made = dict(np.load(row["problem"]))
        n, count = row["batch"], row["batches"]
        cost = jax_costs(row)[row["model"]]
        no_noise = jnp.zeros((n, 0), jnp.float32)
        latents = made["noise"].shape[1] if "noise" in made else 0

        def step(state: Any, x: Any, noise: Any) -> tuple[Any, Any]:
            p, m, v, t = state
            (loss, _), g = jax.value_and_grad(cost, has_aux=True)(p, x, noise)
            t = t + 1
            m = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, m, g)
            v = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, v, g)
            rate, root = RATE / (1 - BETA1**t), (1 - BETA2**t) ** -0.5
            p = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) * root + EPSILON), p, m, v)
            return (p, m, v, t), loss

        def random_step(state: Any, X: Any, rows: Any, key: Any) -> tuple[Any, Any]:
            return step(state, X[rows], jax.random.normal(key, (n, latents)))

        def epoch(state: Any, X: Any, key: Any) -> tuple[Any, Any]:
            order = jax.random.permutation(key, len(X)).reshape(count, n)
            keys = jax.random.split(key, count)
            return jax.lax.scan(lambda state, at: random_step(state, X, *at), state, (order, keys))

        self.X = jax.device_put(made["X"])
        p = {name: jax.device_put(value) for name, value in made.items() if name[0] in "Wb"}
        zeros = jax.tree.map(jnp.zeros_like, p)
        self.state = (p, zeros, jax.tree.map(jnp.copy, zeros), jnp.float32(0))
        self.batch, self.count, self.key = n, count, jax.random.key(0)
        self.one = jax.jit(random_step, donate_argnums=0)
        self.epoch = jax.jit(epoch, donate_argnums=0)
        self.permutation = jax.jit(lambda key: jax.random.permutation(key, count * n).reshape(count, n))
        self.split = jax.jit(jax.random.split)
        self.done = 0
        checked = jax.jit(step)
        for i in range(CHECKED_STEPS):
            noise = made["noise"][i * n : (i + 1) * n] if latents else no_noise
            self.state, _ = checked(self.state, self.X[i * n : (i + 1) * n], noise)
        loss, reconstruction = jax.jit(cost)(self.state[0], self.X[:n], made["noise"][:n] if latents else no_noise)
        return {"loss": float(loss), "reconstruction": float(reconstruction)}

    def run(self, steps: int) -> int:
        import jax

        done = 0
        while done < steps:
            self.key, key = self.split(self.key)
            if self.way == "scan":
                self.state, _ = self.epoch(self.state, self.X, key)
                done += self.count
                continue
            if self.done % self.count == 0:
                self.order = self.permutation(key)
            self.state, _ = self.one(self.state, self.X, self.order[self.done % self.count], key)
            self.done += 1
            done += 1
        jax.block_until_ready(self.state)
        return done


def jax_costs(row: Row) -> dict[str, Callable[..., tuple[Any, Any]]]:
    """Cost and reconstruction of each model by parameters, rows and noise."""
    import jax
    import jax.numpy as jnp

    def affine(p: Any, x: Any, number: int) -> Any:
        return x @ p[f"W{number}"].T + p[f"b{number}"]

    def squared_error(y: Any, x: Any) -> Any:
        return 0.5 * ((y - x) ** 2).sum() / x.shape[0]

    def deep(p: Any, x: Any, noise: Any) -> tuple[Any, Any]:
        a, last = x, len(row["widths"]) - 1
        for number in range(1, last):
            a = jax.nn.relu(affine(p, a, number))
        cost = squared_error(jax.nn.sigmoid(affine(p, a, last)), x)
        return cost, cost

    def convolve(p: Any, a: Any, number: int, transposed: bool) -> Any:
        w = p[f"W{number}"]
        w = w.reshape(len(w), KERNEL, KERNEL, -1)
        pads = ((PADDING, PADDING), (PADDING, PADDING))
        options: dict[str, Any] = {"window_strides": (STRIDE, STRIDE), "padding": pads}
        kernel = "OHWI"
        if transposed:  # the same over an image with zeros between its pixels, the kernel turned round
            low, high = KERNEL - 1 - PADDING, KERNEL - PADDING
            w, kernel = w[:, ::-1, ::-1], "IHWO"
            options = {"window_strides": (1, 1), "padding": ((low, high),) * 2, "lhs_dilation": (STRIDE, STRIDE)}
        z = jax.lax.conv_general_dilated(a, w, dimension_numbers=("NHWC", kernel, "NHWC"), **options)
        return z + p[f"b{number}"]

    def conv(p: Any, x: Any, noise: Any) -> tuple[Any, Any]:
        side = round(row["features"] ** 0.5)
        a = x.reshape(-1, side, side, 1)
        a = jax.nn.relu(convolve(p, a, 1, False))
        a = jax.nn.relu(convolve(p, a, 2, False))
        a = jax.nn.relu(convolve(p, a, 3, True))
        cost = squared_error(jax.nn.sigmoid(convolve(p, a, 4, True)).reshape(x.shape), x)
        return cost, cost

    def variational(p: Any, x: Any, noise: Any) -> tuple[Any, Any]:
        mean, log_variance = jnp.split(affine(p, jax.nn.relu(affine(p, x, 1)), 2), 2, axis=1)
        z = mean + jnp.exp(0.5 * log_variance) * noise
        logits = affine(p, jax.nn.relu(affine(p, z, 3)), 4)
        reconstruction = (jax.nn.softplus(logits) - x * logits).sum() / x.shape[0]
        kl = 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance).sum() / x.shape[0]
        return reconstruction + kl, reconstruction

    def contractive(p: Any, x: Any, noise: Any) -> tuple[Any, Any]:
        h = jax.nn.sigmoid(affine(p, x, 1))
        reconstruction = squared_error(jax.nn.sigmoid(affine(p, h, 2)), x)
        jacobian = ((h * (1 - h)) ** 2).sum(0) @ (p["W1"] ** 2).sum(1) / x.shape[0]
        return reconstruction + CONTRACTION * jacobian, reconstruction

    return {"deep": deep, "conv": conv, "variational": variational, "contractive": contractive}


# --- the products alone ---


def products(row: Row) -> list[tuple[int, int, int]]:
    """Rows, inner dimension and columns of a step's products; of images those of im2col."""
    n, sizes = row["batch"], list(shapes(row).values())
    if row["model"] == "conv":
        small, smaller = row["features"] // STRIDE**2, row["features"] // STRIDE**4
        positions = [small, smaller, smaller, small]
    else:
        positions = [1] * len(sizes)
    made = []
    for i, ((units, inputs), places) in enumerate(zip(sizes, positions, strict=True)):
        many = n * places
        made += [(many, inputs, units), (units, many, inputs)]  # forward, and the weights' gradient
        if i > 0:
            # A Gaussian code passes on as many latents as it has means.
            made.append((many, units, inputs))
    return made


class Products(Worker):
    """The products of a step and nothing else: by NumPy's BLAS on a CPU, by PyTorch's on a GPU."""

    def versions(self) -> dict[str, str]:
        if self.device != "cpu":
            return torch_versions()
        from threadpoolctl import threadpool_info

        found = [f"{i['internal_api']} {i['version']}" for i in threadpool_info() if i["user_api"] == "blas"]
        return {"numpy_blas": ", ".join(sorted(set(found)))}

    def setup(self, row: Row) -> dict[str, Any]:
        random = np.random.default_rng(0)
        self.work: list[Callable[[], Any]] = []
        for m, k, n in products(row):
            a, b = random.random((m, k), np.float32), random.random((k, n), np.float32)
            if self.device == "cpu":
                self.work.append(functools.partial(np.matmul, a, b, out=np.empty((m, n), np.float32)))
                continue
            import torch

            left, right = torch.from_numpy(a).to(self.device), torch.from_numpy(b).to(self.device)
            out = torch.empty((m, n), device=self.device)
            self.work.append(functools.partial(torch.mm, left, right, out=out))
        return {"multiply_adds": sum(m * k * n for m, k, n in products(row))}

    def run(self, steps: int) -> int:
        for _ in range(steps):
            for product in self.work:
                product()
        synchronize(self.device)
        return steps


WAYS = {"torch": (Torch, ("default", "fused", "channels last", "compiled")), "jax": (Jax, ("jit", "scan"))}
WORKERS: dict[str, Callable[[str], Worker]] = {
    "ours": Ours,
    "products": Products,
    **{f"{name} {way}": functools.partial(kind, way=way) for name, (kind, ways) in WAYS.items() for way in ways},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
