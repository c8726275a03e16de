"""The kinds of layers that read or make images: convolutions, pools, and what undoes them.

Shapes are ``(channels, height, width)``; windows, strides and paddings are square.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from fastsae.checks import check_bool, check_choice, check_integer
from fastsae.layers import Layer, Shape, activation_core, check_penalty, check_winners

MODES = ("max", "mean")
WINNERS = ("", "spatial", "lifetime", "both")


@dataclasses.dataclass(frozen=True)
class ConvConfig(Layer):
    """A convolution, ``a = activation(z + b)`` with

    ``z[o, y, x] = sum over ky, kx, c of W[o, (ky, kx, c)] in[c, y stride + ky - padding, x stride + kx - padding]``

    (a cross-correlation, as in PyTorch), where pixels outside of the image are 0. The output is
    ``floor((size + 2 padding - kernel) / stride) + 1`` high and wide; a border that no window covers is not read.

    Attributes
    ----------
    channels : int
        Number of maps of the output, at least 1. W is [channels, kernel * kernel * channels of the input].
    kernel, stride, padding : int
        Height and width of a window; step from one to the next; zeros around the image, fewer than `kernel`.
    activation, penalty, beta, rho, weight_decay, weight_l1
        As of :class:`fastsae.LayerConfig`. To the penalty a map is one unit, whose activation is its mean over
        the positions; the penalties of single elements are averaged over them.
    per_position : bool
        Each position of a map is a unit of its own to the penalty, with its own mean activation, and the penalties
        of single elements are summed.
    winners : {"", "spatial", "lifetime", "both"}
        Winner-take-all, as of :class:`fastsae.LayerConfig`, by maps: ``spatial`` keeps the largest activation of each
        map of each row, of equal ones the first in reading order; ``lifetime`` keeps each map in the
        ``ceil(lifetime * rows)`` rows of the batch where its largest activation is largest; ``both`` is CONV-WTA.
    lifetime : float
        Share of the rows that lifetime winners have, in (0, 1].
    """

    kind: ClassVar[str] = "conv"

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    activation: str = "relu"
    penalty: str = "none"
    beta: float = 3.0
    rho: float = 0.05
    weight_decay: float | None = None
    per_position: bool = False
    winners: str = ""
    lifetime: float = 0.05
    weight_l1: float | None = None

    def out_shape(self, shape: Shape) -> Shape:
        """``(channels, floor((height + 2 padding - kernel) / stride) + 1, ...)``."""
        high, wide = (int((size + 2 * self.padding - self.kernel) // self.stride + 1) for size in shape[1:])
        return int(self.channels), high, wide

    def weight_shape(self, shape: Shape) -> tuple[int, int]:
        """``(channels, kernel * kernel * channels of the input)``, columns in the order (ky, kx, channel)."""
        return int(self.channels), int(self.kernel) ** 2 * shape[0]

    def multiplications(self, shape: Shape) -> int:
        """See `Layer.multiplications`."""
        return math.prod(self.weight_shape(shape)) * math.prod(self.out_shape(shape)[1:])

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        _check_windows(self, where)
        high, wide = (size + 2 * int(self.padding) for size in shape[1:])
        if self.kernel > min(high, wide):
            raise ValueError(
                f"{where}kernel: expected at most the padded image's size {high} x {wide}, got {self.kernel}"
            )
        check_penalty(self, where, is_last)
        _check_maps(self, where, is_last)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {**_windows_core(self), **activation_core(self), "per_position": self.per_position}

    def mirrors(self, other: Layer) -> bool:
        """See `Layer.mirrors`."""
        return isinstance(other, ConvTransposeConfig) and _same_windows(self, other)


@dataclasses.dataclass(frozen=True)
class ConvTransposeConfig(Layer):
    """A transposed convolution: each pixel of the input adds ``W`` times it to a window of the output.

    ``z[o, y stride + ky - padding, x stride + kx - padding] += sum over c of W[c, (ky, kx, o)] in[c, y, x]``, then
    ``a = activation(z + b)``. It is the transpose of the :class:`fastsae.ConvConfig` of the same options, whose shapes
    it turns around. The output is ``(size - 1) stride - 2 padding + kernel + output_padding`` high and wide.

    Attributes
    ----------
    channels : int
        Number of maps of the output, at least 1. W is [channels of the input, kernel * kernel * channels].
    kernel, stride, padding : int
        Height and width of a window of the output; step from one to the next; border that is cut off, less than
        `kernel`.
    output_padding : int or (int, int)
        Rows and columns added at the far end, less than `stride`: which of the sizes that a convolution maps to
        the input's the output has. One for both, or one for each.
    activation, penalty, beta, rho, weight_decay, per_position, winners, lifetime, weight_l1
        As of :class:`fastsae.ConvConfig`.
    """

    kind: ClassVar[str] = "conv_transpose"

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 0
    output_padding: int | tuple[int, int] = 0
    activation: str = "relu"
    penalty: str = "none"
    beta: float = 3.0
    rho: float = 0.05
    weight_decay: float | None = None
    per_position: bool = False
    winners: str = ""
    lifetime: float = 0.05
    weight_l1: float | None = None

    def out_shape(self, shape: Shape) -> Shape:
        """``(channels, (height - 1) stride - 2 padding + kernel + output_padding, ...)``."""
        grown = self.kernel - 2 * self.padding
        high, wide = (
            int((size - 1) * self.stride + grown + added)
            for size, added in zip(shape[1:], self._output_paddings, strict=True)
        )
        return int(self.channels), high, wide

    def weight_shape(self, shape: Shape) -> tuple[int, int]:
        """``(channels of the input, kernel * kernel * channels)``, columns in the order (ky, kx, channel)."""
        return shape[0], int(self.kernel) ** 2 * int(self.channels)

    def multiplications(self, shape: Shape) -> int:
        """See `Layer.multiplications`."""
        return math.prod(self.weight_shape(shape)) * math.prod(shape[1:])

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        _check_windows(self, where)
        if len(self._output_paddings) != 2:
            raise ValueError(f"{where}output_padding: expected one or two integers, got {self.output_padding!r}")
        for added in self._output_paddings:
            check_integer(where + "output_padding", added, 0)
        if max(self._output_paddings) >= self.stride:
            raise ValueError(
                f"{where}output_padding: expected less than stride={self.stride}, got {self.output_padding}"
            )
        _, high, wide = self.out_shape(shape)
        if min(high, wide) < 1:
            raise ValueError(f"{where}padding: expected an output of at least 1 x 1, got {high} x {wide}")
        check_penalty(self, where, is_last)
        _check_maps(self, where, is_last)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {**_windows_core(self), **activation_core(self), "per_position": self.per_position}

    @property
    def _output_paddings(self) -> tuple[int, ...]:
        both = self.output_padding
        return tuple(both) if isinstance(both, (tuple, list)) else (both, both)

    def mirrors(self, other: Layer) -> bool:
        """See `Layer.mirrors`."""
        return isinstance(other, ConvConfig) and _same_windows(self, other)


@dataclasses.dataclass(frozen=True)
class PoolConfig(Layer):
    """The maximum or the mean of each window of `size` x `size` pixels; windows lie side by side.

    The output is ``floor(height / size)`` high: a border narrower than a window is left out, as in PyTorch.

    Attributes
    ----------
    size : int
        Height and width of a window, at least 1, and the step from one to the next.
    mode : {"max", "mean"}
        Of equal maxima the first in reading order is chosen, and gets all of the gradient.
    """

    kind: ClassVar[str] = "pool"

    size: int = 2
    mode: str = "max"

    def out_shape(self, shape: Shape) -> Shape:
        """``(channels, floor(height / size), floor(width / size))``."""
        return shape[0], int(shape[1] // self.size), int(shape[2] // self.size)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        check_integer(where + "size", self.size, 1, _LARGEST)
        check_choice(where + "mode", self.mode, MODES)
        if self.size > min(shape[1:]):
            raise ValueError(f"{where}size: expected at most the image's size {shape[1]} x {shape[2]}, got {self.size}")

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {"kind": f"{self.mode}_pool", "kernel": self.size, "stride": self.size}


@dataclasses.dataclass(frozen=True)
class UnpoolConfig(Layer):
    """Each pixel becomes a window of `size` x `size` pixels: the transpose of a pool.

    Attributes
    ----------
    size : int
        Height and width of a window, at least 1.
    mode : {"max", "mean"}
        - ``max``: the value goes where the mirrored max pool found it in the same pass, and the rest is 0. The mirrored
          pool is the last one before it, of this size and with an output of the shape of this input, that no other
          unpooling mirrors. A code alone does not know the places: where the pool is part of the encoder, `decode`
          raises and `reconstruct` works (the "switches" of Zeiler, Taylor and Fergus, 2011).
        - ``mean``: every pixel of the window becomes ``value / size^2``, as the gradient of a mean pool does; sums are
          kept. To repeat the value itself use :class:`fastsae.UpsampleConfig`.
    """

    kind: ClassVar[str] = "unpool"

    size: int = 2
    mode: str = "max"

    def out_shape(self, shape: Shape) -> Shape:
        """``(channels, height * size, width * size)``."""
        return shape[0], int(shape[1] * self.size), int(shape[2] * self.size)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        check_integer(where + "size", self.size, 1, _LARGEST)
        check_choice(where + "mode", self.mode, MODES)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {"kind": f"{self.mode}_unpool", "kernel": self.size, "stride": self.size}


@dataclasses.dataclass(frozen=True)
class UpsampleConfig(Layer):
    """Each pixel is repeated in a window of `factor` x `factor` pixels (nearest neighbour).

    Attributes
    ----------
    factor : int
        Height and width of a window, at least 1.
    """

    kind: ClassVar[str] = "upsample"

    factor: int = 2

    def out_shape(self, shape: Shape) -> Shape:
        """``(channels, height * factor, width * factor)``."""
        return shape[0], int(shape[1] * self.factor), int(shape[2] * self.factor)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        check_integer(where + "factor", self.factor, 1, _LARGEST)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {"kernel": self.factor, "stride": self.factor}


@dataclasses.dataclass(frozen=True)
class ReshapeConfig(Layer):
    """The same numbers, one channel after the other, as a row of another shape.

    A dense layer needs none before it: it reads an image as the flattened row.

    Attributes
    ----------
    shape : tuple of int
        ``(channels, height, width)``, as many numbers as there are.
    """

    kind: ClassVar[str] = "reshape"

    shape: Shape

    def out_shape(self, shape: Shape) -> Shape:
        """`shape`."""
        channels, high, wide = self.shape
        return int(channels), int(high), int(wide)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        if not isinstance(self.shape, (tuple, list)) or len(self.shape) != 3:
            raise ValueError(f"{where}shape: expected (channels, height, width), got {self.shape!r}")
        for size in self.shape:
            check_integer(where + "shape", size, 1)
        if math.prod(self.shape) != math.prod(shape):
            raise ValueError(f"{where}shape: expected {math.prod(shape)} numbers like {shape}, got {self.shape!r}")


#: Of a window that is counted through in the type of the model: float32 is exact up to 2^24.
_LARGEST = 4096


def _check_windows(layer: ConvConfig | ConvTransposeConfig, where: str) -> None:
    for name in ("channels", "kernel", "stride"):
        check_integer(where + name, getattr(layer, name), 1)
    check_integer(where + "padding", layer.padding, 0)
    if layer.padding >= layer.kernel:
        raise ValueError(f"{where}padding: expected less than kernel={layer.kernel}, got {layer.padding}")


def _check_maps(layer: ConvConfig | ConvTransposeConfig, where: str, is_last: bool) -> None:
    check_bool(where + "per_position", layer.per_position)
    check_winners(layer, where, WINNERS, is_last)


def _windows_core(layer: ConvConfig | ConvTransposeConfig) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in ("kernel", "stride", "padding")}


def _same_windows(one: ConvConfig | ConvTransposeConfig, other: ConvConfig | ConvTransposeConfig) -> bool:
    return _windows_core(one) == _windows_core(other)
