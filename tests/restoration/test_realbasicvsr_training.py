"""RealBasicVSR's two phases: they learn, repeat, resume, and say what is missing before they begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import saccade
from saccade.cli import main
from saccade.data.clips import sharpened
from saccade.data.generated import dead_leaves
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.quality.perceptual import PerceptualLoss
from saccade.registry import create
from saccade.restoration.realbasicvsr.training import Options, charbonnier, load_flow, train

pytest.importorskip("lightning_fabric")
SMALL: dict[str, Any] = {
    "model": "realbasicvsr_tiny",
    "model_options": {"width": 4, "blocks": 1, "cleaning_blocks": 1},
    "batch": 1,
    "patch": 8,
    "frames": 4,
    "loaded": 2,
    "degrade": "bicubic",
    "discriminator_width": 4,
    "rate": 2e-3,
    "ema": 0.9,
    "workers": 0,
    "threads": 1,
    "accelerator": "cpu",
    "devices": "1",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two clips of sliding windows, as folders of frames."""
    for clip in range(2):
        folder, whole = tmp_path / "clips" / str(clip), dead_leaves(48, 60, clip)
        folder.mkdir(parents=True)
        for i in range(6):
            Image.fromarray(whole[:, 2 * i : 2 * i + 48]).save(folder / f"{i}.png")
    return tmp_path / "clips"


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Any:
    def started(out: str = "run", said: list[str] | None = None, **options: Any) -> Path:
        told = {**SMALL, "data": str(data), "out": str(tmp_path / out), **options}
        told |= {"validate_every": told["steps"], "save_every": 3} | options
        phase = told.pop("phase", 0)
        return train(Options.of_phase(phase, **told), say=(said if said is not None else []).append)

    return started


def equal(a: Path, b: Path) -> bool:
    one, other = load_file(a), load_file(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- they learn, repeat and resume


def test_phase_0_lowers_its_loss_and_writes_a_network_that_enlarges(start: Any, tmp_path: Path) -> None:
    said: list[str] = []
    made = start(steps=40, validate_every=10, said=said)
    course = json.loads((made.parent / "run.json").read_text())["course"]
    assert course[-1]["loss"] < 0.8 * course[0]["loss"]
    assert course[-1]["psnr_y_db"] > course[0]["psnr_y_db"]
    assert course[0]["loss"] == pytest.approx(course[0]["pixel"] + course[0]["cleaning"], rel=1e-5)
    assert said[0].startswith("no --flow FILE (SPyNet): the flow network starts at no motion")
    assert "s to read 2 of them" in said[1]
    assert "saved" in said[1]
    model = saccade.load(made).eval()
    assert model.saccade_name == "realbasicvsr_tiny"
    assert model(torch.rand(1, 2, 3, 16, 12)).shape == (1, 2, 3, 64, 48)


def test_phase_1_goes_on_against_a_discriminator(start: Any, tmp_path: Path) -> None:
    before = start("zero", steps=3)
    said: list[str] = []
    made = start("one", phase=1, start=str(before), steps=4, rate=5e-5, said=said)
    [course] = json.loads((made.parent / "run.json").read_text())["course"]
    assert said[0].startswith("no --perceptual FILE (VGG-19): the losses are pixel, cleaning and adversarial alone")
    parts = course["pixel"] + course["cleaning"] + course["adversarial"]
    assert course["loss"] == pytest.approx(parts, rel=1e-5)
    assert course["adversarial"] == pytest.approx(0.05 * 0.693, abs=0.02)
    assert {"judged_real", "judged_made"} <= course.keys()
    assert not equal(before, made)


def test_phase_1_takes_a_file_of_vgg_19(start: Any, tmp_path: Path) -> None:
    features = PerceptualLoss().features.state_dict()
    save_file({f"features.{k}": v.half() for k, v in features.items()}, tmp_path / "vgg19.safetensors")
    said: list[str] = []
    made = start(
        "one",
        phase=1,
        start=str(start("zero", steps=1)),
        steps=1,
        perceptual=str(tmp_path / "vgg19.safetensors"),
        said=said,
    )
    [course] = json.loads((made.parent / "run.json").read_text())["course"]
    parts = ("pixel", "cleaning", "perceptual", "adversarial")
    assert course["perceptual"] > 0
    assert course["loss"] == pytest.approx(sum(course[name] for name in parts), rel=1e-5)
    assert not any("--perceptual" in line for line in said)
    assert load_file(made).keys() == load_file(tmp_path / "zero" / made.name).keys(), "the judges stay out of the file"


@pytest.mark.parametrize("phase", [0, 1])
def test_a_run_that_was_stopped_ends_as_if_it_never_was(start: Any, tmp_path: Path, phase: int) -> None:
    from saccade.training import trainer

    options: dict[str, Any] = {"steps": 6, "phase": phase, "freeze_flow": 4, "still": 0.3}
    if phase:
        options["start"] = str(start("zero", steps=1))
    whole = start("whole", **options)
    keep = trainer.Run.keep

    def kept_and_stopped(self: Any, state: dict[str, Any]) -> None:
        keep(self, state)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Run, "keep", kept_and_stopped)
        with pytest.raises(KeyboardInterrupt):
            start("parts", **options)
    assert torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["step"] == 3
    assert equal(start("parts", **options), whole)
    assert equal(start("again", **options), whole)
    assert not equal(start("other", **options, seed=1), whole)
    if phase:
        kept = [torch.load(tmp_path / n / "last.ckpt", weights_only=True)["task"] for n in ("whole", "parts")]
        for name, value in kept[0]["discriminator"].items():
            assert torch.equal(kept[1]["discriminator"][name], value)


def test_spynet_waits_then_learns_or_never_does(start: Any) -> None:
    flows = []
    for freeze in (-1, 2, 3):
        made = load_file(start(f"freeze{freeze}", steps=3, freeze_flow=freeze, ema=0.0))
        flows.append({k: v for k, v in made.items() if k.startswith("flow.levels.")})
    never, early, late = flows
    assert all(torch.equal(late[k], v) for k, v in never.items()), "three steps are over before step 3"
    changed = [k for k, v in never.items() if not torch.equal(early[k], v)]
    assert "flow.levels.5.convs.4.weight" in changed


# -- the losses


def test_the_loss_is_the_plain_formula(data: Path, tmp_path: Path) -> None:
    for name, distance in (("l1", F.l1_loss), ("charbonnier", lambda a, b: ((a - b) ** 2 + 1e-12).sqrt().mean())):
        options = Options.of_phase(0, **{**SMALL, "data": str(data), "out": str(tmp_path / "run"), "loss": name})
        model = create("realbasicvsr_tiny", weights=None, width=4, blocks=1, cleaning_blocks=1).train()
        options.prepare(model)
        chance = torch.Generator().manual_seed(0)
        low, high = torch.rand(2, 3, 3, 8, 8, generator=chance), torch.rand(2, 3, 3, 32, 32, generator=chance)
        wanted = sharpened(high.flatten(0, 1)).view_as(high)
        cleaned = model.clean(low)
        reduced = wanted.view(2, 3, 3, 8, 4, 8, 4).mean((4, 6))
        expected = distance(model(low), wanted) + distance(cleaned, reduced)
        torch.testing.assert_close(options.loss_function(model)(low, high), expected, rtol=1e-5, atol=1e-7)
        assert options.parts().keys() == {"pixel", "cleaning"}
        assert options.parts() == {}


def test_charbonnier_has_a_gradient_where_pictures_are_equal() -> None:
    a = torch.zeros(3).requires_grad_()
    charbonnier(a, torch.zeros(3)).backward()
    assert a.grad is not None
    assert bool(a.grad.isfinite().all())
    assert float(charbonnier(torch.tensor([3.0]), torch.tensor([1.0]))) == pytest.approx(2)


# -- SPyNet's weights


@pytest.mark.parametrize("names", ["published", "published whole", "own", "own whole"])
def test_flow_weights_are_found_in_files_of_several_kinds(tmp_path: Path, names: str) -> None:
    source, target = (create("realbasicvsr_tiny", weights=None, width=4, blocks=1) for _ in range(2))
    state = {}
    for name, value in source.flow.state_dict().items():
        parts = name.split(".")
        if names.startswith("published") and len(parts) == 5:
            name = f"basic_module.{parts[1]}.basic_module.{parts[3]}.conv.{parts[4]}"
        state[{"published whole": "generator.spynet.", "own whole": "flow."}.get(names, "") + name] = value + 1
    save_file(state | ({"other.weight": torch.zeros(1)} if "whole" in names else {}), tmp_path / "flow.safetensors")
    load_flow(target.flow, tmp_path / "flow.safetensors")
    for name, value in source.flow.state_dict().items():
        wanted = value if name in ("mean", "std") else value + 1
        assert torch.equal(target.flow.state_dict()[name], wanted)
    save_file({k: v for k, v in state.items() if "3" not in k}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match=r"no SPyNet of 6 levels: levels\.\d\.convs\.\d\.weight is missing"):
        load_flow(target.flow, tmp_path / "half.safetensors")


# -- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"phase": 2}, "--phase is 0"),
        ({"phase": 1}, "--phase 1 goes on from a network of phase 0"),
        ({"perceptual": "vgg.pth"}, "--perceptual belongs to --phase 1"),
        ({"degrade": "dirt"}, "--degrade is second-order or bicubic"),
        ({"loss": "l2"}, "--loss is charbonnier or l1"),
        ({"frames": 0}, "--frames must be at least 1"),
        ({"loaded": 0}, "--loaded must be at least 1"),
        ({"stay": 1.0}, "--stay must lie in"),
        ({"still": -0.1}, "--still must lie in"),
        ({"discriminator_rate": float("nan")}, "--discriminator-rate"),
        ({"discriminator_width": 0}, "--discriminator-width"),
        ({"workers": -1}, "--workers"),
        ({"freeze_flow": -2}, "--freeze-flow"),
        ({"model": "sesr_m5", "model_options": {}}, "not for video-super-resolution"),
        ({"model": "realbasicvsr_tinyy"}, "realbasicvsr_tiny"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(start: Any, tmp_path: Path, options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        start(steps=1, **options)
    assert not (tmp_path / "run").exists()


def test_missing_files_and_clips_are_said(start: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file of weights at .*none\.pth"):
        start(steps=1, flow=str(tmp_path / "none.pth"))
    with pytest.raises(InputError, match="no folder of clips at"):
        start(steps=1, data=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="smaller than a crop of 80 x 80 px"):
        start(steps=1, patch=20)


def test_the_command_trains_and_its_errors_are_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--model realbasicvsr_tiny --degrade bicubic --patch 8 --frames 2 --loaded 1 --batch 1 --steps 1"
    common = ["train", "video", *options.split(), "--workers", "0", "--threads", "1", "--accelerator", "cpu"]
    with pytest.raises(SystemExit) as ended:
        main([*common, "--data", str(data), "-o", str(tmp_path / "run"), "--devices", "1", "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert [c["step"] for c in json.loads(said.out)["course"]] == [1]
    for more, code, about in ((["--data", str(tmp_path / "none")], 1, "none"), (["--phase", "1"], 2, "--start")):
        with pytest.raises(SystemExit) as ended:
            main([*common, "--data", str(data), "-o", str(tmp_path / "bad"), *more])
        said = capsys.readouterr()
        assert ended.value.code == code
        assert said.err.splitlines()[-1].startswith("saccade: ")
        assert about in said.err.splitlines()[-1]
        assert "Traceback" not in said.err
