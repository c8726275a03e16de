"""Arrays that come and go by DLPack, and rows that are held in the device's memory.

On the CPU the device's memory is the host's, so that the whole protocol runs here without a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastsae import Config, DeviceArray, Engine, LayerConfig, SparseAutoencoder
from fastsae.initializers import initialize

N, D, H = 301, 7, 5


def data(n: int = N, d: int = D, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(3).random((n, d)).astype(dtype)


def made(device: str = "cpu", dtype: str = "float32", **options: Any) -> Engine:
    layers = (LayerConfig(H, penalty="kl", beta=0.3), LayerConfig(D))
    config = Config(D, layers, weight_decay=1e-3, dtype=dtype, **options)
    engine = Engine(config, device)
    engine.set_parameters(initialize(config, "glorot", np.random.default_rng(0)))
    return engine


def held(engine: Engine, X: np.ndarray) -> DeviceArray:
    array = engine.hold(X)
    assert isinstance(array, DeviceArray)
    return array


def everything(engine: Engine) -> dict[str, bytes]:
    return {name: engine.get(name).tobytes() for name in engine.state_names()}


# --- a producer of our own: the structs of DLPack, and a count of what is deleted ---


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype = ctypes.c_char_p
capsule_name.argtypes = [ctypes.py_object]

# A consumer lets go of a tensor when it likes, also after the last name of its producer is gone.
LENT: set[Producer] = set()

TYPES = {"float16": (2, 16), "float32": (2, 32), "float64": (2, 64), "int32": (0, 32), "bfloat16": (4, 16)}


class Producer:
    """A tensor over the memory of `array`, that says of itself what it is told to say."""

    def __init__(
        self,
        array: np.ndarray,
        *,
        versioned: bool = True,
        place: tuple[int, int] = (1, 0),
        claims: tuple[int, int] | None = None,
        kind: tuple[int, int] | None = None,
        lanes: int = 1,
        major: int = 1,
        read_only: bool = False,
        dense: bool = False,
        offset: int = 0,
        knows_versions: bool = True,
    ) -> None:
        self.array = array
        self.shape = array.shape
        self.deleted = 0
        self.asked: list[dict[str, Any]] = []
        self._claims = claims or place
        self._knows_versions = knows_versions
        self._versioned = versioned
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        strides = (ctypes.c_int64 * array.ndim)(*(s // array.itemsize for s in array.strides))
        code, bits = kind or TYPES[array.dtype.name]
        tensor = Tensor(
            array.ctypes.data - offset,
            Device(*place),
            array.ndim,
            Type(code, bits, lanes),
            shape,
            None if dense else strides,
            offset,
        )
        self._deleter = Deleter(self._delete)
        if versioned:
            self._managed: Any = Versioned(major, 0, None, self._deleter, int(read_only), tensor)
        else:
            self._managed = Managed(tensor, None, self._deleter)
        self._alive = (shape, strides)

    def _delete(self, managed: int) -> None:
        assert managed == ctypes.addressof(self._managed)
        self.deleted += 1
        LENT.discard(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._claims

    def __dlpack__(self, **options: Any) -> Any:
        self.asked.append(options)
        if "max_version" in options and not self._knows_versions:
            raise TypeError("__dlpack__() got an unexpected keyword argument 'max_version'")
        self.capsule = new_capsule(ctypes.addressof(self._managed), self.name(), None)
        LENT.add(self)
        return self.capsule

    def name(self, used: bool = False) -> bytes:
        return (b"used_" if used else b"") + (b"dltensor_versioned" if self._versioned else b"dltensor")


@pytest.mark.parametrize("versioned", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", ["float32", "float64"])
def test_a_tensor_comes_in_and_is_let_go_of_once(versioned: bool, dtype: str, model: str) -> None:
    engine, X = made(dtype=model), data(dtype=dtype)
    producer = Producer(X, versioned=versioned)
    array = engine._core.borrow("X", producer)
    assert array.shape == (N, D)
    assert (array.dtype, array.device, len(array)) == (dtype, "cpu", N)
    assert producer.asked == [{"max_version": (1, 0)}]
    assert capsule_name(producer.capsule) == producer.name(used=True)
    np.testing.assert_array_equal(array.numpy(), X)
    np.testing.assert_array_equal(engine.encode(array).numpy(), engine.encode(X))
    del producer.capsule
    gc.collect()
    assert producer.deleted == 0
    del array
    assert producer.deleted == 1


def test_a_producer_from_before_versions_is_asked_again() -> None:
    producer = Producer(data(), versioned=False, knows_versions=False)
    made()._core.borrow("X", producer)
    assert [sorted(options) for options in producer.asked] == [["max_version"], []]
    assert producer.deleted == 1


def test_a_plain_tensor_of_the_cpu_is_an_array() -> None:
    # NumPy itself takes it, so that the result is NumPy's too.
    producer = Producer(data())
    code = made().encode(producer)
    assert isinstance(code, np.ndarray)
    np.testing.assert_array_equal(code, made().encode(data()))
    del code
    gc.collect()
    assert producer.deleted == 1


def refused() -> dict[str, tuple[Producer, str]]:
    X = data()
    wide = data(N, 2 * D)
    bytes_ = np.zeros(N * D * 4 + 1, np.uint8)[1:].view(np.float32).reshape(N, D)
    return {
        "version 2": (Producer(X, major=2), "X: expected DLPack version 1, got version 2"),
        "three dimensions": (Producer(X.reshape(N, D, 1)), "X: expected one or two dimensions, got 3"),
        "integers": (Producer(X, kind=(0, 32)), "X: expected float32, .* got int32"),
        "fp8": (Producer(X, kind=(10, 8)), "X: expected float32, .* type 10 with 8 bits"),
        "vectors as elements": (Producer(X, lanes=4), "X: expected float32"),
        "every second column": (Producer(wide[:, ::2]), "X: expected rows that are contiguous .* strides of 14 and 2"),
        "columns first": (Producer(np.asfortranarray(X)), "X: expected rows that are contiguous in memory"),
        "rows backwards": (Producer(X[::-1]), "X: expected rows that are contiguous in memory"),
        "between elements": (Producer(bytes_), "X: expected elements at multiples of their size"),
        "another place in the capsule": (Producer(X, place=(2, 1), claims=(1, 0)), "X: .* capsule says cuda:1"),
    }


@pytest.mark.parametrize("case", refused())
@pytest.mark.parametrize("old", [False, True])
def test_a_tensor_that_cannot_be_read_is_let_go_of(case: str, old: bool) -> None:
    producer, text = refused()[case]
    if old and case != "version 2":
        producer._managed, producer._versioned = Managed(producer._managed.tensor, None, producer._deleter), False
    with pytest.raises(ValueError, match=text):
        made()._core.borrow("X", producer)
    assert producer.deleted == 1


@pytest.mark.parametrize("place", [(2, 0), (2, 3), (10, 0), (4, 1)])
def test_the_cpu_refuses_memory_of_a_device(place: tuple[int, int]) -> None:
    producer = Producer(data(), place=place)
    where = f"cuda:{place[1]}" if place[0] == 2 else f"device {place[1]} of DLPack's type {place[0]}"
    text = f"X: expected a tensor in CPU memory, got Producer on {where}"
    engine = made()
    calls: list[Callable[[Any], Any]] = [engine.step, engine.gradient, engine.evaluate, engine.encode, engine.score]
    calls += [engine.reconstruct, engine.hold, SparseAutoencoder(n_hidden=3, device="cpu").fit]
    before = everything(engine)
    for call in calls:
        with pytest.raises(ValueError, match=text):
            call(producer)
    for name, call in {"H": engine.decode, "order": lambda t: engine.run_epoch(data(), t)}.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            call(producer)
    with pytest.raises(ValueError, match="sample_weight: expected a tensor in CPU memory"):
        engine.step(data(), producer)
    with pytest.raises(ValueError, match="out: expected a tensor in CPU memory"):
        engine.encode(data(), out=producer)
    assert producer.asked == []  # a producer elsewhere is not even asked for its memory
    assert everything(engine) == before


class Odd:
    """A producer that breaks the protocol in one way."""

    shape = (N, D)

    def __init__(self, capsule: Any = None, error: BaseException | None = None, place: Any = (1, 0)) -> None:
        self._capsule, self._error, self._place = capsule, error, place

    def __dlpack_device__(self) -> Any:
        return self._place

    def __dlpack__(self, **options: Any) -> Any:
        if self._error is not None:
            raise self._error
        return self._capsule


def test_what_is_no_tensor_is_refused() -> None:
    core = made()._core
    taken = Producer(data())
    np.from_dlpack(taken)
    cases = {
        "an unused DLPack capsule, got 'text'": Odd("text"),
        'an unused DLPack capsule, got <capsule object "used_dltensor_versioned"': Odd(taken.capsule),
        'an unused DLPack capsule, got <capsule object "other"': Odd(new_capsule(1, b"other", None)),
        "got Odd: it needs gradients": Odd(error=BufferError("it needs gradients")),
        "got Odd: no": Odd(error=TypeError("no")),
        "does not give two integers": Odd(place=None),
        "no attribute '__dlpack": object(),
    }
    for text, producer in cases.items():
        with pytest.raises(ValueError, match=text):
            core.borrow("X", producer)
    with pytest.raises(KeyboardInterrupt):
        core.borrow("X", Odd(error=KeyboardInterrupt()))
    assert taken.deleted == 1


def test_layouts_that_can_be_read() -> None:
    engine, X = made(), data()
    wide = np.full((N, D + 3), np.nan, np.float32)
    wide[:, 1:-2] = X
    repeated = np.broadcast_to(X[:1], (N, D))
    for producer, expected in [
        (Producer(wide[:, 1:-2]), X),
        (Producer(X, dense=True), X),
        (Producer(X, offset=8), X),
        (Producer(np.repeat(X, 2, axis=0)[::2]), X),
        (Producer(repeated), repeated),
        (Producer(X[:1]), X[:1]),
        (Producer(X[:0]), X[:0]),
    ]:
        array = engine._core.borrow("X", producer)
        np.testing.assert_array_equal(array.numpy(), expected)
        np.testing.assert_array_equal(np.from_dlpack(array), expected)
        np.testing.assert_array_equal(engine.encode(array).numpy(), engine.encode(np.ascontiguousarray(expected)))
        if len(expected):
            assert engine.gradient(array) == engine.gradient(np.ascontiguousarray(expected))


@pytest.mark.parametrize("model", ["float32", "float64"])
def test_short_floats_are_widened(model: str) -> None:
    engine, half = made(dtype=model), data().astype(np.float16)
    array = engine._core.borrow("X", Producer(half))
    assert array.dtype == "float16"
    np.testing.assert_array_equal(array.numpy(), half)
    np.testing.assert_array_equal(engine.encode(array).numpy(), engine.encode(half.astype(model)))
    upper = (data().view(np.uint32) >> 16).astype(np.uint16)
    exact = (upper.astype(np.uint32) << 16).view(np.float32)
    array = engine._core.borrow("X", Producer(upper.view(np.float16), kind=TYPES["bfloat16"]))
    assert array.dtype == "bfloat16"
    np.testing.assert_array_equal(engine.encode(array).numpy(), engine.encode(exact.astype(model)))
    taken = engine.take(array, [5, 3])
    np.testing.assert_array_equal(taken.numpy(), exact[[5, 3]])
    with pytest.raises(ValueError, match="bfloat16"):
        array.numpy()


# --- what goes out ---


def test_numpy_takes_a_result_without_a_copy() -> None:
    engine = made()
    code = engine.encode(held(engine, data()))
    assert isinstance(code, DeviceArray)
    assert code.__dlpack_device__() == (1, 0)
    assert repr(code) == f"DeviceArray(shape=({N}, {H}), dtype='float32', device='cpu')"
    first, second = np.from_dlpack(code), np.from_dlpack(code)
    assert np.shares_memory(first, second)
    assert not np.shares_memory(first, code.numpy())
    expected = engine.encode(data())
    del code, engine
    gc.collect()
    np.testing.assert_array_equal(first, expected)
    assert not hasattr(DeviceArray, "__array__")


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("versioned", [True, False])
def test_memory_is_let_go_of_once_in_any_order(order: tuple[int, ...], versioned: bool) -> None:
    # The array, a capsule that nobody takes, one that was taken, and its consumer.
    producer = Producer(data(), versioned=versioned)
    array = made()._core.borrow("X", producer)
    unused, used = array.__dlpack__(max_version=(1, 0)), Odd(array.__dlpack__())
    owners: list[Any] = [array, unused, used, np.from_dlpack(used)]
    del array, unused, used
    for i, which in enumerate(order):
        if which == 3:
            np.testing.assert_array_equal(owners[3], data())
        owners[which] = None
        last = {0, 1, 3} <= set(order[: i + 1])  # a capsule that was taken owns nothing
        assert producer.deleted == int(last)


def test_held_rows_keep_their_array_alive() -> None:
    X = data()
    alive = weakref.ref(X)
    engine = made()
    array = held(engine, X)
    del X
    other = np.from_dlpack(array)
    del array
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(other, data())
    del other
    gc.collect()
    assert alive() is None


def test_capsules_have_the_version_that_was_asked_for() -> None:
    engine = made()
    code = engine.encode(held(engine, data()))
    assert capsule_name(code.__dlpack__()) == b"dltensor"
    assert capsule_name(code.__dlpack__(max_version=(0, 8))) == b"dltensor"
    for version in [(1, 0), (1, 3), (2, 0)]:
        assert capsule_name(code.__dlpack__(max_version=version)) == b"dltensor_versioned"
    code.__dlpack__(stream=None, dl_device=(1, 0), copy=False)
    with pytest.raises(ValueError, match="stream: expected None for CPU memory, got 7"):
        code.__dlpack__(stream=7)
    with pytest.raises(BufferError, match="the array is on cpu"):
        code.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="without a copy"):
        code.__dlpack__(copy=True)


def test_read_only_memory_stays_so() -> None:
    X = data()
    X.flags.writeable = False
    engine = made()
    for array in (held(engine, X), engine._core.borrow("X", Producer(data(), read_only=True))):
        with pytest.raises(BufferError, match=r"DLPack 1\.0"):
            array.__dlpack__()
        assert not np.from_dlpack(array).flags.writeable
        with pytest.raises(ValueError, match="out: expected a writable"):
            engine.reconstruct(data(), out=array)


# --- results where the rows are, and rows where they were held ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("model", ["float32", "float64"])
def test_held_rows_give_the_same_bits(device: str, dtype: str, model: str) -> None:
    X = data(2500, dtype=dtype)
    weights = np.random.default_rng(1).random(len(X))
    order = np.random.default_rng(2).permutation(len(X))
    a, b = made(device, model), made(device, model)
    rows = held(b, X)
    assert rows.device == {"cpu": "cpu", "cuda": "cuda:0"}[device]
    for w, o in itertools.product((None, weights), (None, order)):
        a.run_epoch(X, o, 130, w)
        b.run_epoch(rows, o, 130, w)
    a.step(X)
    b.step(rows)
    assert everything(a) == everything(b)
    assert a.metrics() == b.metrics()
    assert a.gradient(X, weights) == b.gradient(rows, weights)
    assert a.evaluate(X) == b.evaluate(rows)
    for name in (f"gradient.{name}" for name in a.parameter_names()):
        np.testing.assert_array_equal(a.get(name), b.get(name))
    code, output = b.encode(rows), b.reconstruct(rows)
    assert isinstance(code, DeviceArray)
    assert (code.shape, code.dtype, code.device) == ((len(X), H), model, rows.device)
    np.testing.assert_array_equal(code.numpy(), a.encode(X))
    np.testing.assert_array_equal(output.numpy(), a.reconstruct(X))
    np.testing.assert_array_equal(b.decode(code).numpy(), a.decode(a.encode(X)))
    np.testing.assert_array_equal(b.score(rows), a.score(X))
    np.testing.assert_array_equal(b.take(rows, order[:70]).numpy(), X[order[:70]].astype(model))
    assert b.take(rows, []).shape == (0, D)


def test_results_go_where_they_are_wanted(device: str) -> None:
    engine, X = made(device), data()
    rows, expected = held(engine, X), engine.encode(X)
    out = engine.encode(rows)
    for source in (X, rows):
        on_device, on_host = held(engine, np.zeros_like(X)), np.empty_like(expected)
        assert engine.reconstruct(source, out=on_device) is on_device
        np.testing.assert_array_equal(on_device.numpy(), engine.reconstruct(X))
        assert engine.encode(source, out=on_host) is on_host
        np.testing.assert_array_equal(on_host, expected)
    assert engine.encode(data() / 2, out=out) is out
    np.testing.assert_array_equal(out.numpy(), engine.encode(data() / 2))


def test_a_tensor_is_written_in_place() -> None:
    engine, memory = made(), np.zeros((N, H), np.float32)
    producer = Producer(memory)
    assert engine.encode(data(), out=producer) is producer
    np.testing.assert_array_equal(memory, engine.encode(data()))
    assert producer.deleted == 1


def test_a_bad_output_is_refused(device: str) -> None:
    engine, X = made(device), data()
    rows = held(engine, X)
    for bad in (held(made(device, "float64"), data(dtype=np.float64)), held(engine, data(N - 1)), engine.encode(rows)):
        with pytest.raises(ValueError, match=f"out: expected a writable dense float32 array of {N} x {D} on "):
            engine.reconstruct(X, out=bad)
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        engine.reconstruct(rows, out=rows)
    if device == "cpu":  # where both are the same memory
        for source, bad in ((X, rows), (rows, X)):
            with pytest.raises(ValueError, match="out: expected memory of its own"):
                engine.reconstruct(source, out=bad)
    wide = np.zeros((N, D + 1), np.float32)
    if device == "cpu":
        with pytest.raises(ValueError, match="out: expected a writable dense"):
            engine.reconstruct(X, out=Producer(wide[:, :D]))


def test_holding_on_the_cpu_copies_nothing() -> None:
    engine, X = made(), data()
    array = held(engine, X)
    assert np.shares_memory(np.from_dlpack(array), X)
    X[0] = 0.5
    np.testing.assert_array_equal(engine.encode(array).numpy(), engine.encode(X))
    assert engine.hold(array) is array
    for other in (data(dtype=np.float16), np.asfortranarray(data()), data().astype(">f4"), [[1] * D]):
        assert engine.hold(other) is None
    for bad in (data(d=D + 1), data()[0], "text"):
        with pytest.raises(ValueError, match="X: expected"):
            engine.hold(bad)


def test_the_first_row_outside_is_found(device: str) -> None:
    engine, X = made(device), data(3000)
    assert engine.first_row_outside(held(engine, X)) is None
    assert engine.first_row_outside(held(engine, X), 0.0, 1.0) is None
    assert engine.first_row_outside(held(engine, X[:0])) is None
    for row, value in ((2999, 1.5), (1700, np.nan), (64, -np.inf), (63, np.inf), (0, np.nan)):
        X[row, D - 1] = value
        rows = held(engine, X)
        assert engine.first_row_outside(rows) == (None if value == 1.5 else row)
        assert engine.first_row_outside(rows, 0.0, 1.0) == row
        if value != 1.5:
            with pytest.raises(ValueError, match=f"X: row {row} contains NaN or infinity"):
                engine.step(rows)
            with pytest.raises(ValueError, match=f"X: row {row} contains NaN or infinity"):
                engine.evaluate(rows)


def test_rows_of_another_engine_are_checked(device: str) -> None:
    engine = made(device)
    for bad in (held(engine, data()), engine._core.borrow("w", Producer(np.ones(N))) if device == "cpu" else None):
        if bad is not None:
            with pytest.raises(ValueError, match=f"H: expected a 2-D array with {H} columns"):
                engine.decode(bad)
    with pytest.raises(ValueError, match="X: expected at least one row"):
        engine.step(held(engine, data(0)))
    with pytest.raises(ValueError, match="order: expected row numbers"):
        engine.run_epoch(held(engine, data()), [N], 1)
    with pytest.raises(ValueError, match="sample_weight: expected"):
        engine.run_epoch(held(engine, data()), None, 1, np.ones(N - 1))


# --- estimators ---


def estimator(device: str, **options: Any) -> SparseAutoencoder:
    settings = {"n_hidden": H, "batch_size": 40, "max_epochs": 3, "random_state": 0, "verbose": False, **options}
    return SparseAutoencoder(device=device, **settings)


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "held out": {"validation_fraction": 0.2, "early_stopping": True},
    "float64": {"dtype": "float64"},
    "L-BFGS": {"solver": "lbfgs"},
    "L-BFGS with rows held out": {"solver": "lbfgs", "validation_fraction": 0.2, "dtype": "float64"},
    "cross entropy": {"loss": "cross_entropy"},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit", FITS)
def test_an_estimator_of_device_rows(device: str, fit: str, weighted: bool) -> None:
    X, options = data(), FITS[fit]
    weights = np.random.default_rng(1).random(N) if weighted else None
    rows = held(made(device, options.get("dtype", "float32")), X)
    a = estimator(device, **options).fit(X, sample_weight=weights)
    b = estimator(device, **options).fit(rows, sample_weight=weights)
    assert a.history_ == b.history_
    assert everything(a._engine) == everything(b._engine)
    if "solver" not in options:
        a.partial_fit(X, sample_weight=weights)
        b.partial_fit(rows, sample_weight=weights)
        a.set_params(max_epochs=6).resume(X)
        b.set_params(max_epochs=6).resume(rows)
        assert everything(a._engine) == everything(b._engine)
    code = b.transform(rows)
    assert isinstance(code, DeviceArray)
    np.testing.assert_array_equal(code.numpy(), a.transform(X))
    np.testing.assert_array_equal(b.inverse_transform(code).numpy(), a.inverse_transform(a.transform(X)))
    np.testing.assert_array_equal(b.reconstruct(rows).numpy(), a.reconstruct(X))
    np.testing.assert_array_equal(b.score_samples(rows), a.score_samples(X))
    assert b.score(rows) == a.score(X)


@pytest.mark.parametrize("fit", FITS)
def test_held_and_streamed_training_give_the_same_bits(device: str, fit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"float32": data(), "float64": data(dtype=np.float64), "halves": data().astype(np.float16)}
    with_room = {name: estimator(device, **FITS[fit]).fit(X) for name, X in kinds.items()}
    monkeypatch.setattr(Engine, "hold", lambda self, X: None)
    for name, X in kinds.items():
        assert everything(estimator(device, **FITS[fit]).fit(X)._engine) == everything(with_room[name]._engine), name


def test_an_estimator_refuses_bad_device_rows(device: str) -> None:
    engine = made(device)
    model = estimator(device).fit(data())
    before = everything(model._engine)
    nan, wide = data(), held(made(device), data())
    nan[17, 3] = np.nan
    cases = [
        (held(engine, nan), "X: row 17 contains NaN, infinity"),
        (held(engine, data(0)), "X: expected a 2-D array with at least one row"),
    ]
    for rows, text in cases:
        for call in (model.fit, model.partial_fit, model.resume, model.transform, model.reconstruct, model.score):
            with pytest.raises(ValueError, match=text):
                call(rows)
    with pytest.raises(ValueError, match="X has 7 features, but SparseAutoencoder is expecting 3 features"):
        estimator(device).fit(data(d=3)).transform(wide)
    with pytest.raises(ValueError, match="H: expected a 2-D array with 5 columns"):
        model.inverse_transform(wide)
    with pytest.raises(ValueError, match=r"X: loss='cross_entropy' needs numbers in \[0, 1\], and row 0 has others"):
        estimator(device, loss="cross_entropy").fit(held(engine, data() + 1))
    with pytest.raises(ValueError, match=r"Negative|sample_weight"):
        model.fit(wide, sample_weight=-np.ones(N))
    assert everything(model._engine) == before


def test_weights_of_a_tensor(device: str) -> None:
    X, weights = data(), np.random.default_rng(1).random(N)
    a, b = made(device), made(device)
    a.run_epoch(X, None, 50, weights)
    b.run_epoch(held(b, X), None, 50, Producer(weights))
    assert everything(a) == everything(b)


# --- the libraries whose tensors these are ---

LIBRARIES = ("torch", "cupy", "jax")


def tensor_of(library: str, X: np.ndarray, device: str) -> Any:
    module = pytest.importorskip(library)
    if library == "torch":
        return module.from_numpy(X.copy()).to(device)
    if library == "cupy":
        if device == "cpu":
            pytest.skip("CuPy has no arrays in CPU memory")
        return module.asarray(X)
    platform = "gpu" if device == "cuda" else "cpu"
    if platform not in {d.platform for d in module.devices()}:
        pytest.skip(f"this JAX has no {platform}")
    return module.device_put(X, module.devices(platform)[0])


def back(library: str, array: DeviceArray) -> np.ndarray:
    if library == "torch":
        return pytest.importorskip("torch").from_dlpack(array).cpu().numpy()
    if library == "cupy":
        return pytest.importorskip("cupy").from_dlpack(array).get()
    return np.asarray(pytest.importorskip("jax.dlpack").from_dlpack(array))


@pytest.mark.parametrize("library", LIBRARIES)
def test_tensors_of_libraries_go_in_and_out(library: str, device: str) -> None:
    X = data(2500)
    tensor = tensor_of(library, X, device)
    a, b = made(device), made(device)
    a.run_epoch(X, None, 100)
    b.run_epoch(tensor, None, 100)
    assert everything(a) == everything(b)
    rows = b.hold(tensor) if device == "cuda" else b._core.borrow("X", tensor)
    code = b.encode(rows)
    np.testing.assert_array_equal(back(library, code), a.encode(X))
    fitted = estimator(device).fit(tensor, sample_weight=tensor[:, 0])
    assert everything(fitted._engine) == everything(estimator(device).fit(X, sample_weight=X[:, 0])._engine)
    assert isinstance(fitted.transform(tensor), DeviceArray if device == "cuda" else np.ndarray)


def test_a_tensor_of_torch_is_written_in_place(device: str) -> None:
    torch = pytest.importorskip("torch")
    engine, X = made(device), data()
    tensor, out = tensor_of("torch", X, device), torch.zeros(N, H, device=device)
    assert engine.encode(tensor, out=out) is out
    np.testing.assert_array_equal(out.cpu().numpy(), engine.encode(X))
    brain = torch.from_numpy(X).to(torch.bfloat16)
    rows = engine._core.borrow("X", brain.to(device))
    np.testing.assert_array_equal(engine.encode(rows).numpy(), engine.encode(brain.float().numpy()))
    with pytest.raises(ValueError, match="X: expected a tensor"):
        engine.encode(tensor.clone().requires_grad_())
