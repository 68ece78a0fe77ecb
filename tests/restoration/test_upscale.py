"""The main job from Python: what comes in goes out enlarged, and what cannot be enlarged is refused with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade import registry
from saccade.errors import CheckpointError, InputError, SaccadeError, UnavailableError, UsageError
from saccade.restoration import upscale as module
from saccade.restoration.given import targets
from saccade.restoration.upscale import AUTO, Upscaler

needs_graphs = pytest.mark.skipif("openvino" not in module.engines.available_backends(), reason="no OpenVINO")


def colours(height: int = 12, width: int = 15, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SACCADE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def worker() -> Upscaler:
    return Upscaler("sesr_m5", 2, threads=1)


@pytest.fixture(autouse=True)
def _one_worker(worker: Upscaler, monkeypatch: pytest.MonkeyPatch) -> None:
    """`saccade.upscale` with default arguments reuses one worker: starting engines is not what is tested."""
    plain = {"budget": None, "backend": "auto", "device": "auto", "max_memory": 1 << 30, "threads": 0}

    def reuse(model: Any, scale: Any, **options: Any) -> Upscaler:
        return (
            worker
            if (model, 2 if scale is None else scale, options) == ("auto", 2, plain)
            else Upscaler(model, scale, **options)
        )

    monkeypatch.setattr(module, "Upscaler", reuse)


# -- what comes in goes out


def test_an_array_gives_an_array() -> None:
    pixels = colours()
    made = saccade.upscale(pixels)
    assert made.shape == (24, 30, 3)
    assert made.dtype == np.uint8
    grey = saccade.upscale(pixels[:, :, 0])
    assert grey.shape == (24, 30)
    np.testing.assert_array_equal(saccade.upscale(pixels[:, :, :1])[:, :, 0], grey)
    # views, turned and read-only arrays are pictures too
    turned = pixels.transpose(1, 0, 2)[::-1]
    turned.flags.writeable = False
    np.testing.assert_array_equal(saccade.upscale(turned), saccade.upscale(np.ascontiguousarray(turned)))


def test_alpha_goes_its_own_way_and_never_into_the_colour() -> None:
    pixels, alpha = colours(), colours(channels=1)
    made = saccade.upscale(np.concatenate((pixels, alpha), 2))
    assert made.shape == (24, 30, 4)
    np.testing.assert_array_equal(made[..., :3], saccade.upscale(pixels))
    pair = saccade.upscale(np.concatenate((alpha, alpha), 2))
    np.testing.assert_array_equal(pair[..., 1], made[..., 3])
    hidden = np.concatenate((pixels, np.zeros_like(alpha)), 2)
    assert (saccade.upscale(hidden)[..., 3] == 0).all()
    np.testing.assert_array_equal(saccade.upscale(hidden)[..., :3], made[..., :3])


def test_sixteen_bits_stay_sixteen_bits_and_agree_with_eight() -> None:
    pixels = colours()
    made = saccade.upscale(pixels.astype(np.uint16) * 257)
    assert made.dtype == np.uint16
    assert np.abs(made / 257 - saccade.upscale(pixels)).max() <= 0.51


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_stay_floats_of_their_kind(dtype: type) -> None:
    pixels = colours()
    made = saccade.upscale((pixels / 255).astype(dtype))
    assert made.dtype == dtype
    assert 0 <= made.min() <= made.max() <= 1
    assert np.abs(made.astype(np.float64) * 255 - saccade.upscale(pixels)).max() < (0.6 if dtype != np.float16 else 1)


def test_a_tensor_gives_a_tensor_of_its_kind() -> None:
    pixels = colours()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    made = saccade.upscale(tensor.requires_grad_())
    assert made.shape == (3, 24, 30)
    assert made.dtype == torch.float32
    assert np.abs(made.permute(1, 2, 0).numpy() * 255 - saccade.upscale(pixels)).max() < 0.6
    batch = saccade.upscale(torch.stack((tensor, tensor.flip(2))).detach().half())
    assert batch.shape == (2, 3, 24, 30)
    assert batch.dtype == torch.float16
    assert saccade.upscale(tensor[:1].detach()).shape == (1, 24, 30)


@pytest.mark.parametrize(
    ("mode", "out"),
    [
        *((mode, mode) for mode in ("RGB", "RGBA", "L", "LA", "I;16")),
        *((mode, "RGB") for mode in ("P", "CMYK", "YCbCr", "HSV")),
        *(("1", "L"), ("La", "LA"), ("RGBa", "RGBA"), ("PA", "RGBA")),
    ],
)
def test_a_pil_image_gives_a_pil_image(mode: str, out: str) -> None:
    image = Image.fromarray(colours())
    if mode == "I;16":
        image = Image.fromarray(colours(channels=1)[:, :, 0].astype(np.uint16) * 257)
    elif mode in ("La", "RGBa"):
        image = image.convert(mode.upper()).convert(mode)
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    else:
        image = image.convert(mode)
    made = saccade.upscale(image)
    assert made.size == (30, 24)
    assert made.mode == out
    if mode in ("RGB", "L"):
        np.testing.assert_array_equal(np.asarray(made), saccade.upscale(np.asarray(image)))


def test_transparency_of_a_palette_becomes_alpha() -> None:
    image = Image.fromarray(colours()).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    made = saccade.upscale(image)
    assert made.mode == "RGBA"
    assert np.asarray(made)[..., 3].min() == 0


def test_pil_images_of_32_bits_must_hold_16_bit_counts_or_fractions() -> None:
    counts = colours(channels=1)[:, :, 0].astype(np.int32)
    assert saccade.upscale(Image.fromarray(counts * 257)).mode == "I;16"
    with pytest.raises(InputError, match="counts from 0 to 65535"):
        saccade.upscale(Image.fromarray(counts - 300))
    assert saccade.upscale(Image.fromarray((counts / 255).astype(np.float32))).mode == "I;16"
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        saccade.upscale(Image.fromarray(counts.astype(np.float32)))


def test_a_path_gives_a_pil_image_or_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(colours(channels=4)).save(source)
    made = saccade.upscale(source)
    assert (made.mode, made.size) == ("RGBA", (30, 24))
    report = saccade.upscale(str(source), output=target)
    assert (report.size, report.made, report.model, report.scale) == ((15, 12), (30, 24), "sesr_m5", 2)
    assert report.macs == 13_520 * 15 * 12
    assert report.seconds > 0
    np.testing.assert_array_equal(np.asarray(Image.open(target)), np.asarray(made))
    with pytest.raises(InputError, match="exists"):
        saccade.upscale(source, output=target)
    assert saccade.upscale(source, output=target, overwrite=True).to_dict()["frames"] == 1


def test_a_file_and_its_array_give_the_same_pixels(tmp_path: Path, worker: Upscaler) -> None:
    pixels, alpha = colours(50, 40), colours(50, 40, 1)[:, :, 0]
    Image.fromarray(np.dstack((pixels, alpha))).save(tmp_path / "a.png")
    engine = worker.engine()
    own, engine.tile = engine.tile, (16, 16)  # type: ignore[misc]
    try:
        report = worker.picture(tmp_path / "a.png", tmp_path / "b.png")
    finally:
        engine.tile = own  # type: ignore[misc]
    colour, clear = worker.array(pixels, alpha)
    assert report.tiles == 12
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.dstack((colour, clear)))


def test_progress_counts_every_input_pixel(tmp_path: Path, worker: Upscaler) -> None:
    Image.fromarray(colours(300, 20)).save(tmp_path / "a.png")
    steps: list[float] = []
    worker.picture(tmp_path / "a.png", tmp_path / "b.png", advance=steps.append)
    assert sum(steps) == 300 * 20
    assert len(steps) > 1


# -- what is refused


@pytest.mark.parametrize(
    "image",
    [
        None,
        7,
        [[1, 2], [3, 4]],
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.uint8),
        np.zeros((0, 0, 3)),
        np.zeros(5, np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), complex),
        np.zeros((4, 4, 3), object),
        np.zeros((4, 4, 3), "U3"),
        np.full((4, 4, 3), np.nan),
        np.full((4, 4, 3), 255.0),
        np.full((4, 4, 3), -0.5),
        torch.zeros(4),
        torch.tensor(1.0),
        torch.zeros(4, 4),
        torch.zeros(2, 4, 4),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(1, 3, 0, 4),
        torch.zeros(3, 4, 4, dtype=torch.uint8),
        torch.full((3, 4, 4), torch.inf),
        Image.new("RGB", (0, 4)),
    ],
    ids=lambda x: f"{type(x).__name__}-{getattr(x, 'shape', getattr(x, 'size', x))}-{getattr(x, 'dtype', '')}",
)
def test_what_is_no_picture_is_refused(image: object) -> None:
    with pytest.raises(InputError) as caught:
        saccade.upscale(image)
    assert "\n" not in str(caught.value)


def test_a_pil_image_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    Image.fromarray(colours(90, 90)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:9000])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(InputError, match="RGB"):
        saccade.upscale(image)
    with pytest.raises(InputError, match="truncated"):
        saccade.upscale(tmp_path / "a.png")
    with pytest.raises(InputError, match="no such file"):
        saccade.upscale(tmp_path / "none.png")


def test_colour_and_alpha_must_go_together(worker: Upscaler) -> None:
    with pytest.raises(InputError, match="does not go with"):
        worker.array(colours(), np.zeros((3, 3), np.uint8))
    with pytest.raises(InputError, match="does not go with"):
        worker.array(colours(), np.zeros((12, 15), np.uint16))


def test_an_output_goes_with_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="path"):
        saccade.upscale(colours(), output=tmp_path / "a.png")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": 7}, "2, 3 or 4, not 7"),
        ({"scale": 0}, "2, 3 or 4, not 0"),
        ({"scale": -2}, "not -2"),
        ({"scale": 2.5}, "not 2.5"),
        ({"scale": "2"}, "not 2"),
        ({"model": "sesr_m55"}, "nearest are sesr_m5"),
        ({"model": "sesr_m5", "scale": 8}, "sesr_m5 has no x8"),
        ({"model": "sesr_m5", "scale": 0}, "sesr_m5 has no x0"),
        ({"model": "sesr_m5", "budget": 0.5}, "no dial"),
        ({"model": "regnetx_200mf"}, "is for classification"),
        ({"model": "sesr_m3", "scale": 3}, "no weights ship"),
        ({"budget": 0.0}, r"\(0, 1\]"),
        ({"budget": 1.5}, r"\(0, 1\]"),
        ({"budget": float("nan")}, r"\(0, 1\]"),
        ({"backend": "tensorrt"}, "no backend named 'tensorrt'"),
        ({"threads": -1}, "threads"),
        ({"max_memory": 1 << 20}, "--max-memory"),
        ({"device": "gpu0"}, "no device named"),
        ({"device": "cuda", "backend": "openvino"}, "runs on the CPU"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        saccade.upscale(colours(), **options)


def test_a_device_that_is_not_there_is_said() -> None:
    for device in ("meta", "cuda:99", "mps" if not torch.backends.mps.is_available() else "xpu"):
        with pytest.raises(UnavailableError, match=device):
            saccade.upscale(colours(), device=device)


# -- choosing


def shipped(scale: int) -> list[str]:
    return [name for name in AUTO if registry.default_weights(name, scale=scale)]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_auto_takes_the_smallest_and_a_budget_the_largest_within_it(scale: int) -> None:
    names = shipped(scale)
    if not names:
        with pytest.raises(UsageError, match=f"no weights ship for x{scale}"):
            Upscaler(scale=scale)
        return
    assert Upscaler(scale=scale).choice.name == names[0]
    assert Upscaler(scale=scale, budget=1).choice.name == names[-1]
    macs = {name: registry.create(name, weights=None, scale=scale).kernels for name in names}
    largest = max(macs.values())
    for budget in (1e-6, 0.1, 0.13, 0.3, 0.5, 0.999):
        fitting = [name for name in names if macs[name] <= budget * largest]
        expected = max(fitting, key=macs.__getitem__, default=names[0])
        assert Upscaler(scale=scale, budget=budget).choice.name == expected


def test_a_budget_is_reported_with_what_it_spent(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.png")
    report = Upscaler(budget=0.5).picture(tmp_path / "a.png", tmp_path / "b.png")
    assert report.budget is not None
    assert report.budget["asked"] == 0.5
    if len(shipped(2)) > 1:
        assert report.budget["macs_fraction"] <= 0.5


def test_halo_and_cost_read_from_the_header_are_the_networks_own() -> None:
    for path in sorted(registry.WEIGHTS.glob("sesr_*.safetensors")):
        halo, macs = module._measure(path)
        model: Any = saccade.load(path)
        assert (halo, macs) == (model.halo, model.kernels)


def own(folder: Path, name: str = "sesr_m3", scale: int = 3, **options: object) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = saccade.create(name, weights=None, scale=scale, **options)
    path = folder / f"{name}_{scale}.safetensors"
    saccade.save(model, path)
    return path


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=needs_graphs)])
def test_a_users_own_file_tells_its_model_and_scale(tmp_path: Path, backend: str) -> None:
    path = own(tmp_path)
    worker = Upscaler(path, backend=backend)
    assert (worker.choice.name, worker.choice.scale, worker.choice.halo) == ("sesr_m3", 3, 7)
    pixels = colours()
    made = worker.array(pixels)[0]
    assert made.shape == (36, 45, 3)
    truth = Upscaler(saccade_copy(path), 3, backend="torch").array(pixels)[0]
    assert np.abs(made.astype(int) - truth.astype(int)).max() <= 1


def saccade_copy(path: Path) -> str:
    """The same weights under another name, as a string."""
    copy = path.with_name("copy.safetensors")
    copy.write_bytes(path.read_bytes())
    return str(copy)


def test_a_file_without_suffix_is_found_and_a_models_name_wins_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sesr_m5").mkdir()
    assert Upscaler("sesr_m5", 2).choice.weights.parent == registry.WEIGHTS
    own(tmp_path).rename("mine")
    assert Upscaler("mine", backend="torch").choice.name == "sesr_m3"


def test_a_file_of_another_scale_is_refused_and_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds sesr_m3 for x3, you asked for x4; models for x4: .*sesr_m5"):
        Upscaler(own(tmp_path), 4)


def test_a_file_of_another_task_is_refused(tmp_path: Path) -> None:
    model = saccade.create("regnetx_200mf", weights=None)
    saccade.save(model, tmp_path / "classifier.safetensors")
    with pytest.raises(CheckpointError, match="a network for classification: it cannot enlarge"):
        Upscaler(tmp_path / "classifier.safetensors")


def test_files_that_hold_no_usable_weights_are_refused_at_once(tmp_path: Path) -> None:
    text, cut, half = (tmp_path / f"{n}.safetensors" for n in ("text", "cut", "half"))
    text.write_text("these are no weights, just words that stand in a file")
    cut.write_bytes(own(tmp_path).read_bytes()[:3000])
    half.write_bytes(own(tmp_path).read_bytes().replace(b"sesr_m3", b"sesr_m5"))
    for path, says in (
        (tmp_path / "none.safetensors", "no file of weights"),
        (tmp_path, "no file of weights"),
        (text, "not a safetensors file"),
        (cut, "truncated"),
        (half, "does not fit sesr_m5"),
    ):
        with pytest.raises(CheckpointError, match=says):
            Upscaler(f"{path}/" if path.is_dir() else path)


def test_a_file_has_no_dial_unless_it_routes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dial"):
        Upscaler(own(tmp_path), budget=0.5)


# -- the dial of networks that route pixels


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own(tmp_path_factory.mktemp("routed"), "pcsr_small", 2)


def test_a_routed_network_spends_its_budget_and_says_how(routed: Path, tmp_path: Path) -> None:
    Image.fromarray(colours(48, 40)).save(tmp_path / "a.png")
    reports = [
        Upscaler(routed, budget=b).picture(tmp_path / "a.png", tmp_path / "b.png", overwrite=True) for b in (0.6, 1)
    ]
    for report in reports:
        assert report.backend == "torch"
        assert report.budget is not None
        assert sum(report.budget["shares"].values()) == pytest.approx(1)
    half, full = (r.budget["macs_fraction"] for r in reports if r.budget)
    assert half < 0.75
    assert full == pytest.approx(1, abs=0.01)
    assert reports[0].macs < reports[1].macs


def test_a_routed_network_runs_in_torch_only(routed: Path) -> None:
    with pytest.raises(UsageError, match="runs in torch, not in openvino"):
        Upscaler(routed, backend="openvino")


# -- where results go


def test_results_stand_beside_their_sources_or_in_the_folder(tmp_path: Path) -> None:
    def to(names: str, out: str | Path | None, format: str | None = None) -> list[str]:  # noqa: A002
        return [str(t) for _, t in targets([Path(n) for n in names.split()], out, "_x4", format)]

    assert to("in/a.jpg b.JPEG c.gif d.mp4", None) == ["in/a_x4.jpg", "b_x4.JPEG", "c_x4.png", "d_x4.mp4"]
    assert to("in/a.jpg", "out.png") == ["out.png"]
    assert to("in/a.jpg", "out") == ["out/a_x4.jpg"]
    assert to("in/a.jpg", "out.dir/") == ["out.dir/a_x4.jpg"]
    (tmp_path / "old.dir").mkdir()
    assert to("a.jpg b.png", tmp_path / "old.dir") == [str(tmp_path / "old.dir" / n) for n in ("a_x4.jpg", "b_x4.png")]
    assert to("a.jpg b.png c.mov", None, "webp") == ["a_x4.webp", "b_x4.webp", "c_x4.mov"]
    with pytest.raises(UsageError, match=r"2 pictures cannot go into the one file out\.png"):
        to("a.jpg b.png", "out.png")
    with pytest.raises(UsageError, match=r"would both be written to a_x4\.png"):
        to("a.gif a.png", None)


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(UsageError, SaccadeError)
    assert {InputError.exit_code, CheckpointError.exit_code, UsageError.exit_code} == {1, 2}


@pytest.mark.parametrize("name", ["espcn_rgb", "sesr_rgb"])
def test_networks_on_rgb_run_in_openvino_and_in_torch_alike(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.safetensors"
    saccade.save(saccade.create(name, weights=None, scale=2), file)
    for given in (colours(9, 7), colours(9, 7)[:, :, :1]):
        made = [saccade.upscale(given, model=file, max_memory=2 << 30, backend=b) for b in ("openvino", "torch")]
        assert made[0].shape == (18, 14, given.shape[2])
        assert int(np.abs(made[0].astype(int) - made[1]).max()) <= 1
    with pytest.raises(UsageError, match="works on RGB"):
        Upscaler(file, backend="onnxruntime")
    with pytest.raises(UsageError, match="int8 is for networks on luma"):
        Upscaler(file, backend="openvino", precision="int8")


@pytest.mark.parametrize("scale", [2, 1])
def test_tiles_of_a_network_that_sees_blocks_equal_the_whole(scale: int, tmp_path: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = saccade.create("rrdbnet", weights=None, scale=scale, blocks=1, width=8, growth=4)
    saccade.save(model, tmp_path / "rrdb.safetensors")
    pixels = colours(262, 500)  # two columns of tiles, the second from an odd pixel on
    with torch.no_grad():
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        pad = (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)
        whole = model(torch.nn.functional.pad(x, pad, mode="replicate"))[:, :, : 262 * scale, : 500 * scale]
    found = saccade.upscale(pixels, model=tmp_path / "rrdb.safetensors", scale=scale, backend="torch")
    want = (255 * whole[0].clamp(0, 1).permute(1, 2, 0)).round().byte().numpy()
    away = (262 - 40) * scale  # what stands beyond the border is the network's own affair
    assert abs(found[:away].astype(int) - want[:away]).max() <= 1
