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
from sklearn.base import clone

from fastsae._core import DeviceError
from fastsae.arrays import numbers_of
from fastsae.checks import check_choice, check_integer
from fastsae.config import Config
from fastsae.engine import Engine
from fastsae.scaling import Scaler
from fastsae.trainer_state import TrainerState

if TYPE_CHECKING:
    from fastsae.anomaly import AnomalyDetector
    from fastsae.base import Network

FORMAT = "fastsae"
VERSION = 1
_BEST = "best."
_AROUND = "around."
_SCALER = "scaler."
_TRAINER = "trainer."
#: Estimators that a file may hold, and their modules.
ESTIMATORS = {
    "BatchTopKSAE": "saes",
    "ConvAutoencoder": "conv",
    "ContractiveAutoencoder": "contractive",
    "DeepAutoencoder": "deep",
    "DenoisingAutoencoder": "denoising",
    "GatedSAE": "saes",
    "JumpReLUSAE": "saes",
    "L1SAE": "saes",
    "MatryoshkaSAE": "saes",
    "SparseAutoencoder": "estimators",
    "StackedClassifier": "stacked",
    "TopKSAE": "saes",
    "Transcoder": "transcoder",
    "VariationalAutoencoder": "variational",
}
#: Estimators around one of these.
AROUND = {"AnomalyDetector": "anomaly"}


def save(estimator: Network[Any], path: str | os.PathLike[str], around: AnomalyDetector | None = None) -> None:
    """Write a fitted estimator, and the one around it, to `path`.

    What was there stays whole until the new file is complete.

    Raises
    ------
    OSError
        If the file cannot be written; nothing is changed then.
    """
    header, tensors = _pack(estimator)
    if around is not None:
        header |= {
            "around": type(around).__name__,
            "around_parameters": json.dumps(_plain_parameters(around)),
            "feature_names": _feature_names(around),
        }
        tensors |= {_AROUND + name: value for name, value in around._fitted().items()}
    write_atomically(path, to_safetensors(tensors, metadata=header))


def _pack(estimator: Network[Any]) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Header and tensors. Those of an estimator inside are an entry of the header, and tensors ``name.tensor``."""
    engine, state = estimator._engine, estimator._state
    tensors = {name: engine.get(name) for name in engine.state_names()}
    tensors |= {_BEST + name: value for name, value in state.best_parameters.items()}
    tensors |= {_TRAINER + name: value for name, value in state.arrays().items()}
    if scaler := estimator._scaler:
        tensors |= {_SCALER + "center": scaler.center, _SCALER + "scale": scaler.scale}
    parts: dict[str, dict[str, str]] = {}
    for name, part in estimator._parts().items():
        parts[name], held = _pack(part)
        tensors |= {f"{name}.{tensor}": value for tensor, value in held.items()}
    header = {
        "format": FORMAT,
        "version": str(VERSION),
        "class": type(estimator).__name__,
        "parameters": json.dumps(_plain_parameters(estimator)),
        "config": json.dumps(engine.config.to_dict()),
        "steps": json.dumps(engine.steps),
        "averaged": json.dumps(int(engine.averaged)),
        "trainer": json.dumps(state.to_dict()),
        "feature_names": _feature_names(estimator),
        "more": json.dumps(estimator._more_state()),
        "parts": json.dumps(parts),
        "scale": json.dumps(scaler.kind if scaler else ""),
    }
    return header, tensors


def load(path: str | os.PathLike[str]) -> Any:
    """The estimator whose method `save` wrote `path`: an autoencoder, or a detector around one.

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
            header = _Header(file.metadata())
            estimator = _restore(header, file)
            # Training goes on in this file if it is the one that it wrote, and never where a file says.
            own = _file_name(estimator.checkpoint) == os.path.basename(path)
            estimator.checkpoint = path if own else None
            return _restore_around(estimator, header, file) if header.has("around") else estimator
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


def _plain_parameters(estimator: Any) -> dict[str, Any]:
    """The constructor's options that JSON can hold; a random generator or a callback is left out."""
    plain: dict[str, Any] = {}
    for name, value in estimator.get_params(deep=False).items():
        value = _item(value)
        value = os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else value
        value = [_item(entry) for entry in value] if isinstance(value, (tuple, list)) else value
        if all(map(_is_plain, value if isinstance(value, list) else [value])):
            plain[name] = value
    return plain


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _feature_names(estimator: Any) -> str:
    return json.dumps(list(map(str, getattr(estimator, "feature_names_in_", []))))


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

    def has(self, key: str) -> bool:
        return key in self._metadata

    def text(self, key: str) -> str:
        if key not in self._metadata:
            raise ValueError(f"its header lacks {key!r}")
        return self._metadata[key]

    def json(self, key: str, kind: type, absent: Any = None) -> Any:
        if absent is not None and key not in self._metadata:
            return absent
        try:
            value = json.loads(self.text(key))
        except (json.JSONDecodeError, RecursionError):
            raise ValueError(f"its header entry {key!r} is not JSON") from None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"its header entry {key!r} is not of type {kind.__name__}")
        return value


class _Part:
    """The tensors of a file that belong to an estimator inside of another."""

    def __init__(self, file: Any, name: str) -> None:
        self._file, self._prefix = file, name + "."

    def keys(self) -> list[str]:
        return [key.removeprefix(self._prefix) for key in self._file.keys() if key.startswith(self._prefix)]  # noqa: SIM118

    def get_tensor(self, name: str) -> NDArray[Any]:
        tensor: NDArray[Any] = self._file.get_tensor(self._prefix + name)
        return tensor

    def get_slice(self, name: str) -> Any:
        return self._file.get_slice(self._prefix + name)


def _restore_parts(header: _Header, file: Any) -> dict[str, Network[Any]]:
    parts: dict[str, Network[Any]] = {}
    for name, metadata in header.json("parts", dict, {}).items():
        if not isinstance(metadata, dict) or not all(isinstance(entry, str) for entry in metadata.values()):
            raise ValueError("its header entry 'parts' is damaged")
        try:
            parts[name] = _restore(_Header(metadata), _Part(file, name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        parts[name].checkpoint = None  # the file of the whole holds it
    return parts


def _restore(header: _Header, file: Any) -> Network[Any]:
    name = header.text("class")
    if name not in ESTIMATORS:
        raise ValueError(f"it holds an unknown estimator {name!r}")
    kind: type[Network[Any]] = getattr(importlib.import_module(f"fastsae.{ESTIMATORS[name]}"), name)
    config = kind._config_from_dict(header.json("config", dict))
    if not kind._has_model(config):
        raise ValueError(f"its model is not that of a {name}")
    state = TrainerState.from_dict(header.json("trainer", dict))
    # Shapes are compared before any memory is taken for the model.
    _check_shapes(config, file)
    parts = _restore_parts(header, file)
    options = header.json("parameters", dict)
    try:
        estimator = kind(**{n: tuple(value) if isinstance(value, list) else value for n, value in options.items()})
    except TypeError as error:
        raise ValueError(f"its header entry 'parameters': {error}") from None
    engine = _engine_here(config, estimator)
    engine.averaged = header.json("averaged", int, 0) != 0
    others = (*(f"{part}." for part in parts), *((_AROUND,) if header.has("around") else ()))
    stored = {key for key in file.keys() if not key.startswith(others)}  # noqa: SIM118
    kind_of_scale = header.json("scale", str, "")
    scaling = {_SCALER + part: np.ones(config.n_features) for part in ("center", "scale")} if kind_of_scale else {}
    wanted = set(engine.state_names())
    best = {_BEST + learned for learned in engine.learned_names()}
    of_trainer = {} if isinstance(config, Config) else _trainer_arrays(config.n_latents)
    if missing := sorted((wanted | set(scaling) | (best if best & stored else set())) - stored):
        raise ValueError(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(stored - wanted - best - set(scaling) - set(of_trainer)):
        raise ValueError(f"tensor {unknown[0]!r} is unknown")
    for tensor in engine.state_names():  # in this order: a parameter that is set begins its average anew
        engine.set(tensor, _stored(file, tensor, engine.get(tensor)))
    steps = header.json("steps", int)
    check_integer("steps", steps, 0)
    engine.steps = steps
    if best & stored:
        state.best_parameters = {name: _stored(file, _BEST + name, like) for name, like in engine.get_learned().items()}
    for tensor in set(of_trainer) & stored:
        setattr(state, tensor.removeprefix(_TRAINER), _stored(file, tensor, of_trainer[tensor]))
    estimator._adopt(engine, state)
    if kind_of_scale:
        check_choice("scale", kind_of_scale, kind._scales)
        center, scale = (_stored(file, name, like) for name, like in scaling.items())
        if (scale <= 0).any():
            raise ValueError(f"tensor {_SCALER}scale: expected positive numbers")
        estimator._scaler = Scaler(kind_of_scale, center, scale)
    estimator._restore_more(header.json("more", dict, {}), parts)
    feature_names = header.json("feature_names", list)
    if feature_names:
        if len(feature_names) != config.n_features or not all(isinstance(n, str) for n in feature_names):
            raise ValueError("its feature names do not fit the model")
        estimator.feature_names_in_ = np.asarray(feature_names, dtype=object)
    return estimator


def _trainer_arrays(n_latents: int) -> dict[str, NDArray[np.float64]]:
    """What :meth:`fastsae.trainer_state.TrainerState.arrays` may hold of a sparse code."""
    return {_TRAINER + "fired": np.empty(n_latents + 1), _TRAINER + "frequency": np.empty(n_latents)}


def _restore_around(autoencoder: Network[Any], header: _Header, file: Any) -> AnomalyDetector:
    name = header.text("around")
    if name not in AROUND:
        raise ValueError(f"it holds an unknown estimator {name!r}")
    kind: type[AnomalyDetector] = getattr(importlib.import_module(f"fastsae.{AROUND[name]}"), name)
    # One that is no plain value is the estimator that was trained, before its training.
    options = {"autoencoder": clone(autoencoder), **header.json("around_parameters", dict)}
    try:
        estimator = kind(**options)
    except TypeError as error:
        raise ValueError(f"its header entry 'around_parameters': {error}") from None
    like = kind._tensors_like(autoencoder.n_features_in_)
    stored = set(file.keys())
    if unknown := sorted(n for n in stored if n.startswith(_AROUND) and n.removeprefix(_AROUND) not in like):
        raise ValueError(f"tensor {unknown[0]!r} is unknown")
    estimator._adopt(autoencoder, {n: _stored(file, _AROUND + n, value) for n, value in like.items()})
    if hasattr(autoencoder, "feature_names_in_"):  # it sees standardised rows, which have none
        estimator.feature_names_in_ = autoencoder.__dict__.pop("feature_names_in_")
    return estimator


def _engine_here(config: Config, estimator: Network[Any]) -> Engine[Any]:
    """An engine on the estimator's device; one of a GPU or a precision that is not here goes where it can be."""
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
    numbers = numbers_of(value)
    if not np.isfinite(numbers).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity")
    if name.startswith(("second_moment.", "first_scale.", "second_scale.")) and (numbers < 0).any():
        raise ValueError(f"tensor {name!r}: a second moment or a scale cannot be negative")
    return value
