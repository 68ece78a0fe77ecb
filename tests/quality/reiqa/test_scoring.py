"""Scores of files: all kinds of pictures, errors by file, regressors tied to their features, both engines alike."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import CheckpointError, InputError, UsageError
from saccade.quality.reiqa.encoder import DEVIATION, MEAN, local_contrast
from saccade.quality.reiqa.engine import STRIP, contrast_in_strips
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.ridge import fit_ridge
from saccade.quality.reiqa.scoring import Regressor, Score, Scorer, capped, half, read_pixels, score
from saccade.registry import create
from saccade.runtime.engines import available_backends


def tiny(seed: int = 0) -> ReIQA:
    made = create("reiqa_small", weights=None, width=0.0625, layers=[1, 1])
    assert isinstance(made, ReIQA)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point():
                drawn = torch.randn(value.shape, generator=generator)
                fan = value[0].numel() if value.dim() > 1 else 1
                value.copy_(0.5 + drawn.abs() if name.endswith("running_var") else drawn / fan**0.5)
    return made


def pixels(height: int = 80, width: int = 96, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (10, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(pixels(seed=i)).save(folder / f"p{i}.png")
    return folder


def test_all_ways_to_hand_over_a_picture_give_one_result(pictures: Path) -> None:
    scorer = Scorer(tiny(), threads=1)
    array = pixels()
    wanted = scorer.features(pictures / "p0.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    for given_ in (str(pictures / "p0.png"), array, Image.fromarray(array), tensor, tensor[None], array / 255):
        np.testing.assert_array_equal(scorer.features(given_), wanted)
    assert scorer.score(array) == pytest.approx(scorer.regress(wanted))


@pytest.mark.skipif("openvino" not in available_backends(), reason="OpenVINO is not installed")
@given(height=st.integers(64, 130), width=st.integers(64, 130), seed=st.integers(0, 5))
@settings(max_examples=6, deadline=None)
def test_engines_and_the_network_agree(height: int, width: int, seed: int) -> None:
    model, array = tiny(), pixels(height, width, seed)
    made = [Scorer(model, backend=b, threads=1).features(array) for b in ("openvino", "torch")]  # type: ignore[arg-type]
    full, small = (torch.from_numpy(v.copy()).permute(2, 0, 1)[None].float() / 255 for v in (array, half(array)))
    with torch.no_grad():
        plain = model(full, small)[0].numpy()
    for features in made:
        np.testing.assert_allclose(features, plain, rtol=2e-4, atol=2e-4 * np.abs(plain).max())


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("height", [1, 5, STRIP, STRIP + 1, 2 * STRIP + 7])
def test_strips_of_local_contrast_are_the_whole(height: int, normalise: bool) -> None:
    array = pixels(height, 70)
    x = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
    if normalise:
        x = (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(DEVIATION).view(1, 3, 1, 1)
    np.testing.assert_allclose(contrast_in_strips(array, normalise, 1), local_contrast(x).numpy(), atol=1e-6)


def test_the_dial_changes_what_runs(pictures: Path) -> None:
    whole = Scorer(tiny(), threads=1).features(pixels())
    for budget, part in ((0.1, slice(8, 16)), (0.4, slice(0, 8)), (0.5, slice(0, 16)), (1.0, slice(None))):
        np.testing.assert_allclose(Scorer(tiny(), budget=budget, threads=1).features(pixels()), whole[part], rtol=1e-5)


def test_large_pictures_are_reduced_to_the_side() -> None:
    scorer = Scorer(tiny(), side=256, threads=1)
    large = pixels(300, 520)
    small = np.asarray(Image.fromarray(large).resize((256, 148), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(scorer.features(large), scorer.features(small))


def test_panoramas_keep_enough_of_their_short_side() -> None:
    scorer = Scorer(tiny(), side=256, threads=1)
    wide = pixels(100, 900)
    kept = np.asarray(Image.fromarray(wide).resize((576, 64), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(scorer.features(wide), scorer.features_of_bytes(capped(wide, 256, 64)))
    np.testing.assert_array_equal(capped(wide, 256, 64), kept)
    with pytest.raises(InputError, match="too small"):  # 64 x 1280 would be more than 256 x 256
        scorer.features(pixels(100, 2000))


def test_small_pictures_are_scored_with_a_note(tmp_path: Path) -> None:
    for side in (70, 128):
        Image.fromarray(pixels(side, 200)).save(tmp_path / f"{side}.png")
    few, enough = Scorer(tiny(), threads=1).scores([tmp_path / "70.png", tmp_path / "128.png"])
    assert few.score is not None
    assert "few pixels, 200 x 70" in few.notices[0]
    assert enough.notices == ()


def test_panoramas_and_pictures_of_one_colour_are_scored_with_a_note(tmp_path: Path) -> None:
    Image.fromarray(pixels(200, 900)).save(tmp_path / "wide.png")
    Image.fromarray(np.full((140, 150, 3), 7, np.uint8)).save(tmp_path / "flat.png")
    Image.fromarray(np.zeros((140, 150, 4), np.uint8)).save(tmp_path / "clear.png")
    scorer = Scorer(tiny(), side=256, threads=1)
    wide, flat, clear = scorer.scores([tmp_path / name for name in ("wide.png", "flat.png", "clear.png")])
    assert wide.notices == (
        f"{tmp_path / 'wide.png'} has few pixels, once it is reduced, 288 x 64: its score is rough",
    )
    assert flat.notices == (f"{tmp_path / 'flat.png'} is of one colour throughout: its score says nothing",)
    assert "scored on white" in clear.notices[0]
    assert "one colour throughout" in clear.notices[1]
    assert None not in (wide.score, flat.score, clear.score)


def test_a_picture_that_a_lower_budget_could_score_is_told_so() -> None:
    with pytest.raises(InputError, match=r"at least 64 \(32 will do at a lower budget"):
        Scorer(tiny(), threads=1).features(pixels(40, 100))
    assert len(Scorer(tiny(), budget=0.4, threads=1).features(pixels(40, 100))) == 8
    with pytest.raises(InputError, match=r"at least 64$"):
        Scorer(tiny(), threads=1).features(pixels(20, 20))


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "P"])
def test_a_picture_in_memory_is_scored_as_its_file_is(mode: str, tmp_path: Path) -> None:
    array = pixels(120, 130)
    if mode == "I;16":
        image = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([array, np.tile(np.arange(130, dtype=np.uint8), (120, 1))]))
    else:
        image = Image.fromarray(array).convert(mode)
    image.save(tmp_path / "a.png")
    scorer = Scorer(tiny(), threads=1)
    np.testing.assert_array_equal(scorer.features(image), scorer.features(tmp_path / "a.png"))


def test_grey_transparent_deep_and_cmyk_files_are_converted_with_a_note(tmp_path: Path) -> None:
    array = pixels()
    files = {"grey.png": Image.fromarray(array).convert("L"), "cmyk.jpg": Image.fromarray(array).convert("CMYK")}
    alpha = np.full(array.shape[:2], 255, np.uint8)
    alpha[:20] = 0
    files["alpha.png"] = Image.fromarray(np.dstack([array, alpha]))
    files["deep.png"] = Image.fromarray(array[..., 0].astype(np.uint16) * 257)
    for name, image in files.items():
        image.save(tmp_path / name)
        made, notices, size = read_pixels(tmp_path / name)
        assert made.shape == (80, 96, 3)
        assert made.dtype == np.uint8
        assert size == (96, 80)
        assert notices, name
    assert (read_pixels(tmp_path / "alpha.png")[0][:20] == 255).all(), "transparency is laid on white"
    np.testing.assert_array_equal(read_pixels(tmp_path / "deep.png")[0][..., 1], array[..., 0])


def test_a_file_that_cannot_be_used_has_its_error_and_the_others_go_on(pictures: Path) -> None:
    (pictures / "a_text.png").write_text("no picture")
    Image.fromarray(pixels(40, 50)).save(pictures / "b_small.png")
    (pictures / "c_cut.png").write_bytes((pictures / "p0.png").read_bytes()[:200])
    rows = score(pictures, tiny(), threads=1)
    errors = {Path(r.path).name: r.error for r in rows if r.error}
    assert set(errors) == {"a_text.png", "b_small.png", "c_cut.png"}
    assert "50 x 40 pixels is too small" in str(errors["b_small.png"])
    assert all(name in str(said) for name, said in errors.items())
    assert sum(r.score is not None for r in rows) == 3
    assert rows[-1].to_dict()["width"] == 96


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (pixels()[..., 0], "RGB pictures"),
        (pixels().astype(np.int32), "uint8 or float"),
        (pixels() / 255 - 0.5, "looks normalised"),
        (pixels().astype(float), "divide by 255"),
        (np.full((80, 80, 3), np.nan), "in \\[0, 1\\]"),
        (pixels(63, 100), "at least 64"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(bad: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Scorer(tiny(), threads=1).features(bad)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 256"):
        Scorer(tiny(), side=100)
    with pytest.raises(UsageError, match="backends for scoring"):
        Scorer(tiny(), backend="tpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no model named"):
        Scorer("reiqa_smal")
    bare = ReIQA(tiny().quality)
    with pytest.raises(UsageError, match="saccade train iqa"):
        list(Scorer(bare, threads=1).scores([Path("x.png")]))


# -- regressors


def regressor(scorer: Scorer) -> Regressor:
    features = np.stack([scorer.features(pixels(seed=i)) for i in range(6)])
    return Regressor.of(fit_ridge(features, np.arange(6.0)), scorer, srcc=0.5)


def test_a_regressor_comes_back_as_it_was(tmp_path: Path) -> None:
    scorer = Scorer(tiny(), budget=0.5, threads=1)
    made = regressor(scorer)
    made.save(tmp_path / "r.safetensors")
    with pytest.raises(InputError, match="exists"):
        made.save(tmp_path / "r.safetensors")
    made.save(tmp_path / "r.safetensors", overwrite=True)
    again = Scorer(tiny(), tmp_path / "r.safetensors", threads=1)
    assert again.model.setting == "quality", "the regressor tells the layout"
    features = scorer.features(pixels())
    assert again.score(pixels()) == pytest.approx(float(features @ made.coefficients + made.intercept))
    assert Regressor.load(tmp_path / "r.safetensors").about["srcc"] == 0.5


def test_regressors_of_other_features_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    regressor(Scorer(tiny(), budget=0.5, threads=1)).save(path)
    with pytest.raises(CheckpointError, match=r"fitted on other features: .*branches .*quality.* there"):
        Scorer(tiny(), path, budget=1.0)
    with pytest.raises(CheckpointError, match="encoders"):
        Scorer(tiny(seed=1), path)
    with pytest.raises(CheckpointError, match="side 2048 there, 512 here"):
        Scorer(tiny(), path, side=512)


def test_pickles_and_damaged_regressors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.pkl").write_bytes(pickle.dumps({"coef": [1, 2]}))
    with pytest.raises(CheckpointError, match="pickle"):
        Regressor.load(tmp_path / "r.pkl")
    with pytest.raises(CheckpointError):
        Regressor.load(tmp_path / "none.safetensors")
    good = tmp_path / "r.safetensors"
    made = regressor(Scorer(tiny(), budget=0.5, threads=1))
    Regressor(made.coefficients * np.nan, 0.0, made.layout).save(tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        Regressor.load(tmp_path / "nan.safetensors")
    Regressor(made.coefficients[:-1], 0.0, made.layout).save(tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match="damaged"):
        Regressor.load(tmp_path / "short.safetensors")
    made.save(good)
    whole = good.read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(60):
        spoilt = bytearray(whole[: int(chance.integers(1, len(whole) + 1))])
        for place in chance.integers(0, len(spoilt), 3):
            spoilt[place] = int(chance.integers(256))
        (tmp_path / "x.safetensors").write_bytes(spoilt)
        try:
            Regressor.load(tmp_path / "x.safetensors")
        except CheckpointError:
            continue


def test_scores_are_plain_data() -> None:
    assert json.loads(json.dumps(Score("a.png", 1.5, 4, 5).to_dict()))["score"] == 1.5
