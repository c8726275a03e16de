"""Folders with a JSON file of options and a safetensors file of weights, read with suspicion."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_safetensors

from fastsae.checkpoint import write_atomically
from fastsae.checks import is_bool

Array = NDArray[Any]

CONFIG = "cfg.json"

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


class Options:
    """The options in a folder's ``cfg.json``.

    Raises
    ------
    FileNotFoundError, OSError
        If the file cannot be read.
    ValueError
        If it is not a JSON object; the methods, if a field has another type or value than it must have.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(os.fsdecode(folder)) / CONFIG
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path}: it is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{self.path}: expected an object, got {type(values).__name__}")
        self.values: dict[str, Any] = values

    def integer(self, name: str, low: int, default: int | None = None) -> int:
        """An integer from `low` on."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise self.wrong(name, f"an integer >= {low}", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise self.wrong(name, "a number", value)
        return value

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or False."""
        value = self._get(name, default)
        if not is_bool(value):
            raise self.wrong(name, "true or false", value)
        return bool(value)

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of several words."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, f"one of {', '.join(map(repr, choices))}", value)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Integers from 1 on."""
        value = self._get(name, None)
        good = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in value)
        if not good:
            raise self.wrong(name, "a list of integers >= 1", value)
        return tuple(value)

    def wrong(self, name: str, wanted: str, value: object) -> ValueError:
        """The error of a field."""
        return ValueError(f"{self.path}: field {name!r}: expected {wanted}, got {value!r}")

    def _get(self, name: str, default: Any) -> Any:
        if name not in self.values and default is None:
            raise ValueError(f"{self.path}: field {name!r} is missing")
        return self.values.get(name, default)


def read_tensors(path: Path, shapes: Mapping[str, tuple[int, ...]], optional: Sequence[str] = ()) -> dict[str, Array]:
    """The tensors of a file by name, in float32 or float64.

    Parameters
    ----------
    path : Path
    shapes : dict
        The shape that each must have.
    optional : sequence of str
        Those that may be missing.

    Raises
    ------
    FileNotFoundError, OSError
        If the file cannot be read.
    ValueError
        If it is no safetensors file, a tensor is missing or unknown, or has another shape or type, or is not finite.
    """
    content = path.read_bytes()
    try:
        stored: dict[str, Mapping[str, Any]] = dict(deserialize(content))  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise ValueError(f"{path}: it is not a safetensors file: {error}") from None
    if missing := sorted(set(shapes) - set(stored) - set(optional)):
        raise ValueError(f"{path}: tensor {missing[0]!r} is missing")
    if unknown := sorted(set(stored) - set(shapes)):
        raise ValueError(f"{path}: tensor {unknown[0]!r} is unknown")
    return {name: _tensor(path, name, stored[name], shapes[name]) for name in shapes if name in stored}


def write_folder(
    folder: str | os.PathLike[str], weights: str, config: Mapping[str, Any], tensors: Mapping[str, Array]
) -> None:
    """Both files, each atomically; the folder is made if it is not there.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    path = Path(os.fsdecode(folder))
    path.mkdir(parents=True, exist_ok=True)
    write_atomically(path / weights, to_safetensors({name: np.ascontiguousarray(t) for name, t in tensors.items()}))
    write_atomically(path / CONFIG, json.dumps(config).encode())


def _tensor(path: Path, name: str, stored: Mapping[str, Any], shape: tuple[int, ...]) -> Array:
    kind, found = stored["dtype"], tuple(stored["shape"])
    if found != shape:
        raise ValueError(f"{path}: tensor {name!r}: expected shape {shape}, got {found}")
    if kind == "BF16":  # the upper half of a float32
        upper = np.frombuffer(stored["data"], "<u2").astype(np.uint32) << np.uint32(16)
        values: Array = upper.view(np.float32)
    elif kind in _TYPES:
        values = np.frombuffer(stored["data"], np.dtype(_TYPES[kind]).newbyteorder("<"))
        values = values.astype(np.float64 if kind == "F64" else np.float32)
    else:
        raise ValueError(f"{path}: tensor {name!r}: expected one of BF16, {', '.join(_TYPES)}, got {kind}")
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: tensor {name!r} holds NaN or infinity")
    return values.reshape(shape)
