"""The layers of images, window by window; arrays are [N, channels, height, width] inside.

Kernels are [out, in, ky, kx] and cross-correlate, as in PyTorch. See :mod:`fastsae.image_layers` for the options.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastsae.config import Shape
from fastsae.reference.activations import Array


class Conv:
    """``z[o, y, x] = sum W[o, (ky, kx, c)] in[c, y s + ky - p, x s + kx - p]``, zeros outside of the image."""

    transposes_tied = False

    def __init__(self, layer: Any, in_shape: Shape, out_shape: Shape) -> None:
        self.in_shape, self.out_shape = in_shape, out_shape
        self.kernel, self.stride, self.padding = layer.kernel, layer.stride, layer.padding

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(self.gather(_images(x, self.in_shape), self.unpacked(weight), self.out_shape))

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(self.scatter(_images(delta, self.out_shape), self.unpacked(weight), self.in_shape))

    def weight_gradient(self, x: Array, delta: Array) -> Array:
        """See `LayerOp`."""
        return self.correlate(_images(x, self.in_shape), _images(delta, self.out_shape))

    def unpacked(self, weight: Array | None) -> Array:
        """W [small's channels, (ky, kx, large's channels)] as [ky, kx, small's channels, large's channels]."""
        assert weight is not None
        taps: Array = weight.reshape(len(weight), self.kernel, self.kernel, -1).transpose(1, 2, 0, 3)
        return taps

    def taps(self, small: Shape) -> Iterator[tuple[int, int, slice, slice]]:
        """Each (ky, kx), and the pixels of the padded large image that it meets over all windows."""
        for ky in range(self.kernel):
            for kx in range(self.kernel):
                rows = slice(ky, ky + self.stride * (small[1] - 1) + 1, self.stride)
                yield ky, kx, rows, slice(kx, kx + self.stride * (small[2] - 1) + 1, self.stride)

    def gather(self, large: Array, taps: Array, small: Shape) -> Array:
        """From the large images to the small ones."""
        padded = self.padded(large)
        out = np.zeros((len(large), *small), large.dtype)
        for ky, kx, rows, cols in self.taps(small):
            out += np.einsum("nchw,oc->nohw", padded[:, :, rows, cols], taps[ky, kx])
        return out

    def scatter(self, small: Array, taps: Array, large: Shape) -> Array:
        """Its transpose: from the small images to the large ones."""
        shape: Shape = small.shape[1:]
        padded = self.padded(np.zeros((len(small), *large), small.dtype))
        for ky, kx, rows, cols in self.taps(shape):
            padded[:, :, rows, cols] += np.einsum("nohw,oc->nchw", small, taps[ky, kx])
        _, high, wide = large
        cut: Array = padded[:, :, self.padding : self.padding + high, self.padding : self.padding + wide]
        return cut

    def correlate(self, large: Array, small: Array) -> Array:
        """The gradient of W."""
        shape: Shape = small.shape[1:]
        padded = self.padded(large)
        out = np.zeros((shape[0], self.kernel, self.kernel, large.shape[1]), large.dtype)
        for ky, kx, rows, cols in self.taps(shape):
            out[:, ky, kx] = np.einsum("nohw,nchw->oc", small, padded[:, :, rows, cols])
        return out.reshape(shape[0], -1)

    def padded(self, large: Array) -> Array:
        """With zeros around."""
        border = (self.padding, self.padding)
        return np.pad(large, ((0, 0), (0, 0), border, border))


class ConvTranspose(Conv):
    """``z[o, y s + ky - p, x s + kx - p] += sum over c of W[c, (ky, kx, o)] in[c, y, x]``."""

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(self.scatter(_images(x, self.in_shape), self.unpacked(weight), self.out_shape))

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(self.gather(_images(delta, self.out_shape), self.unpacked(weight), self.in_shape))

    def weight_gradient(self, x: Array, delta: Array) -> Array:
        """See `LayerOp`."""
        return self.correlate(_images(delta, self.out_shape), _images(x, self.in_shape))


class Weightless:
    """A layer that is linear once the places of maxima are chosen: `up` is the transpose of `down`, by windows."""

    transposes_tied = False

    def __init__(self, layer: Any, in_shape: Shape, out_shape: Shape) -> None:
        self.in_shape, self.out_shape = in_shape, out_shape
        self.layer = layer

    def weight_gradient(self, x: Array, delta: Array) -> Array:
        """There are no weights."""
        raise NotImplementedError


class Pool(Weightless):
    """The mean of each window, or its first maximum; `shares` [N, c, h, w, size, size] is how the pixels count."""

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`; a max pool remembers the places for what mirrors it."""
        windows = _windows(_images(x, self.in_shape), self.out_shape, self.layer.size)
        if self.layer.mode == "mean":
            self.shares = np.full_like(windows, 1 / self.layer.size**2)
        else:
            flat = windows.reshape(*windows.shape[:4], -1)
            places = np.arange(self.layer.size**2) == flat.argmax(axis=-1)[..., None]
            self.shares = places.reshape(windows.shape).astype(x.dtype)
        return _flat((windows * self.shares).sum(axis=(4, 5)))

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        out = np.zeros((len(delta), *self.in_shape), delta.dtype)
        values = _images(delta, self.out_shape)[..., None, None]
        _windows(out, self.out_shape, self.layer.size)[...] = values * self.shares
        return _flat(out)


class Unpool(Weightless):
    """Each number times its shares of a window: those of the mirrored max pool `pool`, or all ``1 / size^2``."""

    pool: Pool | None = None

    def shares(self) -> Array | float:
        """How the pixels of each window count."""
        return 1 / self.layer.size**2 if self.pool is None else self.pool.shares

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        out = np.zeros((len(x), *self.out_shape), x.dtype)
        _windows(out, self.in_shape, self.layer.size)[...] = _images(x, self.in_shape)[..., None, None] * self.shares()
        return _flat(out)

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        windows = _windows(_images(delta, self.out_shape), self.in_shape, self.layer.size)
        return _flat((windows * self.shares()).sum(axis=(4, 5)))


class Upsample(Weightless):
    """Each pixel repeated in a window."""

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(_images(x, self.in_shape).repeat(self.layer.factor, axis=2).repeat(self.layer.factor, axis=3))

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return _flat(_windows(_images(delta, self.out_shape), self.in_shape, self.layer.factor).sum(axis=(4, 5)))


class Reshape(Weightless):
    """The same numbers."""

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return x

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        return delta


def _images(rows: Array, shape: Shape) -> Array:
    return rows.reshape(len(rows), *shape)


def _flat(images: Array) -> Array:
    return images.reshape(len(images), -1)


def _windows(images: Array, small: Shape, size: int) -> Array:
    """A view [N, c, h, w, size, size] of the windows of `size` x `size` pixels that lie side by side."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(2, 3), writeable=True)
    view: Array = windows[:, :, : small[1] * size : size, : small[2] * size : size]
    return view
