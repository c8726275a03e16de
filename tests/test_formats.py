"""Dictionaries in the files of SAELens and sparsify: their layout, what their formulas make of it, and damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fastsae
from fastsae import L1SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, SparseAutoencoder, TopKSAE, Transcoder
from fastsae.formats import load_saelens, load_sparsify, save_saelens, save_sparsify

N, D, OUT, M = 60, 5, 3, 12
ATOL = 2e-5  # float32: sums of a dozen numbers of the size of 10, twice
SMALL: dict[str, Any] = {"batch_size": 20, "max_epochs": 4, "learning_rate": 0.02, "random_state": 0, "verbose": False}


def rows() -> np.ndarray:
    return (np.random.default_rng(0).normal(size=(N, D)) * [1, 2, 0.5, 3, 1] + 1).astype(np.float32)


# What the libraries compute, written down from their sources: sae_lens/saes/*.py and sparsify/sparse_coder.py.


def of_saelens(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code and output of a folder's model."""
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "sae_weights.safetensors").items()}
    kind = cfg["architecture"]
    x, raw = x.astype(np.float64), x.astype(np.float64)
    mean, length = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if cfg["normalize_activations"] == "layer_norm":
        mean = x.mean(axis=1, keepdims=True)
        length = x.std(axis=1, keepdims=True, ddof=1) + 1e-5
    elif cfg["normalize_activations"] == "constant_norm_rescale":
        length = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
    else:
        assert cfg["normalize_activations"] == "none"
    x = (x - mean) / length
    if cfg["apply_b_dec_to_input"]:
        x = x - w["b_dec"]
    if kind == "gated":
        gate = x @ w["W_enc"] + w["b_gate"] > 0
        code = gate * np.maximum(x @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    else:
        z = x @ w["W_enc"] + w["b_enc"]
        code = np.maximum(z, 0)
        if "jumprelu" in kind:
            code = code * (z > w["threshold"])
    norms = np.linalg.norm(w["W_dec"], axis=1) if cfg.get("rescale_acts_by_decoder_norm") else np.ones(M)
    if kind == "topk":
        code = code * norms
        code = np.where(code >= np.sort(code, axis=1)[:, -cfg["k"], None], code, 0)
    output = (code / norms) @ w["W_dec"] + w["b_dec"]
    if "transcoder" in kind:
        assert cfg["d_out"] == output.shape[1]
        return code, output + (raw @ w["W_skip"].T if "skip" in kind else 0)
    return code, output * length + mean


def of_sparsify(folder: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cfg = json.loads((folder / "cfg.json").read_text())
    w = {name: value.astype(np.float64) for name, value in load_file(folder / "sae.safetensors").items()}
    raw = x.astype(np.float64)
    x = raw if cfg["transcode"] else raw - w["b_dec"]
    code = np.maximum(x @ w["encoder.weight"].T + w["encoder.bias"], 0)
    code = np.where(code >= np.sort(code, axis=1)[:, -cfg["k"], None], code, 0)
    output = code @ w["W_dec"] + w["b_dec"]
    return code, output + (raw @ w["W_skip"].T if cfg["skip_connection"] else 0)


# Writing


WRITTEN: dict[str, tuple[Any, str, set[str]]] = {
    "topk": (TopKSAE(M, 3, **SMALL), "topk", {"b_enc"}),
    "topk rescaled": (TopKSAE(M, 3, decoder_norm="rescale", **SMALL), "topk", {"b_enc"}),
    "topk, no pre-bias": (TopKSAE(M, 3, pre_bias=False, **SMALL), "topk", {"b_enc"}),
    "topk, columns scaled": (TopKSAE(M, 3, decoder_norm="rescale", scale="zscore", **SMALL), "topk", {"b_enc"}),
    "topk, columns scaled, no pre-bias": (TopKSAE(M, 3, pre_bias=False, scale="zscore", **SMALL), "topk", {"b_enc"}),
    "topk, layer norm": (TopKSAE(M, 3, scale="layer_norm", **SMALL), "topk", {"b_enc"}),
    "topk, row norm": (TopKSAE(M, 3, scale="row_norm", **SMALL), "topk", {"b_enc"}),
    "batch topk": (BatchTopKSAE(M, 2.5, decoder_norm="rescale", **SMALL), "jumprelu", {"b_enc", "threshold"}),
    "matryoshka": (MatryoshkaSAE(M, 3, scale="mean_norm", **SMALL), "jumprelu", {"b_enc", "threshold"}),
    "jump relu": (JumpReLUSAE(M, decoder_norm="rescale", **SMALL), "jumprelu", {"b_enc", "threshold"}),
    "gated": (GatedSAE(M, scale="zscore", **SMALL), "gated", {"b_gate", "b_mag", "r_mag"}),
    "gated, no pre-bias": (GatedSAE(M, scale="zscore", pre_bias=False, **SMALL), "gated", {"b_gate", "b_mag", "r_mag"}),
    "l1": (L1SAE(M, **SMALL), "standard", {"b_enc"}),
    "transcoder": (Transcoder(M, architecture="relu", scale="zscore", **SMALL), "transcoder", {"b_enc"}),
    "skip transcoder": (
        Transcoder(M, architecture="relu", skip=True, scale="zscore", **SMALL),
        "skip_transcoder",
        {"b_enc", "W_skip"},
    ),
    "jump relu transcoder": (
        Transcoder(M, architecture="jump_relu", **SMALL),
        "jumprelu_transcoder",
        {"b_enc", "threshold"},
    ),
    "batch topk skip transcoder": (
        Transcoder(M, k=2.5, architecture="batch_topk", skip=True, **SMALL),
        "jumprelu_skip_transcoder",
        {"b_enc", "threshold", "W_skip"},
    ),
}


def trained(model: Any, width: int = OUT) -> Any:
    return model.fit(rows(), rows()[:, :width] ** 2) if isinstance(model, Transcoder) else model.fit(rows())


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_saelens_would_compute_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    made, architecture, own = WRITTEN[name]
    model = trained(made.set_params(dtype=dtype))
    save_saelens(model, tmp_path / "sae", metadata={"model_name": "gpt2", "hook_name": "blocks.0.hook_resid_pre"})
    cfg = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    tensors = load_file(tmp_path / "sae" / "sae_weights.safetensors")
    width = OUT if isinstance(model, Transcoder) else D
    assert cfg["architecture"] == architecture
    assert (cfg["d_in"], cfg["d_sae"], cfg["dtype"], cfg["device"]) == (D, M, dtype, "cpu")
    assert cfg["metadata"]["hook_name"] == "blocks.0.hook_resid_pre"
    assert cfg["metadata"]["sae_lens_version"] == "6.54.12"
    assert set(tensors) == {"W_enc", "W_dec", "b_dec"} | own
    assert tensors["W_enc"].shape == (D, M)
    assert tensors["W_dec"].shape == (M, width)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(dtype)}
    assert (architecture == "topk") == ("k" in cfg)
    code, output = of_saelens(tmp_path / "sae", rows())
    atol = ATOL if dtype == "float32" else 1e-12
    np.testing.assert_allclose(code, model.transform(rows()), rtol=0, atol=atol)
    # Its layer norm is undone without the 1e-5; ours with it, as written down here.
    np.testing.assert_allclose(output, model.reconstruct(rows()), rtol=0, atol=10 * atol)
    sparsity = load_file(tmp_path / "sae" / "sparsity.safetensors")["sparsity"]
    np.testing.assert_allclose(sparsity, np.log10(model.latent_frequency_ + 1e-10), rtol=1e-6)
    again = load_saelens(tmp_path / "sae")
    np.testing.assert_allclose(again.transform(rows()), model.transform(rows()), rtol=0, atol=2 * atol)
    np.testing.assert_allclose(again.reconstruct(rows()), model.reconstruct(rows()), rtol=0, atol=20 * atol)
    assert again.dtype == dtype


SPARSIFY: dict[str, Any] = {
    "topk": TopKSAE(M, 3, **SMALL),
    "preset": TopKSAE(M, 3, preset="sparsify", **SMALL),
    "rescaled": TopKSAE(M, 3, decoder_norm="rescale", **SMALL),
    "no pre-bias": TopKSAE(M, 3, pre_bias=False, scale="zscore", **SMALL),
    "columns scaled": TopKSAE(M, 3, scale="zscore", **SMALL),
    "transcoder": Transcoder(M, k=3, scale="mean_norm", **SMALL),
    "pre-biased transcoder": Transcoder(M, k=3, pre_bias=True, scale="zscore", **SMALL),
    "skip transcoder": Transcoder(M, k=3, skip=True, scale="zscore", **SMALL),
}


@pytest.mark.parametrize("name", SPARSIFY)
def test_sparsify_would_compute_the_same(name: str, tmp_path: Path) -> None:
    model = trained(SPARSIFY[name], D)
    save_sparsify(model, tmp_path / "layers.3")
    cfg = json.loads((tmp_path / "layers.3" / "cfg.json").read_text())
    tensors = load_file(tmp_path / "layers.3" / "sae.safetensors")
    transcodes = isinstance(model, Transcoder)
    assert cfg == {
        "activation": "topk",
        "expansion_factor": M // D,
        "normalize_decoder": name in ("topk", "preset"),
        "num_latents": M,
        "k": 3,
        "multi_topk": False,
        "skip_connection": name == "skip transcoder",
        "transcode": transcodes,
        "d_in": D,
    }
    shapes = {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    shapes |= {"W_skip": (D, D)} if name == "skip transcoder" else {}
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    code, output = of_sparsify(tmp_path / "layers.3", rows())
    np.testing.assert_allclose(code, model.transform(rows()), rtol=0, atol=ATOL)
    np.testing.assert_allclose(output, model.reconstruct(rows()), rtol=0, atol=10 * ATOL)
    again = load_sparsify(tmp_path / "layers.3")
    assert type(again) is (Transcoder if transcodes else TopKSAE)
    np.testing.assert_allclose(again.transform(rows()), model.transform(rows()), rtol=0, atol=2 * ATOL)
    np.testing.assert_allclose(again.reconstruct(rows()), model.reconstruct(rows()), rtol=0, atol=20 * ATOL)


def test_what_they_have_not_is_refused(tmp_path: Path) -> None:
    topk = trained(Transcoder(M, k=3, **SMALL))
    with pytest.raises(ValueError, match="SAELens has no transcoder with activation 'topk'"):
        save_saelens(topk, tmp_path / "a")
    with pytest.raises(ValueError, match="as wide as its inputs, got 5 and 3"):
        save_sparsify(topk, tmp_path / "a")
    with pytest.raises(ValueError, match="sparsify has activation 'topk', got 'gated'"):
        save_sparsify(trained(GatedSAE(M, **SMALL)), tmp_path / "a")
    with pytest.raises(ValueError, match="does not scale rows, got scale='layer_norm'"):
        save_sparsify(trained(TopKSAE(M, 3, scale="layer_norm", **SMALL)), tmp_path / "a")
    skipping = Transcoder(M, architecture="relu", skip=True, scale="layer_norm", **SMALL)
    with pytest.raises(ValueError, match="skip does not see rows scaled by 'layer_norm'"):
        save_saelens(trained(skipping), tmp_path / "a")
    for save in (save_saelens, save_sparsify):
        with pytest.raises(ValueError, match="dictionary: expected a fitted Dictionary, got SparseAutoencoder"):
            save(SparseAutoencoder(3), tmp_path / "a")
        with pytest.raises(ValueError, match="not fitted"):
            save(TopKSAE(M, 3), tmp_path / "a")
    assert not (tmp_path / "a").exists()


# Reading


def weights(*names: str, width: int = D, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"W_enc": (D, M), "W_dec": (M, width), "b_dec": (width,), "W_skip": (width, D), "topk_threshold": ()}
    made = {name: random.normal(size=shapes.get(name, (M,))) for name in ("W_enc", "W_dec", "b_dec", *names)}
    for name in {"threshold", "topk_threshold"} & set(made):
        made[name] = np.asarray(np.abs(made[name]) + 0.1)
    return {
        name: np.asarray(value, np.float64 if name == "topk_threshold" else np.float32) for name, value in made.items()
    }


def cfg(architecture: str, **fields: Any) -> dict[str, Any]:
    """As SAELens 6 writes it."""
    common = {
        "d_in": D,
        "d_sae": M,
        "dtype": "float32",
        "device": "cuda",
        "apply_b_dec_to_input": "transcoder" not in architecture,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "model_name": "gpt2"},
        "architecture": architecture,
    }
    return common | fields


READ: dict[str, tuple[dict[str, Any], dict[str, np.ndarray], type]] = {
    "standard": (cfg("standard"), weights("b_enc"), L1SAE),
    "topk": (cfg("topk", k=4, rescale_acts_by_decoder_norm=True), weights("b_enc"), TopKSAE),
    "topk of older files": (cfg("topk", k=4), weights("b_enc"), TopKSAE),
    "without b_dec": (cfg("topk", k=4, apply_b_dec_to_input=False), weights("b_enc"), TopKSAE),
    "layer norm": (cfg("topk", k=4, normalize_activations="layer_norm"), weights("b_enc"), TopKSAE),
    "row norm": (cfg("standard", normalize_activations="constant_norm_rescale"), weights("b_enc"), L1SAE),
    "jumprelu": (cfg("jumprelu"), weights("b_enc", "threshold"), JumpReLUSAE),
    "gated": (cfg("gated"), weights("b_gate", "b_mag", "r_mag"), GatedSAE),
    "transcoder": (cfg("transcoder", d_out=OUT), weights("b_enc", width=OUT), Transcoder),
    "skip_transcoder": (cfg("skip_transcoder", d_out=OUT), weights("b_enc", "W_skip", width=OUT), Transcoder),
    "jumprelu_transcoder": (
        cfg("jumprelu_transcoder", d_out=OUT),
        weights("b_enc", "threshold", width=OUT),
        Transcoder,
    ),
}


def folder_of(path: Path, options: Any, tensors: dict[str, np.ndarray], name: str = "sae_weights.safetensors") -> Path:
    path.mkdir(exist_ok=True)
    (path / "cfg.json").write_text(options if isinstance(options, str) else json.dumps(options))
    save_file(tensors, path / name)
    return path


@pytest.mark.parametrize("name", READ)
def test_files_of_saelens(name: str, tmp_path: Path) -> None:
    options, tensors, kind = READ[name]
    folder = folder_of(tmp_path / "sae", options, tensors)
    model = load_saelens(folder)
    assert type(model) is kind
    code, output = of_saelens(folder, rows())
    np.testing.assert_allclose(model.transform(rows()), code, rtol=0, atol=10 * ATOL)
    np.testing.assert_allclose(model.reconstruct(rows()), output, rtol=0, atol=100 * ATOL)
    # It is an estimator like any other: it can be trained on, saved and loaded.
    y = (rows()[:, :OUT],) if kind is Transcoder else ()
    model.set_params(batch_size=20, random_state=0).partial_fit(rows(), *y)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(fastsae.load(tmp_path / "model").transform(rows()), model.transform(rows()))


def test_trainings_of_saelens(tmp_path: Path) -> None:
    """What its training writes on the way: a threshold of the batch, norms that are not folded."""
    tensors = weights("b_enc", "topk_threshold")
    for architecture, kind, more in (
        ("batchtopk", BatchTopKSAE, {}),
        ("matryoshka_batchtopk", MatryoshkaSAE, {"matryoshka_widths": [3, 7, M]}),
    ):
        options = cfg(architecture, k=2.5, rescale_acts_by_decoder_norm=True, topk_threshold_lr=0.01, **more)
        model = load_saelens(folder_of(tmp_path / architecture, options, tensors))
        assert type(model) is kind
        assert model.k == 2.5
        assert model.threshold_ == pytest.approx(float(tensors["topk_threshold"]))
        z = ((rows() - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]).astype(np.float64)
        z = z * np.linalg.norm(tensors["W_dec"], axis=1)
        np.testing.assert_allclose(model.transform(rows()), z * (z > model.threshold_), rtol=0, atol=10 * ATOL)
    assert model.prefixes == (3, 7, M)


@pytest.mark.parametrize("transcode", [False, True])
def test_files_of_sparsify(transcode: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shapes = {"encoder.weight": (M, D), "encoder.bias": (M,), "W_dec": (M, D), "b_dec": (D,)}
    shapes |= {"W_skip": (D, D)} if transcode else {}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    options = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": 4}
    options |= {"multi_topk": False, "skip_connection": transcode, "transcode": transcode, "d_in": D}
    folder = folder_of(tmp_path / "layers.0.mlp", options, tensors, "sae.safetensors")
    model = load_sparsify(folder)
    code, output = of_sparsify(folder, rows())
    np.testing.assert_allclose(model.transform(rows()), code, rtol=0, atol=10 * ATOL)
    np.testing.assert_allclose(model.reconstruct(rows()), output, rtol=0, atol=100 * ATOL)
    assert model._engine.config.decoder_norm == ("free" if transcode else "unit")


def test_the_number_of_latents_may_be_a_factor(tmp_path: Path) -> None:
    shapes = {"encoder.weight": (15, D), "encoder.bias": (15,), "W_dec": (15, D), "b_dec": (D,)}
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    for options in ({"expansion_factor": 3}, {"expansion_factor": 3, "num_latents": 0}, {"num_latents": 15}):
        folder = folder_of(tmp_path / "a", {"d_in": D, "k": 2, **options}, tensors, "sae.safetensors")
        assert load_sparsify(folder).n_latents == 15


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64"])
def test_other_types_of_numbers(kind: str, tmp_path: Path) -> None:
    options, tensors, _ = READ["standard"]
    if kind == "BF16":
        halves = {name: (value.view(np.uint32) >> np.uint32(16)).astype("<u2") for name, value in tensors.items()}
        entries, content = {}, b""
        for name, value in halves.items():
            span = [len(content), len(content) + value.nbytes]
            entries[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": span}
            content += value.tobytes()
        header = json.dumps(entries).encode()
        rounded = {name: (value.astype(np.uint32) << np.uint32(16)).view(np.float32) for name, value in halves.items()}
        folder = folder_of(tmp_path / "a", options, tensors)
        (folder / "sae_weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    else:
        rounded = {name: value.astype(np.float16 if kind == "F16" else np.float64) for name, value in tensors.items()}
        folder = folder_of(tmp_path / "a", options, rounded)
    model = load_saelens(folder)
    np.testing.assert_array_equal(model.encoder_, rounded["W_enc"].T.astype(np.float32))
    assert model.dtype == "float32"
    wide = load_saelens(folder_of(tmp_path / "b", options | {"dtype": "float64"}, tensors))
    assert wide.encoder_.dtype == np.float64


# Damage


def edited(**fields: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda options, tensors: options.update(fields)


def without(*names: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(options: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in names:
            options.pop(name, None)
            tensors.pop(name, None)

    return edit


def tensor(name: str, value: np.ndarray) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda options, tensors: tensors.update({name: value})


DAMAGE: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "no architecture": (without("architecture"), r"cfg.json: field 'architecture' is missing"),
    "foreign architecture": (edited(architecture="temporal"), r"cfg.json: field 'architecture': expected one of"),
    "no width": (without("d_in"), r"cfg.json: field 'd_in' is missing"),
    "width of 0": (edited(d_sae=0), r"cfg.json: field 'd_sae': expected an integer >= 1, got 0"),
    "width as text": (edited(d_in="5"), r"cfg.json: field 'd_in': expected an integer >= 1, got '5'"),
    "k": (edited(k=True), r"cfg.json: field 'k': expected an integer >= 1, got True"),
    "k > n": (edited(k=M + 1), r"k: expected an integer in \[1, 12\], got 13"),
    "whitening": (edited(normalize_activations="covariance_whitening"), r"field 'normalize_activations': expected one"),
    "not folded": (edited(normalize_activations="expected_average_only_in"), r"'normalize_activations': expected one"),
    "flag": (edited(apply_b_dec_to_input="yes"), r"'apply_b_dec_to_input': expected true or false, got 'yes'"),
    "other width": (edited(d_sae=M + 1), r"sae_weights.safetensors: tensor 'W_enc': expected shape \(5, 13\), got"),
    "no tensor": (without("W_dec"), r"sae_weights.safetensors: tensor 'W_dec' is missing"),
    "unknown tensor": (tensor("scaling_factor", np.ones(M)), r"safetensors: tensor 'scaling_factor' is unknown"),
    "integers": (
        tensor("b_enc", np.ones(M, np.int32)),
        r"tensor 'b_enc': expected one of BF16, .* got I32",
    ),
    "NaN": (tensor("b_dec", np.full(D, np.nan, np.float32)), r"tensor 'b_dec' holds NaN or infinity"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    edit, text = DAMAGE[name]
    options, tensors, _ = READ["topk"]
    options, tensors = dict(options), dict(tensors)
    edit(options, tensors)
    with pytest.raises(ValueError, match=text):
        load_saelens(folder_of(tmp_path / "a", options, tensors))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    options, tensors, _ = READ["topk"]
    folder = folder_of(tmp_path / "a", options, tensors)
    content = (folder / "sae_weights.safetensors").read_bytes()
    for damaged in (b"", content[:100], content[:-4], b"\xff" * 200):
        (folder / "sae_weights.safetensors").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"sae_weights.safetensors: it is not a safetensors file"):
            load_saelens(folder)
    for text, error in (("{", "it is not JSON"), ("[1]", "expected an object, got list"), ("[" * 100_000, "not JSON")):
        (folder / "cfg.json").write_text(text)
        with pytest.raises(ValueError, match=error):
            load_saelens(folder)
    with pytest.raises(FileNotFoundError):
        load_saelens(tmp_path / "nowhere")
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": 2, "activation": "groupmax"}))
    with pytest.raises(ValueError, match="field 'activation': expected one of 'topk', got 'groupmax'"):
        load_sparsify(folder)
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": 2, "skip_connection": True}))
    with pytest.raises(ValueError, match="field 'skip_connection': expected false where transcode is false"):
        load_sparsify(folder)
