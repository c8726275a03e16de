"""The command line and the demonstration."""

import subprocess
import sys

import numpy as np
import pytest

import fastsae
from fastsae import cli

FIGURES = {
    f"{data}-{kind}.png"
    for data in ("photographs", "digits")
    for kind in ("filters", "reconstructions", "loss", "rho_hat")
}


def test_version_and_info(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"fastsae {fastsae.__version__}\n"
    assert cli.main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["threads"] == str(fastsae.get_num_threads())
    assert {"fastsae", "Python", "ISA", "BLAS"} < set(lines)


def test_command_runs_as_a_module():
    command = [sys.executable, "-W", "error", "-m", "fastsae.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"fastsae {fastsae.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["demo", "--seed", "-1"], ["demo", "--seed", "x"], ["demo", "--fast"]]
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert "usage: fastsae" in capsys.readouterr().err


def test_short_demo(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from fastsae import demo

    run, results = demo.run, {}
    monkeypatch.setattr(demo, "run", lambda *args, **options: results.update(run(*args, **options)))
    folder = tmp_path / "new" / "figures"
    assert cli.main(["demo", "--short", "--output", str(folder), "--seed", "1"]) == 0

    text = capsys.readouterr().out
    for expected in ("Gabor", "live units", "rho = 0.02", "on the learned features", "on the pixels", str(folder)):
        assert expected in text
    assert {path.name for path in folder.iterdir()} == FIGURES
    for name in FIGURES:
        with Image.open(folder / name) as image:
            pixels = np.asarray(image.convert("L"))
        assert min(pixels.shape) >= 300
        assert pixels.std() > 5

    assert results["photographs_error"] < 0.8
    assert results["photographs_mean_activation"] == pytest.approx(0.02, abs=0.01)
    assert results["photographs_live"] > 0.9
    assert results["photographs_gabor_share"] > 0.3
    assert results["random_gabor_share"] < 0.1
    assert results["digits_error"] < 0.2
    assert results["digits_accuracy_features"] > results["digits_accuracy_pixels"] > 0.94


def test_unwritable_output(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    taken = tmp_path / "file"
    taken.touch()
    assert cli.main(["demo", "--output", str(taken)]) == 1
    assert "fastsae demo: " in capsys.readouterr().err


def test_interrupt(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_demo", interrupt)
    assert cli.main(["demo"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_whitening_flattens_the_spectrum():
    demo = pytest.importorskip("fastsae.demo")
    f = np.hypot(np.fft.fftfreq(48)[:, None], np.fft.rfftfreq(65))
    noise = np.fft.rfft2(np.random.default_rng(0).standard_normal((48, 65)))
    f[0, 0] = 1.0
    white = demo.whiten(np.fft.irfft2(noise / np.abs(noise) / f, s=(48, 65)))
    amplitude = np.abs(np.fft.rfft2(white))
    assert white.std() == pytest.approx(1)
    assert amplitude[0, 0] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(
        amplitude.ravel()[1:] / amplitude[0, 1], np.exp(-((f / 0.4) ** 4)).ravel()[1:], atol=1e-3
    )
    assert not demo.whiten(np.ones((8, 8))).any()


def test_patches_and_their_scaling():
    demo = pytest.importorskip("fastsae.demo")
    random = np.random.default_rng(0)
    flat, rough = 1e-3 * random.standard_normal((2, 60, 60)), random.standard_normal((60, 70))
    patches = demo.draw_patches([flat[0], rough], 500, 6, random)
    assert patches.shape == (500, 36)
    assert patches.std(axis=1).min() > 0.3
    scaled = demo.scale_patches(patches + 100 * random.random((500, 1)))
    assert scaled.dtype == np.float32
    assert scaled.min() >= np.float32(0.1)
    assert scaled.max() <= np.float32(0.9)
    centred = patches - patches.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, 0.5 + 0.4 * np.clip(centred / (3 * centred.std()), -1, 1), atol=1e-6)
