from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.ops.resize import resize
from saccade.quality import (
    benchmark_super_resolution,
    luma,
    luma_enlarger,
    ms_ssim,
    psnr,
    quantise8,
    rgb_to_ycbcr,
    ssim,
    super_resolution_pairs,
    ycbcr_to_rgb,
)

DATA = Path(os.environ.get("SACCADE_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


pytestmark = pytest.mark.usefixtures("one_thread")


def pair(*shape: int, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A smooth picture and a noisy one."""
    chance = torch.Generator().manual_seed(seed)
    coarse = torch.rand((*shape[:-2], 8, 8), generator=chance)
    a = resize(coarse, size=(shape[-2], shape[-1])).clamp(0, 1)
    return a, (a + noise * torch.randn(shape, generator=chance)).clamp(0, 1)


# --- colour ---------------------------------------------------------------------------------------------------------


def test_black_white_and_primaries_land_where_the_standard_says() -> None:
    colours = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[:, :, None, None]
    got = rgb_to_ycbcr(colours)[:, :, 0, 0] * 255
    wanted = torch.tensor(
        [[16, 128, 128], [235, 128, 128], [81.481, 90.203, 240], [144.553, 53.797, 34.214], [40.966, 240, 109.786]]
    )
    torch.testing.assert_close(got, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(luma(colours)[:, 0, 0, 0] * 255, wanted[:, 0], atol=1e-3, rtol=0)


def test_colour_goes_there_and_back() -> None:
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        rgb = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
        back = ycbcr_to_rgb(rgb_to_ycbcr(rgb))
        assert back.dtype == dtype
        torch.testing.assert_close(back, rgb, atol=tolerance, rtol=0)


def test_colours_looked_at_in_inference_mode_first_can_be_trained_on_afterwards() -> None:
    rgb = torch.rand(1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ycbcr_to_rgb(rgb_to_ycbcr(rgb))
    rgb.requires_grad_()
    ycbcr_to_rgb(rgb_to_ycbcr(rgb)).sum().backward()
    assert rgb.grad is not None
    torch.testing.assert_close(rgb.grad, torch.ones_like(rgb))


def test_luma_is_the_first_channel_of_ycbcr() -> None:
    rgb = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(luma(rgb), rgb_to_ycbcr(rgb)[:1])
    with pytest.raises(InputError, match=r"RGB.*\(1, 4, 4\)"):
        luma(torch.zeros(1, 4, 4))


# --- PSNR, SSIM, MS-SSIM --------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    a = torch.full((3, 1, 8, 8), 0.5)
    b = a + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    torch.testing.assert_close(psnr(a, b)[:2], torch.tensor([20.0, 40.0]), atol=1e-3, rtol=0)
    assert psnr(a, b)[2] == float("inf")
    torch.testing.assert_close(psnr(a * 255, b * 255, data_range=255.0)[:2], psnr(a, b)[:2])


def test_eight_bit_tensors_are_measured_at_their_own_scale() -> None:
    a, b = (quantise8(x) for x in pair(2, 3, 24, 30))
    bytes_a, bytes_b = ((x * 255).round().to(torch.uint8) for x in (a, b))
    for measure in (psnr, ssim):
        torch.testing.assert_close(measure(bytes_a, bytes_b, luma=True), measure(a, b, luma=True))


def test_the_border_is_left_out() -> None:
    a, b = pair(1, 3, 40, 44)
    spoilt = b.clone()
    spoilt[..., :3, :] = 0
    spoilt[..., -3:, :] = 0
    spoilt[..., :3] = 0
    spoilt[..., -3:] = 0
    for measure in (psnr, ssim):
        assert torch.equal(measure(a, spoilt, border=3), measure(a, b, border=3))
        assert measure(a, spoilt, border=2) < measure(a, b, border=2)


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_a_batch_gives_each_picture_its_own_figure(measure) -> None:  # type: ignore[no-untyped-def]
    a, b = pair(3, 3, 176, 180)
    together = measure(a, b, luma=True)
    assert together.shape == (3,)
    for i in range(3):
        torch.testing.assert_close(measure(a[i], b[i], luma=True), together[i])


def plain_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel, values 0..255, written out window by window in float64."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    total = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            c1, c2 = 2.55**2, 7.65**2
            total.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(total))


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.3])
def test_ssim_is_the_one_written_out(noise: float) -> None:
    a, b = pair(2, 19, 23, noise=noise)
    wanted = np.mean([plain_ssim(a[c].double().numpy() * 255, b[c].double().numpy() * 255) for c in range(2)])
    assert abs(float(ssim(a, b)) - wanted) < 2e-6


def test_ssim_keeps_its_digits_on_flat_bright_pictures() -> None:
    a = torch.full((1, 1, 32, 32), 0.98)
    b = a + 1e-3 * torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ssim(a, b).double(), ssim(a.double(), b.double()), atol=1e-6, rtol=0)


def plain_ms_ssim(a: Tensor, b: Tensor) -> float:
    """One channel (1, 1, H, W), five scales with a two-dimensional window in float64."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = torch.outer(line, line)[None, None] / line.sum() ** 2
    a, b, product = a.double(), b.double(), 1.0
    for scale, weight in enumerate([0.0448, 0.2856, 0.3001, 0.2363, 0.1333]):
        ma, mb, aa, bb, ab = (torch.conv2d(x, window) for x in (a, b, a * a, b * b, a * b))
        contrast = (2 * (ab - ma * mb) + 0.0009) / (aa - ma**2 + bb - mb**2 + 0.0009)
        brightness = (2 * ma * mb + 0.0001) / (ma**2 + mb**2 + 0.0001)
        product *= float((contrast * brightness if scale == 4 else contrast).mean()) ** weight
        a, b = torch.nn.functional.avg_pool2d(a, 2), torch.nn.functional.avg_pool2d(b, 2)
    return product


@pytest.mark.parametrize(("height", "width"), [(176, 176), (181, 200)])
def test_ms_ssim_is_the_one_written_out(height: int, width: int) -> None:
    a, b = pair(1, 1, height, width, noise=0.2)
    assert abs(float(ms_ssim(a, b)) - plain_ms_ssim(a, b)) < 2e-6


def test_torchmetrics_agrees_where_it_follows_the_protocol() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.image", reason="needs the extra 'quality'")
    a, b = pair(2, 3, 180, 200)
    noise = metrics.peak_signal_noise_ratio(a, b, data_range=1.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(a, b), noise, atol=1e-4, rtol=0)
    # its SSIM also counts windows that reach beyond the picture: 5 pixels of its map on each side
    _, full = metrics.structural_similarity_index_measure(
        a, b, data_range=1.0, reduction="none", return_full_image=True
    )
    torch.testing.assert_close(ssim(a, b), full[..., 5:-5, 5:-5].mean((1, 2, 3)), atol=1e-5, rtol=0)
    y, z = luma(a), luma(b)  # and so does the last scale of its MS-SSIM
    multi = metrics.multiscale_structural_similarity_index_measure(y, z, data_range=1.0, reduction="none")
    torch.testing.assert_close(ms_ssim(y, z), multi, atol=1e-3, rtol=0)


def test_ms_ssim_of_colours_is_the_mean_over_channels() -> None:
    a, b = pair(1, 3, 176, 190, noise=0.2)
    each = torch.stack([ms_ssim(a[:, c : c + 1], b[:, c : c + 1]) for c in range(3)])
    torch.testing.assert_close(ms_ssim(a, b), each.mean(0))


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_equal_pictures_have_similarity_one(measure) -> None:  # type: ignore[no-untyped-def]
    a, _ = pair(1, 3, 177, 181)
    torch.testing.assert_close(measure(a, a), torch.ones(1), atol=1e-6, rtol=0)


def test_similarities_are_losses_with_right_gradients() -> None:
    a, b = (x.double().requires_grad_() for x in pair(1, 1, 13, 12))
    assert torch.autograd.gradcheck(ssim, (a, b))
    assert torch.autograd.gradcheck(psnr, (a, b))
    c, d = pair(1, 1, 176, 176)
    (ms_ssim(c.requires_grad_(), d).sum()).backward()
    assert c.grad is not None
    assert torch.isfinite(c.grad).all()
    assert c.grad.abs().sum() > 0


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    channels=st.sampled_from([1, 3]),
    border=st.integers(0, 16),
    on_luma=st.booleans(),
)
def test_any_size_gives_a_figure_or_a_clear_error(
    height: int, width: int, channels: int, border: int, on_luma: bool
) -> None:
    a, b = pair(1, channels, height, width)
    left = min(height, width) - 2 * border
    for measure, needed in ((psnr, 1), (ssim, 11)):
        if left < needed:
            with pytest.raises(InputError, match="pixels"):
                measure(a, b, border=border, luma=on_luma)
        else:
            assert torch.isfinite(measure(a, b, border=border, luma=on_luma)).all()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: psnr(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)), InputError, "differ"),
        (lambda: psnr(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)), InputError, "differ"),
        (lambda: psnr(torch.zeros(4, 4), torch.zeros(4, 4)), InputError, "C, H, W"),
        (lambda: psnr(*(torch.zeros(1, 4, 4, dtype=torch.int64),) * 2), InputError, "int64"),
        (lambda: psnr(*(torch.zeros(2, 4, 4),) * 2, luma=True), InputError, "RGB"),
        (lambda: psnr(*(torch.zeros(1, 4, 4),) * 2, border=-1), UsageError, "border"),
        (lambda: psnr(*(torch.zeros(1, 4, 4),) * 2, data_range=0.0), UsageError, "data_range"),
        (lambda: ms_ssim(*(torch.zeros(1, 175, 300),) * 2), InputError, "176x176"),
    ],
)
def test_bad_pictures_are_refused_with_a_reason(call, error: type[Exception], says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=says):
        call()


def test_quantising_gives_what_a_file_would_hold() -> None:
    x = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.7])
    torch.testing.assert_close(quantise8(x), torch.tensor([0, 0, 0, 1 / 255, 1, 1]))


# --- super-resolution -----------------------------------------------------------------------------------------------


class Bicubic(nn.Module):
    """A 'network' that enlarges luma by bicubic."""

    colour = "luma"

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.was_training: list[bool] = []

    def forward(self, y: Tensor) -> Tensor:
        assert y.shape[1] == 1
        self.was_training.append(self.training)
        return resize(y, self.scale)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    coarse = [torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    for i, (height, width) in enumerate([(50, 61), (47, 40)]):
        pixels = resize(coarse[i], size=(height, width)).clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"img{i}.png")
    Image.fromarray(chance.integers(0, 256, (33, 36), dtype=np.uint8)).save(tmp_path / "img10.png")  # grey
    (tmp_path / "notes.txt").write_text("not a picture")
    return tmp_path


def test_pairs_follow_the_protocol(folder: Path) -> None:
    pairs = list(super_resolution_pairs(folder, 3))
    assert [path.name for path, _, _ in pairs] == ["img0.png", "img1.png", "img10.png"]
    for path, low, high in pairs:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255
        height, width = pixels.shape[2] // 3 * 3, pixels.shape[3] // 3 * 3
        assert torch.equal(high, pixels[..., :height, :width])
        assert torch.equal(low, quantise8(resize(high, 1 / 3)))
        assert low.shape == (1, 3, height // 3, width // 3)


def test_bicubic_measures_as_bicubic(folder: Path) -> None:
    seen: dict[str, dict[str, float]] = {}
    figures = benchmark_super_resolution(
        lambda x: resize(x, 2), folder, 2, each=lambda path, row: seen.update({path.name: row})
    )
    assert figures["psnr_y"] == figures["bicubic_psnr_y"]
    assert figures["ssim_y"] == figures["bicubic_ssim_y"]
    assert set(seen) == {"img0.png", "img1.png", "img10.png"}
    assert figures["psnr_y"] == pytest.approx(sum(row["psnr_y"] for row in seen.values()) / 3)
    path, low, high = next(iter(super_resolution_pairs(folder, 2)))
    made = quantise8(resize(low, 2))
    assert seen[path.name]["psnr_y"] == pytest.approx(float(psnr(made, high, border=2, luma=True)), abs=1e-4)
    assert seen[path.name]["ssim_y"] == pytest.approx(float(ssim(made, high, border=2, luma=True)), abs=1e-6)


def test_a_luma_network_is_measured_on_luma_alone_and_in_evaluation_mode(folder: Path) -> None:
    model = Bicubic(2).train()
    enlarge = luma_enlarger(model)
    quick = benchmark_super_resolution(enlarge, folder, 2)
    assert model.was_training == [False] * 3
    assert model.training
    whole = benchmark_super_resolution(lambda x: enlarge(x), folder, 2)  # a plain function: through RGB
    for name in ("psnr_y", "ssim_y"):
        assert quick[name] == pytest.approx(whole[name], abs=0.3)  # RGB is clamped and rounded, or Y is
        assert quick[name] == pytest.approx(quick[f"bicubic_{name}"], abs=0.3)


def test_a_luma_network_in_colour_is_bicubic_when_the_network_is() -> None:
    rgb = 0.2 + 0.6 * torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    wanted = resize(rgb, 3)
    inside = ((wanted > 0) & (wanted < 1)).all(1, keepdim=True).expand_as(wanted)
    got = luma_enlarger(Bicubic(3))(rgb)
    torch.testing.assert_close(got[inside], wanted[inside], atol=1e-5, rtol=0)
    assert inside.float().mean() > 0.9


def test_rounding_luma_too_is_an_option(folder: Path) -> None:
    figures = [benchmark_super_resolution(lambda x: resize(x, 2), folder, 2, round_luma=r) for r in (False, True)]
    assert figures[0]["psnr_y"] != figures[1]["psnr_y"]
    assert figures[0]["psnr_y"] == pytest.approx(figures[1]["psnr_y"], abs=0.5)


def test_what_cannot_be_measured_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"img0.png enlarged by 2 should have 60x50 pixels, it has 90x75"):
        benchmark_super_resolution(lambda x: resize(x, 3), folder, 2)
    with pytest.raises(UsageError, match="whole number"):
        benchmark_super_resolution(lambda x: x, folder, 0)
    with pytest.raises(InputError, match="no such"):
        benchmark_super_resolution(lambda x: x, folder / "missing", 2)
    with pytest.raises(UsageError, match="luma network"):
        luma_enlarger(nn.Identity())
    with pytest.raises(InputError, match="smaller"):
        benchmark_super_resolution(lambda x: x, folder, 62)


@pytest.mark.parametrize(("name", "wanted"), [("set5", 33.69), ("set14", 30.32), ("b100", 29.56)])
def test_bicubic_has_its_published_means_at_x2(name: str, wanted: float) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"no pictures at {DATA / name}; SACCADE_DATA names their folder")
    figures = benchmark_super_resolution(lambda x: resize(x, 2), DATA / name, 2)
    assert figures["psnr_y"] == pytest.approx(wanted, abs=0.02)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, saccade.quality; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
