"""TopKEncoder: what it selects, in which order, on every kind of shape; its threads, its bits and its errors."""

from __future__ import annotations

import hashlib
import pickle
import threading
from typing import Any

import numpy as np
import pytest
from test_determinism import interrupt, report
from test_isa import CORES, levels
from tolerances import product_bound

import fastsae
from fastsae import TopKEncoder
from fastsae import config as options
from fastsae.reference import encode_topk, select

DTYPES = options.DTYPES
THREADS = (1, 2, 3, 8)
# Columns of the widest tile of cpu/select_tiles.cpp; rows that it takes at once.
TILE, PANEL = 512, 4096

# (rows, features, latents, k): one of everything; odd numbers; edges of tiles and of panels; k as large as
# it can be.
SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 2, 2),
    (1, 5, 33, 33),
    (17, 7, 97, 5),
    (3, 4, TILE - 1, 32),
    (33, 9, TILE, TILE),
    (5, 16, TILE + 1, TILE),
    (40, 6, 3 * TILE + 77, 64),
    (1, 12, 70001, 32),
    (2, 3, 9000, 512),
    (PANEL + 1, 5, 700, 1),
    (2 * PANEL + 19, 8, 300, 7),
]


def integers(rows: int, features: int, latents: int, seed: int = 0, most: int = 3) -> tuple[Any, Any, Any]:
    """X, weight and bias whose products are exact in either dtype and full of ties."""
    random = np.random.default_rng(seed)
    return (
        random.integers(-most, most + 1, (rows, features)),
        random.integers(-most, most + 1, (latents, features)),
        random.integers(-most, most + 1, latents),
    )


def check_selection(got: tuple[Any, Any], z: Any, k: int) -> None:
    """Exactly what the reference selects from these pre-activations."""
    values, indices = select(z, k)
    np.testing.assert_array_equal(got[1], indices)
    np.testing.assert_array_equal(got[0], values)
    assert got[1].dtype == np.int32


def select_among(z: Any, k: int, dtype: str, device: str) -> tuple[Any, Any]:
    """The selection among given finite pre-activations: the rows of an identity times their transpose."""
    z = np.asarray(z, dtype)
    return TopKEncoder(z.T, None, k, device=device, dtype=dtype).encode(np.eye(len(z), dtype=dtype))


def pre_activations(X: Any, weight: Any, dtype: str, device: str) -> Any:
    """By encoders of few latents that leave none out."""
    parts = []
    for first in range(0, len(weight), 500):
        part = weight[first : first + 500]
        values, indices = TopKEncoder(part, None, len(part), device=device, dtype=dtype).encode(X)
        assert (np.sort(indices) == np.arange(len(part))).all()
        parts.append(np.empty_like(values))
        np.put_along_axis(parts[-1], indices, values, axis=1)
    return np.hstack(parts)


# --- the order ---


def test_the_reference_is_a_stable_sort() -> None:
    """An oracle of its own: Python's sort of (is a number, -value, column)."""
    random = np.random.default_rng(0)
    z = random.integers(-3, 4, (50, 40)).astype(float)
    z[random.random(z.shape) < 0.1] = -0.0
    for value in (np.nan, np.inf, -np.inf):
        z[random.random(z.shape) < 0.1] = value
    for row in z:
        wanted = sorted(range(len(row)), key=lambda j: (not np.isnan(row[j]), 0.0 if np.isnan(row[j]) else -row[j], j))
        for k in (1, 7, 40):
            values, indices = select(row[None], k)
            assert indices[0].tolist() == wanted[:k]
            np.testing.assert_array_equal(values[0], row[wanted[:k]])


@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_data(shape: tuple[int, int, int, int], with_bias: bool, dtype: str, device: str) -> None:
    """Small integers: the pre-activations are exact, and most of the k-th values are ties."""
    rows, features, latents, k = shape
    X, weight, bias = integers(rows, features, latents)
    bias = bias if with_bias else None
    got = TopKEncoder(weight, bias, k, device=device, dtype=dtype).encode(X)
    values, indices = encode_topk(X, weight, bias, k)
    np.testing.assert_array_equal(got[1], indices)
    np.testing.assert_array_equal(got[0], values)
    assert got[0].dtype == dtype
    assert got[1].dtype == np.int32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 32, 512])
def test_random_data(k: int, dtype: str, device: str) -> None:
    """Values within the bound of a product; the same latents wherever the gaps are wider than two bounds."""
    random = np.random.default_rng(k)
    X, weight, bias = random.normal(size=(150, 200)), random.normal(size=(3001, 200)), random.normal(size=3001)
    X, weight, bias = (array.astype(dtype) for array in (X, weight, bias))
    values, indices = TopKEncoder(weight, bias, k, device=device, dtype=dtype).encode(X)
    z = X.astype(float) @ weight.astype(float).T + bias
    bound = product_bound(X, weight, bias, dtype)
    exact, order = select(z, k + 1)
    assert np.all(np.abs(values - exact[:, :k]) <= bound.max(axis=1, keepdims=True))
    assert np.all(np.abs(values - np.take_along_axis(z, indices, 1)) <= np.take_along_axis(bound, indices, 1))
    clear = exact[:, :-1] - exact[:, 1:] > 2 * bound.max(axis=1, keepdims=True)
    sure = clear.all(axis=1)
    assert sure.sum() > 50 or (k == 512 and dtype == "float32")
    np.testing.assert_array_equal(indices[sure], order[sure, :k])
    apart = clear[:, -1]  # the k are known, if not their order
    assert apart.sum() > 75
    np.testing.assert_array_equal(np.sort(indices[apart]), np.sort(order[apart, :k]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("latents", [TILE, 5 * TILE + 3])
@pytest.mark.parametrize("k", [1, 31, 512])
def test_all_equal(k: int, latents: int, dtype: str, device: str) -> None:
    values, indices = select_among(np.full((3, latents), 2.5), k, dtype, device)
    assert (values == 2.5).all()
    assert (indices == np.arange(k)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
def test_ties_across_borders(rows: int, dtype: str, device: str) -> None:
    """The k-th value again and again, on both sides of every border: the lowest columns win."""
    latents, k = 6 * TILE + 5, 40
    z = np.random.default_rng(0).uniform(-1, 0, (rows, latents))
    for border in range(TILE, latents, TILE):
        z[:, border - 6 : border + 6] = 1.0
    z[:, -2:] = 2.0  # two that come last and push two of the ties out
    values, indices = select_among(z, k, dtype, device)
    ties = np.flatnonzero(z[0] == 1)[: k - 2]
    assert (indices == [latents - 2, latents - 1, *ties]).all()
    check_selection((values, indices), z.astype(dtype), k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 20, 300])
@pytest.mark.parametrize("order", ["rising", "falling", "steps"])
def test_sorted_rows(order: str, k: int, dtype: str, device: str) -> None:
    """Rising: every element comes before all that were seen. Falling: none does."""
    z = np.arange(4000.0)
    z = {"rising": z, "falling": -z, "steps": z // 7}[order]
    check_selection(select_among(z[None], k, dtype, device), z[None], k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 3, 64, 512])
@pytest.mark.parametrize("rows", [1, 20])
def test_special_values(rows: int, k: int, dtype: str, device: str) -> None:
    """NaN, infinities and zeros among numbers, in all portions: sums that overflow, upwards, downwards and both."""
    random = np.random.default_rng(k)
    features, huge = 2048, np.finfo(dtype).max
    X = np.ones((rows, features), dtype)
    X[:, [0, -1]] = 2
    for portion in (0.005, 0.05, 0.5):
        weight = np.zeros((1700, features), dtype)
        weight[:, 7] = random.integers(-2, 3, len(weight))
        for ends in ([0], [-1], [0, -1]):  # so far apart that they meet as infinities
            chosen = np.flatnonzero(random.random(len(weight)) < portion)
            for end in ends:
                weight[chosen, end] = huge if end == 0 else -huge
        if device != "cpu":  # what they meet as depends there on the order of the sums, and that on the shape
            weight[weight[:, 0] != 0, -1] = 0
        z = pre_activations(X, weight, dtype, device)
        if device == "cpu":
            assert np.isnan(z).any()
            assert np.isposinf(z).any()
            assert np.isneginf(z).any()
        check_selection(TopKEncoder(weight, None, k, device=device, dtype=dtype).encode(X), z, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinite_rows(dtype: str, device: str) -> None:
    """Infinity times a weight is infinity, minus infinity or, for weight 0, NaN."""
    weight = np.random.default_rng(0).integers(-1, 2, (3000, 1)).astype(dtype)
    X = np.array([[np.inf], [-np.inf], [0.0], [-0.0]], dtype)
    with np.errstate(invalid="ignore"):
        z = X * weight[:, 0]
    for k in (1, 400, 512):
        check_selection(TopKEncoder(weight, None, k, device=device, dtype=dtype).encode(X), z, k)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_visible(dtype: str, device: str) -> None:
    """A row that holds NaN is NaN at the first latents; its neighbours are as they were."""
    X, weight, bias = integers(50, 6, 1300)
    encoder = TopKEncoder(weight, bias, 12, device=device, dtype=dtype)
    X = X.astype(dtype)
    clean = encoder.encode(X)
    X[[0, 31], [5, 2]] = np.nan
    values, indices = encoder.encode(X)
    assert np.isnan(values[[0, 31]]).all()
    assert (indices[[0, 31]] == np.arange(12)).all()
    others = np.delete(np.arange(50), [0, 31])
    np.testing.assert_array_equal(values[others], clean[0][others])
    np.testing.assert_array_equal(indices[others], clean[1][others])


# --- the same bits ---


def random_encoder(rows: int, features: int, latents: int, k: int, dtype: str, device: str) -> tuple[TopKEncoder, Any]:
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(latents, features)), random.normal(size=latents)
    return TopKEncoder(weight, bias, k, device=device, dtype=dtype), random.normal(size=(rows, features))


def digest(result: tuple[Any, Any]) -> str:
    return hashlib.sha256(result[0].tobytes() + result[1].tobytes()).hexdigest()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 40, 9001, 32), (3, 7, 30000, 5), (100, 33, 3000, 512), (1100, 20, 5000, 32)], ids=str
)
def test_bits_do_not_depend_on_threads(
    shape: tuple[int, int, int, int], dtype: str, device: str, threads: None
) -> None:
    encoder, X = random_encoder(*shape, dtype, device)
    digests = set()
    for count in THREADS:
        fastsae.set_num_threads(count)
        digests |= {digest(encoder.encode(X)), digest(encoder.encode(X.astype(dtype)))}
    assert len(digests) == 1


def test_chunks_of_whole_blocks_encode_alike(device: str) -> None:
    block = PANEL
    encoder, X = random_encoder(2 * block + 100, 30, 1000, 20, "float32", device)
    whole = encoder.encode(X)
    parts = [encoder.encode(X[first : first + block]) for first in range(0, len(X), block)]
    for got, wanted in zip((np.concatenate(part) for part in zip(*parts, strict=True)), whole, strict=True):
        np.testing.assert_array_equal(got, wanted)


EXACT = """
seen = []
for dtype in ("float32", "float64"):
    for rows, features, latents, k in ((1, 9, 5000, 40), (70, 20, 1333, 32), (3, 4, 2000, 512), (1030, 8, 555, 6)):
        random = np.random.default_rng(latents)
        X, weight = random.integers(-3, 4, (rows, features)), random.integers(-3, 4, (latents, features))
        X = X.astype(dtype)
        X[rows // 2, 0] = np.nan
        values, indices = fastsae.TopKEncoder(weight, None, k, dtype=dtype).encode(X)
        wanted = fastsae.reference.encode_topk(X, weight, None, k)
        assert np.array_equal(values, wanted[0], equal_nan=True)
        assert np.array_equal(indices, wanted[1])
        seen.append(fastsae._core.isa())
print(json.dumps(seen))
"""


@pytest.mark.parametrize("level", list(CORES))
def test_every_instruction_set_selects_the_same(level: str) -> None:
    """Exactly what the reference selects, ties and NaN included, in a process of the level."""
    if level not in levels():
        pytest.skip(f"this processor has no {level}")
    seen = report(EXACT, FASTSAE_ISA=level, OPENBLAS_CORETYPE=CORES[level])
    assert seen == [level] * 8


# --- what it takes and gives ---


def test_inputs_of_every_kind(device: str) -> None:
    X, weight, bias = integers(9, 6, 40)
    wanted = encode_topk(X, weight, bias, 4)
    wide = np.zeros((18, 10))
    wide[::2, 2:8] = X
    kinds = [X, X.astype(np.int8), X.tolist(), X.astype(">f4"), wide[::2, 2:8], np.asfortranarray(X, np.float32)]
    for dtype in DTYPES:
        for make in (lambda array: array.tolist(), lambda array: np.asfortranarray(array, np.float64)):
            encoder = TopKEncoder(make(weight), make(bias), 4, device=device, dtype=dtype)
            for kind in kinds:
                for got, expected in zip(encoder.encode(kind), wanted, strict=True):
                    np.testing.assert_array_equal(got, expected)
            values, indices = encoder.encode(X[:0])
            assert (values.shape, values.dtype, indices.shape, indices.dtype) == ((0, 4), dtype, (0, 4), np.int32)


def test_attributes_and_defaults(device: str) -> None:
    encoder = TopKEncoder(np.ones((50, 3)), device=device)
    assert (encoder.n_features, encoder.n_latents, encoder.k, encoder.dtype) == (3, 50, 32, "float32")
    values, indices = encoder.encode(np.ones((2, 3)))
    assert values.shape == indices.shape == (2, 32)


def test_a_later_change_of_the_arrays_has_no_effect(device: str) -> None:
    weight, bias, X = np.eye(3, dtype=np.float32), np.zeros(3, np.float32), np.ones((1, 3), np.float32)
    encoder = TopKEncoder(weight, bias, 3, device=device)
    weight[:], bias[:] = 5, 7
    assert encoder.encode(X)[0].tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_out(dtype: str, device: str) -> None:
    X, weight, bias = integers(1030, 5, 300)
    encoder = TopKEncoder(weight, bias, 9, device=device, dtype=dtype)
    out = np.full((1030, 9), np.nan, dtype), np.full((1030, 9), -1, np.int32)
    got = encoder.encode(X, out=out)
    assert got[0] is out[0]
    assert got[1] is out[1]
    check_selection(got, X @ weight.T + bias, 9)


GOOD_OUT = np.empty((4, 2), np.float32), np.empty((4, 2), np.int32)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (GOOD_OUT[0], "out: expected a tuple"),
        (GOOD_OUT[:1], "out: expected a tuple"),
        ((np.empty((4, 3), np.float32), GOOD_OUT[1]), r"out\[0\]: expected a writable C-contiguous float32 array of"),
        ((GOOD_OUT[0].astype(float), GOOD_OUT[1]), r"out\[0\]: expected a writable C-contiguous float32 array of"),
        ((GOOD_OUT[0], np.empty((4, 2), np.int64)), r"out\[1\]: expected a writable C-contiguous int32 array of"),
        ((GOOD_OUT[0], np.empty((2, 4), np.int32).T), r"out\[1\]: expected a writable C-contiguous int32 array of"),
        ((GOOD_OUT[0], None), None),
        ((GOOD_OUT[0], GOOD_OUT[0].view(np.int32)), "out: expected memory of its own for each"),
    ],
    ids=["array", "one", "shape", "dtype", "int64", "order", "one given", "shared"],
)
def test_bad_out(out: Any, message: str | None, device: str) -> None:
    encoder = TopKEncoder(np.eye(3), k=2, device=device)
    if message is None:  # the other one is made
        assert encoder.encode(np.ones((4, 3)), out)[1].tolist() == [[0, 1]] * 4
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        encoder.encode(np.ones((4, 3)), out)


def test_out_over_the_input_is_refused(device: str) -> None:
    X = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"^out\[0\]: expected memory of its own"):
        TopKEncoder(np.eye(3), k=3, device=device).encode(X, (X, np.empty((4, 3), np.int32)))


BAD = [
    ({"weight": np.ones(3)}, "weight: expected a 2-D array"),
    ({"weight": np.ones((3, 0))}, "weight: expected a 2-D array"),
    ({"weight": np.ones((0, 3))}, "weight: expected a 2-D array"),
    ({"weight": [[1, 2], [3]]}, "weight: expected"),
    ({"weight": np.full((3, 2), "a")}, "weight: expected an array of real numbers"),
    ({"weight": [[1, np.nan], [1, 1], [1, 1]]}, "weight: expected finite numbers"),
    ({"weight": np.full((3, 2), 1e300)}, "weight: expected finite numbers"),
    ({"bias": np.ones(4)}, r"bias: expected shape \(3,\), got \(4,\)"),
    ({"bias": np.ones((3, 1))}, "bias: expected shape"),
    ({"bias": [0, 0, np.inf]}, "bias: expected finite numbers"),
    ({"bias": 1.0}, "bias: expected shape"),
    ({"k": 0}, r"k: expected an integer in \[1, 3\], got 0"),
    ({"k": 4}, r"k: expected an integer in \[1, 3\], got 4"),
    ({"k": 1.5}, "k: expected an integer"),
    ({"k": None}, "k: expected an integer"),
    ({"k": True}, "k: expected an integer"),
    ({"weight": np.ones((600, 1)), "k": 513}, r"k: expected an integer in \[1, 512\], got 513"),
    ({"dtype": "float16"}, "dtype: expected one of"),
    ({"dtype": np.float32}, "dtype: expected one of"),
    ({"precision": "half"}, "precision: expected one of"),
    ({"precision": "tf32", "dtype": "float64"}, "precision='tf32' needs dtype='float32'"),
    ({"device": "gpu"}, "device: expected"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TopKEncoder(**{"weight": np.ones((3, 2)), "k": 2, **options})


def test_precision_is_the_devices() -> None:
    with pytest.raises(fastsae.DeviceError, match="precision"):
        TopKEncoder(np.ones((3, 2)), k=2, device="cpu", precision="tf32")


@pytest.mark.parametrize("X", [np.ones((2, 4)), np.ones(3), np.ones((2, 3), complex), [["a", "b", "c"]], None])
def test_bad_rows(X: Any, device: str) -> None:
    encoder = TopKEncoder(np.eye(3), k=2, device=device)
    with pytest.raises(ValueError, match=r"^X: expected"):
        encoder.encode(X)
    assert encoder.encode(np.ones((1, 3)))[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_pickle(with_bias: bool, dtype: str, device: str) -> None:
    random = np.random.default_rng(0)
    weight, X = random.normal(size=(90, 8)), random.normal(size=(20, 8))
    encoder = TopKEncoder(weight, random.normal(size=90) if with_bias else None, 5, device=device, dtype=dtype)
    copy = pickle.loads(pickle.dumps(encoder))
    assert digest(copy.encode(X)) == digest(encoder.encode(X))
    assert vars(copy).keys() == vars(encoder).keys()
    assert (copy.k, copy.device, copy.dtype) == (5, device, dtype)


@pytest.mark.skipif(len(fastsae.devices()) > 1, reason="there is a GPU")
def test_an_encoder_of_a_missing_gpu_loads_on_the_cpu() -> None:
    encoder = TopKEncoder(np.eye(3), k=2)
    copy = TopKEncoder.__new__(TopKEncoder)
    copy.__setstate__({**encoder.__getstate__(), "device": "cuda", "precision": "bf16"})
    assert (copy.device, copy.precision) == ("auto", "full")
    assert digest(copy.encode(np.ones((2, 3)))) == digest(encoder.encode(np.ones((2, 3))))


# --- threads, memory and Ctrl-C ---


def test_8_threads_encode_at_once(device: str, threads: None) -> None:
    """Each caller gets the bits that a single thread gets, whatever the others do."""
    fastsae.set_num_threads(1)
    encoder, _ = random_encoder(1, 40, 3000, 32, "float32", device)
    inputs = [np.random.default_rng(i).normal(size=(1 + 200 * i, 40)) for i in range(8)]
    expected = [digest(encoder.encode(X)) for X in inputs]
    fastsae.set_num_threads(4)
    start, wrong = threading.Barrier(8), []

    def work(i: int) -> None:
        start.wait()
        wrong.extend(i for _ in range(4) if digest(encoder.encode(inputs[i])) != expected[i])

    callers = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_the_matrix_of_all_pre_activations_is_never_stored() -> None:
    """It would be 1.6 GB."""
    before, after = report("""
import resource
X, weight = np.ones((2048, 2), np.float32), np.random.default_rng(0).normal(size=(200_000, 2)).astype(np.float32)
encoder = fastsae.TopKEncoder(weight, k=8)
encoder.encode(X[:1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
encoder.encode(X)
print(json.dumps([before, peak()]))
""")
    assert after - before < 100e6


LONG_ENCODING = """
engine, small = make(), X[:10]
encoder = fastsae.TopKEncoder(np.random.default_rng(0).normal(size=(16_000, 700)), k=64)
many = np.broadcast_to(np.random.default_rng(1).random((1, 700), dtype=np.float32), (ROWS, 700))
first = encoder.encode(many[:5])
def train():
    try:
        while True:
            encoder.encode(many)
    except KeyboardInterrupt:
        assert all(map(np.array_equal, encoder.encode(many[:5]), first))
        raise
"""


@pytest.mark.parametrize("rows", [1, 30_000])
def test_interrupt(rows: int) -> None:
    """Within a second, and the encoder goes on. A busy machine gets a second try."""
    for _ in range(2):
        seconds, result = interrupt(LONG_ENCODING.replace("ROWS", str(rows)), 0.5, 2)
        assert result["usable"]
        if seconds < 1:
            break
    assert seconds < 1
