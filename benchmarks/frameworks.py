"""What contenders by PyTorch, or by JAX, have in common."""

from __future__ import annotations

from worker import Row, Worker


class ByTorch(Worker):
    """In one of several ways."""

    def __init__(self, device: str, way: str) -> None:
        super().__init__(device)
        self.way = way

    def versions(self) -> dict[str, str]:
        return torch_versions()

    def release(self) -> None:
        import torch

        super().release()
        torch._dynamo.reset()
        if self.device != "cpu":
            torch.cuda.empty_cache()


class ByJax(Worker):
    """In one of several ways."""

    def __init__(self, device: str, way: str) -> None:
        super().__init__(device)
        self.way = way

    def versions(self) -> dict[str, str]:
        import jax

        return {"jax": jax.__version__, "jax_backend": jax.default_backend()}

    def check_device(self) -> None:
        import jax

        if self.device != "cpu" and jax.default_backend() != "gpu":
            raise RuntimeError(f"JAX computes on {jax.default_backend()} here")

    def release(self) -> None:
        import jax

        super().release()
        jax.clear_caches()


def torch_versions() -> dict[str, str]:
    import torch

    return {"torch": torch.__version__, "torch_cuda": str(torch.version.cuda)}


def use_precision(row: Row) -> None:
    """Full float32 or TF32 in PyTorch's products."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = row["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
