from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.cli import main
from saccade.data.weather import snow


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["restore", *arguments])
    return int(ended.value.code or 0)


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    coarse = Image.fromarray(chance.integers(40, 216, (8, 10, 3), dtype=np.uint8))
    clean = np.asarray(coarse.resize((160, 128), Image.Resampling.BICUBIC), float)
    Image.fromarray((clean + chance.normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)).save(tmp_path / "n.png")
    Image.fromarray(clean.astype(np.uint8)).save(tmp_path / "clean.bmp")
    return tmp_path / "n.png"


def read(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"), float)


def test_noise_goes_and_the_result_stands_beside_the_input(noisy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(noisy), "--json") == 0
    told = json.loads(capsys.readouterr().out)["results"][0]
    assert told["model"] == "cleaner_small"
    made = noisy.with_name("n_restored.png")
    clean = read(noisy.with_name("clean.bmp"))
    before, after = (float(np.square(read(p) - clean).mean()) for p in (noisy, made))
    assert after < before / 6
    assert run(str(noisy)) == 1
    assert "exists" in capsys.readouterr().err


def test_snow_goes_by_the_weights_that_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coarse = Image.fromarray(np.random.default_rng(2).integers(20, 200, (6, 8, 3), dtype=np.uint8))
    clean = np.asarray(coarse.resize((128, 96), Image.Resampling.BICUBIC))
    given = snow(torch.from_numpy(clean.transpose(2, 0, 1).copy())[None] / 255, np.random.default_rng(0))[0]
    Image.fromarray((given * 255).round().byte().permute(1, 2, 0).numpy()).save(tmp_path / "s.png")
    assert run(str(tmp_path / "s.png"), "--task", "weather", "-o", str(tmp_path / "w.png"), "--json") == 0
    told = json.loads(capsys.readouterr().out)["results"][0]
    assert (told["model"], told["notices"]) == ("histoformer_tiny", [])
    before, after = (float(np.square(read(tmp_path / f"{n}.png") - clean).mean()) for n in "sw")
    assert after < before / 2


@pytest.mark.parametrize("cells", [(), (2, 3)], ids=["one", "grid"])
def test_a_lens_of_ones_own_is_taken_off(cells: tuple[int, ...], tmp_path: Path) -> None:
    """Blurred in linear light by one function for the whole field, which is also every one of the grid."""
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    sharp = np.asarray(coarse.resize((128, 96), Image.Resampling.BICUBIC)) / 255
    place = np.arange(9) - 4
    psf = np.exp(-(place[:, None] ** 2 + place**2) / 4.5)
    canvas = np.zeros((96, 128))
    canvas[:9, :9] = psf / psf.sum()
    spectrum = np.fft.fft2(np.roll(canvas, (-4, -4), (0, 1)))[..., None]
    blurred = np.fft.ifft2(np.fft.fft2(sharp**2.2, axes=(0, 1)) * spectrum, axes=(0, 1)).real.clip(0, 1) ** (1 / 2.2)
    alpha = np.full((96, 128, 1), 77, np.uint8)
    Image.fromarray(np.concatenate((np.rint(blurred * 255).astype(np.uint8), alpha), 2)).save(tmp_path / "b.png")
    np.save(tmp_path / "psf.npy", np.broadcast_to(psf[..., None], (*cells, 9, 9, 1)))
    told = ("--task", "deblur", "--psf", str(tmp_path / "psf.npy"))
    for name, options in (("measured", ()), ("bold", ("--noise-level", "0.003")), ("odd", ("--linear",))):
        assert run(str(tmp_path / "b.png"), *told, *options, "-o", str(tmp_path / f"{name}.png")) == 0
    with Image.open(tmp_path / "bold.png") as opened:
        assert set(np.asarray(opened)[..., 3].ravel()) == {77}
    inner = (slice(12, -12), slice(12, -12))
    error = {
        n: np.square(read(tmp_path / f"{n}.png") / 255 - sharp)[inner].mean() for n in ("b", "measured", "bold", "odd")
    }
    assert error["measured"] < error["b"] / 1.5
    assert error["bold"] < error["b"] / 2
    assert error["odd"] > error["measured"], "it was no linear light"


def test_bad_input_gives_one_line_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_text("words")
    for arguments, code in (
        ([str(tmp_path / "notes.png")], 1),
        ([str(tmp_path / "nothing.png")], 1),
        ([str(tmp_path / "notes.png"), "--task", "paint"], 2),
        ([str(tmp_path / "notes.png"), "--perception", "3"], 2),
        ([str(tmp_path / "notes.png"), "--transport", "state.safetensors"], 2),
        ([str(tmp_path / "notes.png"), "--vae", "folder"], 2),
        ([str(tmp_path / "notes.png"), "--perception", "1", "--vae", str(tmp_path / "folder")], 1),
        ([str(tmp_path / "notes.png"), "--perception", "1", "--transport", str(tmp_path / "no.safetensors")], 1),
        ([str(tmp_path / "notes.png"), "--task", "deblur", "--psf", str(tmp_path / "no.npy")], 1),
        ([str(tmp_path / "notes.png"), "--noise-level", "0.1"], 2),
        ([str(tmp_path / "notes.png"), "--linear"], 2),
    ):
        assert run(*arguments) == code, arguments
        err = capsys.readouterr().err
        assert err.startswith("saccade: ")
        assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.png"]


def test_the_dial_of_perception_goes_from_least_error_to_natural_statistics(
    noisy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = read(noisy.with_name("clean.bmp"))
    made = {}
    for name, words in {"plain": [], "0": ["--perception", "0"], "1": ["--perception", "1"]}.items():
        assert run(str(noisy), *words, "-o", str(noisy.with_name(f"{name}.png")), "--backend", "torch") == 0
        made[name] = read(noisy.with_name(f"{name}.png"))
    capsys.readouterr()
    assert np.abs(made["plain"] - made["0"]).max() <= 1
    assert np.abs(made["1"] - made["0"]).mean() > 0.2
    errors = [float(np.square(made[name] - clean).mean()) for name in ("0", "1")]
    assert errors[0] < errors[1]


def test_transport_in_a_latent_takes_any_size_and_tells_of_tiles(noisy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import saccade
    from saccade.restoration import restore as module
    from saccade.restoration.dot import DeepOptimalTransport

    state = DeepOptimalTransport(1, vae=saccade.create("vae_small"))
    chance = torch.Generator().manual_seed(0)
    state.update_source(torch.rand(1, 3, 96, 96, generator=chance))
    state.update_target(torch.rand(1, 3, 96, 96, generator=chance))
    path = noisy.with_name("state.safetensors")
    state.save(path)
    worker = module.Restorer(perception=1.0, transport=path, threads=1)
    assert worker.grid % 4 == 0
    odd = noisy.with_name("odd.png")
    with Image.open(noisy) as opened:
        opened.crop((0, 0, 157, 127)).save(odd)
    whole = worker.picture(odd, noisy.with_name("whole.png"))
    assert whole.made == (157, 127)
    assert whole.notices == []
    small = module.Restorer(perception=1.0, transport=path, threads=1)
    monkeypatch.setattr(small, "_tile", lambda: (64, 64))
    parts = small.picture(odd, noisy.with_name("parts.png"))
    assert "overlapping tiles" in parts.notices[0]
    difference = np.abs(read(noisy.with_name("whole.png")) - read(noisy.with_name("parts.png")))
    assert difference.mean() < 1
