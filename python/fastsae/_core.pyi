"""
The compiled part of fastsae.
"""
from __future__ import annotations
import numpy
import numpy.typing
import typing
import typing_extensions
__all__: list[str] = ['DeviceArray', 'DeviceError', 'Engine', 'Stop', 'TopKEncoder', 'become_worker', 'bf16_unit', 'blas', 'cuda_blas', 'cuda_unavailable_reason', 'devices', 'is_readable', 'is_writable', 'isa', 'kernel_names', 'num_threads', 'product', 'product_provider', 'set_num_threads']
class DeviceError(RuntimeError):
    """
    A device, or a library it needs, cannot be used.
    """
class DeviceArray:
    """
    Rows in the memory of an engine's device.
    
    What `fastsae.Engine` and `fastsae.TopKEncoder` give for a tensor of their device, and what `fastsae.Engine.hold`
    keeps there. ``torch.from_dlpack``, ``cupy.from_dlpack`` and ``jax.dlpack.from_dlpack`` take it without a copy; `numpy`
    copies it to the host. It does not turn into a NumPy array by itself.
    """
    def __dlpack__(self, *, stream: typing.Any = None, max_version: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None = None, dl_device: tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex] | None = None, copy: bool | None = None) -> typing_extensions.CapsuleType:
        """
        A DLPack capsule; all work on the array is done, whatever stream the consumer names.
        """
    def __dlpack_device__(self) -> tuple:
        ...
    def __len__(self) -> int:
        ...
    def __repr__(self) -> str:
        ...
    def numpy(self) -> numpy.ndarray:
        """
        A copy as a NumPy array.
        
        Returns
        -------
        ndarray
            Of the same shape and dtype.
        
        Raises
        ------
        ValueError
            For bfloat16, which NumPy lacks.
        """
    @property
    def device(self) -> str:
        """
        "cpu", or "cuda:0", ...
        """
    @property
    def dtype(self) -> str:
        """
        "float32", "float64", "float16", "bfloat16" or "int32".
        """
    @property
    def shape(self) -> tuple:
        """
        Sizes, as a tuple of int.
        """
class Engine:
    averaged: bool
    def __init__(self, config: dict, device: str, full_batch_rows: typing.SupportsInt | typing.SupportsIndex = 0) -> None:
        ...
    def borrow(self, name: str, tensor: typing.Any, integers: bool = False) -> DeviceArray:
        ...
    def decode(self, H: DeviceArray | numpy.ndarray, out: DeviceArray | numpy.ndarray) -> None:
        ...
    def empty(self, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex, dtype: str) -> DeviceArray:
        ...
    def encode(self, X: DeviceArray | numpy.ndarray, out: DeviceArray | numpy.ndarray) -> None:
        ...
    def encode_distribution(self, X: DeviceArray | numpy.ndarray, out: DeviceArray | numpy.ndarray) -> None:
        ...
    def encode_sparse(self, X: DeviceArray | numpy.ndarray) -> tuple:
        ...
    def evaluate(self, X: DeviceArray | numpy.ndarray, sample_weight: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, targets: DeviceArray | numpy.ndarray | None, numbers: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None) -> dict:
        ...
    def first_row_outside(self, X: DeviceArray, low: typing.SupportsFloat | typing.SupportsIndex, high: typing.SupportsFloat | typing.SupportsIndex) -> int:
        ...
    def get(self, name: str) -> numpy.ndarray:
        ...
    def gradient(self, X: DeviceArray | numpy.ndarray, sample_weight: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, targets: DeviceArray | numpy.ndarray | None, numbers: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None) -> dict:
        ...
    def has_room(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> bool:
        ...
    def metrics(self) -> dict:
        ...
    def names(self) -> list[str]:
        ...
    def reconstruct(self, X: DeviceArray | numpy.ndarray, out: DeviceArray | numpy.ndarray) -> None:
        ...
    def reset_metrics(self) -> None:
        ...
    def run(self, X: DeviceArray | numpy.ndarray, order: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None, batch_size: typing.SupportsInt | typing.SupportsIndex, sample_weight: typing.Annotated[numpy.typing.ArrayLike, numpy.float64] | None, targets: DeviceArray | numpy.ndarray | None, numbers: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None) -> None:
        ...
    def score(self, X: DeviceArray | numpy.ndarray, targets: DeviceArray | numpy.ndarray | None) -> numpy.typing.NDArray[numpy.float64]:
        ...
    def score_code(self, H: DeviceArray | numpy.ndarray, targets: DeviceArray | numpy.ndarray) -> numpy.typing.NDArray[numpy.float64]:
        ...
    def set(self, name: str, value: numpy.ndarray) -> None:
        ...
    def take(self, X: DeviceArray | numpy.ndarray, order: typing.Annotated[numpy.typing.ArrayLike, numpy.int64] | None, to: DeviceArray, first: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def view(self, X: numpy.ndarray) -> DeviceArray | None:
        ...
    @property
    def code_width(self) -> int:
        ...
    @property
    def epoch(self) -> int:
        ...
    @epoch.setter
    def epoch(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def learning_rate(self) -> float:
        ...
    @learning_rate.setter
    def learning_rate(self, arg1: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    @property
    def noise_seed(self) -> int:
        ...
    @noise_seed.setter
    def noise_seed(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def place(self) -> tuple[int, int]:
        ...
    @property
    def steps(self) -> int:
        ...
    @steps.setter
    def steps(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    @property
    def total_steps(self) -> int:
        ...
    @total_steps.setter
    def total_steps(self, arg1: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
class TopKEncoder:
    def __init__(self, weight: numpy.ndarray, bias: numpy.ndarray | None, k: typing.SupportsInt | typing.SupportsIndex, device: str, dtype: str, precision: str) -> None:
        ...
    def borrow(self, name: str, tensor: typing.Any, integers: bool = False) -> DeviceArray:
        ...
    def empty(self, rows: typing.SupportsInt | typing.SupportsIndex, cols: typing.SupportsInt | typing.SupportsIndex, dtype: str) -> DeviceArray:
        ...
    def encode(self, X: DeviceArray | numpy.ndarray, values: DeviceArray | numpy.ndarray, indices: DeviceArray | numpy.ndarray) -> None:
        ...
    def get(self, name: str) -> numpy.ndarray:
        ...
    def names(self) -> list[str]:
        ...
    @property
    def place(self) -> tuple[int, int]:
        ...
class Stop:
    def __init__(self) -> None:
        ...
    def set(self) -> None:
        ...
def become_worker(stop: Stop, threads: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    The work of this thread takes at most so many threads, and raises KeyboardInterrupt once `stop` is set.
    """
def bf16_unit() -> str | None:
    ...
def blas() -> str:
    ...
def cuda_blas() -> str:
    ...
def cuda_unavailable_reason() -> str:
    ...
def devices() -> list[str]:
    ...
def is_readable(X: typing.Any, cols: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether X is an array of so many columns whose rows are read where they are.
    """
def is_writable(out: typing.Any, X: numpy.ndarray, cols: typing.SupportsInt | typing.SupportsIndex, dtype: str) -> bool:
    """
    Whether out is an array that so many numbers for each row of X are written to where it is.
    """
def isa() -> str:
    ...
def kernel_names() -> dict[str, list[str]]:
    ...
def num_threads() -> int:
    ...
def product(a: numpy.ndarray, b: numpy.ndarray, out: numpy.ndarray, transpose_a: bool = False, transpose_b: bool = False, accumulate: bool = False, repeats: typing.SupportsInt | typing.SupportsIndex = 1) -> float:
    """
    out = a b, or out += a b, on the CPU; returns the seconds that one took.
    """
def product_provider(transpose_a: bool, transpose_b: bool, m: typing.SupportsInt | typing.SupportsIndex, n: typing.SupportsInt | typing.SupportsIndex, k: typing.SupportsInt | typing.SupportsIndex, dtype: typing.Any) -> str:
    """
    Who computes an (m x k) by (k x n) product on the CPU: 'blas', or 'panels' of our own.
    """
def set_num_threads(count: typing.SupportsInt | typing.SupportsIndex) -> None:
    ...
