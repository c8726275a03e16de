"""One safetensors file with a fitted estimator: options, parameters and all that training continues from."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from fastsae._core import DeviceError
from fastsae.checks import check_integer
from fastsae.config import Config
from fastsae.engine import Engine
from fastsae.trainer import TrainerState

if TYPE_CHECKING:
    from fastsae.base import Autoencoder

FORMAT = "fastsae"
VERSION = 1
_BEST = "best."
#: Estimators that a file may hold, and their modules.
ESTIMATORS = {
    "ContractiveAutoencoder": "contractive",
    "DenoisingAutoencoder": "denoising",
    "SparseAutoencoder": "estimators",
    "VariationalAutoencoder": "variational",
}


def save(estimator: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to `path`; what was there stays whole until the new file is complete.

    Raises
    ------
    OSError
        If the file cannot be written; nothing is changed then.
    """
    engine, state = estimator._engine, estimator._state
    tensors = {name: engine.get(name) for name in engine.state_names()}
    tensors |= {_BEST + name: value for name, value in state.best_parameters.items()}
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "class": type(estimator).__name__,
        "parameters": json.dumps(_plain_parameters(estimator)),
        "config": json.dumps(engine.config.to_dict()),
        "steps": json.dumps(engine.steps),
        "trainer": json.dumps(state.to_dict()),
        "feature_names": json.dumps(list(map(str, getattr(estimator, "feature_names_in_", [])))),
    }
    write_atomically(path, to_safetensors(tensors, metadata=header))


def load(path: str | os.PathLike[str]) -> Autoencoder:
    """The estimator that :meth:`fastsae.SparseAutoencoder.save` wrote.

    Parameters
    ----------
    path : path-like
        A file written by fastsae. Nothing in it is executed. If training wrote it as its `checkpoint`, `resume` goes
        on writing to it; the `checkpoint` of a file that `save` wrote under another name is None.

    Raises
    ------
    FileNotFoundError, OSError
        If the file cannot be read.
    ValueError
        If it is damaged, truncated, not a fastsae file, from a newer version, or holds what no model can hold.
    """
    path = os.fsdecode(path)
    with open(path, "rb"):  # a missing or unreadable file is an OSError
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            estimator = _restore(_Header(file.metadata()), file)
            # Training goes on in this file if it is the one that it wrote, and never where a file says.
            own = _file_name(estimator.checkpoint) == os.path.basename(path)
            estimator.checkpoint = path if own else None
            return estimator
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path}: not a usable fastsae checkpoint: {error}") from None


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a temporary file beside `path`, flush it to disk, and rename it."""
    path = os.fsdecode(path)
    check_target(path)
    folder = os.path.dirname(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(prefix=os.path.basename(path) + ".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # the new file is complete; some file systems cannot flush a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_target(path: str | os.PathLike[str]) -> None:
    """Raise OSError if a file cannot be written to `path`, as far as that is known without writing."""
    path = os.fsdecode(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not path or (os.path.lexists(path) and not os.path.isfile(path)):
        raise OSError(errno.EINVAL, "expected a path to a regular file", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", folder)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "the folder cannot be written to", folder)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _plain_parameters(estimator: Autoencoder) -> dict[str, Any]:
    """The constructor's options that JSON can hold; a random generator or a callback is left out."""
    plain: dict[str, Any] = {}
    for name, value in estimator.get_params(deep=False).items():
        value = value.item() if isinstance(value, np.generic) else value
        value = os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else value
        value = list(map(int, value)) if _is_of_integers(value) else value
        if value is None or isinstance(value, (bool, int, float, str, list)):
            plain[name] = value
    return plain


def _is_of_integers(value: object) -> bool:
    """Whether it is a tuple of layer sizes or the like."""
    return isinstance(value, (tuple, list)) and all(isinstance(entry, (int, np.integer)) for entry in value)


def _file_name(path: object) -> str | None:
    return os.path.basename(path) if isinstance(path, str) else None


class _Header:
    """The metadata of a file, read with suspicion."""

    def __init__(self, metadata: Mapping[str, str] | None) -> None:
        self._metadata = metadata or {}
        if self._metadata.get("format") != FORMAT:
            raise ValueError("it has no fastsae header")
        if not 1 <= self.json("version", int) <= VERSION:
            raise ValueError(f"it has version {self.text('version')}, this fastsae reads 1 to {VERSION}")

    def text(self, key: str) -> str:
        if key not in self._metadata:
            raise ValueError(f"its header lacks {key!r}")
        return self._metadata[key]

    def json(self, key: str, kind: type) -> Any:
        try:
            value = json.loads(self.text(key))
        except (json.JSONDecodeError, RecursionError):
            raise ValueError(f"its header entry {key!r} is not JSON") from None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its header entry {key!r} is not of type {kind.__name__}")
        return value


def _restore(header: _Header, file: Any) -> Autoencoder:
    name = header.text("class")
    if name not in ESTIMATORS:
        raise ValueError(f"it holds an unknown estimator {name!r}")
    kind: type[Autoencoder] = getattr(importlib.import_module(f"fastsae.{ESTIMATORS[name]}"), name)
    config = Config.from_dict(header.json("config", dict))
    if not kind._has_model(config):
        raise ValueError(f"its layers are not those of a {name}")
    state = TrainerState.from_dict(header.json("trainer", dict))
    # Shapes are compared before any memory is taken for the model.
    _check_shapes(config, file)
    try:
        options = header.json("parameters", dict)
        estimator = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
    except TypeError as error:
        raise ValueError(f"its header entry 'parameters': {error}") from None
    engine = _engine_here(config, estimator)
    stored = set(file.keys())
    wanted = set(engine.state_names())
    best = {_BEST + parameter for parameter in config.parameter_shapes}
    if missing := sorted((wanted | best if best & stored else wanted) - stored):
        raise ValueError(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(stored - wanted - best):
        raise ValueError(f"tensor {unknown[0]!r} is unknown")
    for tensor in wanted:
        engine.set(tensor, _stored(file, tensor, engine.get(tensor)))
    steps = header.json("steps", int)
    check_integer("steps", steps, 0)
    engine.steps = steps
    if best & stored:
        state.best_parameters = {
            name: _stored(file, _BEST + name, like) for name, like in engine.get_parameters().items()
        }
    estimator._adopt(engine, state)
    feature_names = header.json("feature_names", list)
    if feature_names:
        if len(feature_names) != config.n_features or not all(isinstance(n, str) for n in feature_names):
            raise ValueError("its feature names do not fit the model")
        estimator.feature_names_in_ = np.asarray(feature_names, dtype=object)
    return estimator


def _engine_here(config: Config, estimator: Autoencoder) -> Engine:
    """An engine on the estimator's device; a model of a GPU that is not here goes to another device."""
    try:
        return Engine(config, estimator.device)
    except DeviceError:
        estimator.device, estimator.precision = "auto", Config.precision
        config = dataclasses.replace(config, precision=Config.precision)
    except ValueError:
        pass  # an option that cannot be is refused when it is used, as all options are
    return Engine(config)


def _check_shapes(config: Config, file: Any) -> None:
    stored = set(file.keys())
    for name, shape in config.parameter_shapes.items():
        if name not in stored:
            raise ValueError(f"tensor {name!r} is missing")
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise ValueError(f"tensor {name!r}: expected shape {shape}, got {found}")


def _stored(file: Any, name: str, like: NDArray[Any]) -> NDArray[Any]:
    try:
        value: NDArray[Any] = file.get_tensor(name)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"tensor {name!r}: unknown dtype: {error}") from None
    if value.dtype != like.dtype or value.shape != like.shape:
        raise ValueError(f"tensor {name!r}: expected {like.dtype} {like.shape}, got {value.dtype} {value.shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity")
    if name.startswith("second_moment.") and (value < 0).any():
        raise ValueError(f"tensor {name!r}: a second moment cannot be negative")
    return value
