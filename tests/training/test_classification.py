"""Training of classifiers: recipes, mixing, determinism, resuming, and that it learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import saccade
from saccade.backbones.hyperzzw import HyperZZW, slow_neural_loss
from saccade.checkpoint import read_header
from saccade.data.shapes import shapes
from saccade.errors import InputError, SaccadeError, UsageError
from saccade.training.classification import RECIPES, Mixed, Options, mix, train
from saccade.training.trainer import Average

TINY = {"widths": (16, 24, 32), "depths": (1, 1, 1), "partial": (0, 8, 8)}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the shapes, 40 pictures, a folder a class."""
    root, found = tmp_path_factory.mktemp("classes"), shapes(400, side=48, seed=0)
    for label, name in ((1, "square"), (6, "ring")):
        (root / name).mkdir()
        for i in (found.labels == label).nonzero()[:20, 0].tolist():
            pixels = (found.images[i].permute(1, 2, 0) * 40 + 128).clamp(0, 255).byte().numpy()
            Image.fromarray(np.ascontiguousarray(pixels)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def options(pictures: Path, tmp_path: Path) -> Options:
    return Options(
        model="shvit",
        data=str(pictures),
        out=str(tmp_path / "run"),
        steps=4,
        batch=6,
        patch=32,
        warmup=1,
        ema=0.9,
        validate_every=4,
        save_every=2,
        workers=0,
        model_options=TINY,
    )


def test_a_run_ends_in_weights_that_know_their_classes(options: Options) -> None:
    path = train(options, say=lambda _: None)
    model = saccade.load(path)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert json.loads(read_header(path)[0]["classes"]) == ["ring", "square"]
    course = json.loads((path.parent / "run.json").read_text())["course"]
    assert 0 <= course[-1]["top1_percent"] <= 100


@pytest.mark.parametrize(("workers", "optimiser"), [(0, "adamw"), (2, "adamw"), (0, "kar")])
def test_a_run_that_was_cut_off_ends_as_if_it_never_was(
    options: Options, tmp_path: Path, workers: int, optimiser: str
) -> None:
    options = replace(options, workers=workers, optimiser=optimiser)
    whole = train(options, say=lambda _: None)
    other = replace(options, out=str(tmp_path / "cut"))

    class CutOffError(Exception):
        """The power went."""

    def stop(self: Mixed, size: int, seed: int, step: int, rank: int = 0) -> object:
        if step == 3:
            raise CutOffError
        return batch(self, size, seed, step, rank)

    batch = Mixed.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mixed, "batch", stop)
        with pytest.raises(CutOffError):
            train(other, say=lambda _: None)
    cut = train(other, say=lambda _: None)
    a, b = (saccade.load(p).state_dict() for p in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_batches_depend_on_seed_step_and_rank_alone(options: Options) -> None:
    model = saccade.create("shvit", weights=None, num_classes=2, **TINY)
    sets = options.split()[0]
    one, two = Mixed(sets, options, model), Mixed(sets, options, model)
    for step in range(2):
        one.batch(6, 0, step)
    for a, b in zip(one.batch(6, 0, 2), two.batch(6, 0, 2), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one.batch(6, 0, 3)[0], one.batch(6, 1, 3)[0])
    assert not torch.equal(one.batch(6, 0, 3, 0)[0], one.batch(6, 0, 3, 1)[0])


def test_a_pass_sees_every_picture_once(options: Options) -> None:
    count = len(options.split()[0])
    order = list(Mixed(options.split()[0], replace(options, steps=count), torch.nn.Identity())._order(1, 0, 0, 0))
    assert sorted(number for ((number, _),) in order) == list(range(count))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pictures_are(options: Options, kind: str) -> None:
    only = replace(options, mixup=float(kind == "mixup"), cutmix=float(kind == "cutmix"), smoothing=0.0)
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 3, 32, 32)
    for seed in range(20):
        made, wanted = mix(pictures, torch.arange(4), 4, only, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(wanted.sum(1), torch.ones(4))
        torch.testing.assert_close(made.mean((1, 2, 3)), wanted @ torch.arange(4.0), atol=1e-5, rtol=1e-5)


def test_labels_are_smoothed(options: Options) -> None:
    plain = replace(options, mixup=0.0, cutmix=0.0, smoothing=0.2)
    _, wanted = mix(torch.zeros(1, 3, 8, 8), torch.tensor([1]), 4, plain, torch.Generator())
    torch.testing.assert_close(wanted, torch.tensor([[0.05, 0.85, 0.05, 0.05]]))


def test_vectors_are_not_decayed(options: Options) -> None:
    model = saccade.create("shvit", weights=None, num_classes=2, **TINY)
    decayed, spared = options.groups(model)
    assert all(p.dim() > 1 for p in decayed["params"])
    assert all(p.dim() <= 1 for p in spared["params"])
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run_and_own_values_win(options: Options, recipe: str) -> None:
    own = {"model": "shvit", "data": options.data, "out": options.out, "steps": 1, "batch": 4, "patch": 32}
    made = Options.of_recipe(recipe, **own, workers=0, model_options=TINY, rate=None, smoothing=0.3, drop=0.0)
    assert made.smoothing == 0.3
    assert made.rate == RECIPES[recipe].get("rate", 1e-3)
    assert train(made, say=lambda _: None).is_file()


@pytest.fixture
def slow_fast(options: Options) -> Options:
    """A small HyperZ.Z.W and the recipe that it was published with."""
    told = {"out": options.out, "steps": 30, "batch": 6, "patch": 16, "warmup": 0, "workers": 0}
    sizes = {"hidden": 8, "local": (3, 3, 3, 3), "local_hidden": 4, "channel_hidden": 4, "spatial_hidden": 4}
    small = {"widths": (12, 24, 24), "depths": (1, 1, 1), "drops": (0.0, 0.0, 0.0), "interaction_hidden": 4, **sizes}
    return Options.of_recipe("hyperzzw", model="hyperzzw", data=options.data, **told, model_options=small)


def test_a_network_adds_losses_of_its_own(slow_fast: Options) -> None:
    """The slow-neural loss and the penalty of HyperZ.Z.W, to the digit, on the first step."""
    options = replace(slow_fast, steps=1, validate_every=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = saccade.create(options.model, weights=None, **options.created(), **options.model_options).train()
    assert isinstance(model, HyperZZW)
    x, wanted = Mixed(options.split()[0], options, model).batch(options.batch, options.seed, 0)
    with torch.no_grad():
        logits = model(x)
        told = torch.nn.functional.cross_entropy(logits, wanted)
        slow, norms = slow_neural_loss(model.kernels()), 5e-5 * model.penalty()
    assert min(float(slow), float(norms)) > 1e-3
    course = json.loads((train(options, say=lambda _: None).parent / "run.json").read_text())["course"]
    assert course[0]["loss"] == pytest.approx(float(told + slow + norms), rel=1e-4)


def test_a_short_training_brings_the_slow_networks_together(slow_fast: Options, tmp_path: Path) -> None:
    apart = []
    for steps in (1, slow_fast.steps):
        path = train(replace(slow_fast, steps=steps, out=str(tmp_path / str(steps))), say=lambda _: None)
        model = saccade.load(path)
        assert isinstance(model, HyperZZW)
        apart.append(float(slow_neural_loss(model.kernels()).detach()))
    assert apart[1] < apart[0] / 2


def test_pictures_are_as_large_as_the_network_was_published_for() -> None:
    assert Options.of_recipe("plain", model="shvit_s4", data="", out="").patch == 256
    assert Options.of_recipe("plain", model="shvit_s1", data="", out="").patch == 224
    assert Options.of_recipe("plain", model="shvit_s4", data="", out="", patch=128).patch == 128


def test_statistics_are_averaged_as_weights_are() -> None:
    model = torch.nn.BatchNorm2d(2)
    average = Average(model, 0.9)
    model.running_mean += 1
    average.update(model, 0)  # (1 + 0) / (10 + 0): early steps count less
    torch.testing.assert_close(average.values["running_mean"], torch.full((2,), 0.9))


def test_it_learns_red_from_blue(options: Options, tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(32):
            pixels = chance.integers(0, 128, (40, 40, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{i}.png")
    own = {k: getattr(options, k) for k in ("model", "out", "patch", "workers", "model_options")}
    plain = Options.of_recipe("plain", data=str(tmp_path / "colours"), **own)
    # 40 steps leave the averaged statistics of the norms behind their weights on five seeds of twelve; 100 on none
    long = replace(plain, steps=100, batch=16, ema=0.9, rate=3e-3, warmup=5, validate_every=100)
    course = json.loads((train(long, say=lambda _: None).parent / "run.json").read_text())["course"]
    assert course[-1]["top1_percent"] == 100


def test_it_starts_from_weights_of_other_classes(options: Options, tmp_path: Path) -> None:
    saccade.save(saccade.create("shvit", weights=None, num_classes=7, **TINY), tmp_path / "old.safetensors")
    told: list[str] = []
    train(replace(options, steps=1, start=str(tmp_path / "old.safetensors")), say=told.append)
    assert "tensors from old.safetensors" in told[0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"smoothing": 1.0}, "--smoothing"),
        ({"patch": 0}, "--size must be at least 1, not 0"),
        ({"mixup": -1.0}, "--mixup"),
        ({"norm_momentum": 2.0}, "norm_momentum"),
        ({"warmup": 5}, "--warmup 5 does not end within --steps 4"),
        ({"magnitude": 31}, "--magnitude"),
        ({"model": "sesr_m5"}, "not for classification"),
        ({"data": "nowhere"}, "nowhere"),
        ({"drop_path": 0.1}, "drop_path_rate"),
    ],
)
def test_what_cannot_be_is_refused(options: Options, wrong: dict[str, object], says: str) -> None:
    with pytest.raises(SaccadeError, match=says):
        train(replace(options, **wrong), say=lambda _: None)


def test_other_classes_to_measure_on_are_named(options: Options, tmp_path: Path) -> None:
    (tmp_path / "val" / "lynx").mkdir(parents=True)
    Image.new("RGB", (40, 40)).save(tmp_path / "val" / "lynx" / "a.png")
    with pytest.raises(InputError, match="lynx"):
        train(replace(options, validate=str(tmp_path / "val")), say=lambda _: None)
    with pytest.raises(UsageError, match="no recipe named 'best'"):
        Options.of_recipe("best")


@pytest.mark.parametrize(
    ("name", "small"),
    [
        ("fit_classifier", {"widths": (8, 8), "depths": (1, 1, 1), "heads": (1, 1)}),
        ("tvconv_mobilenetv2", {"blocks": ((8, 8, 1), (24, 12, 2)), "stem_width": 8, "last": 16, "inter_chans": 4}),
    ],
)
def test_networks_for_one_size_are_built_for_the_pictures(options: Options, name: str, small: dict[str, Any]) -> None:
    """The side of the pictures is also what the network is built for; its file knows it."""
    path = train(replace(options, model=name, patch=64, steps=1, model_options=small), say=lambda _: None)
    assert saccade.load(path)(torch.zeros(2, 3, 64, 64)).shape == (2, 2)


def test_the_command_trains(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from saccade.cli import main

    words = f"train classify --model shvit_s1 --data {pictures} --out {tmp_path / 'run'} --steps 1 --batch 2 --size 32"
    with pytest.raises(SystemExit) as ended:
        main([*words.split(), "--workers", "0", "--validate-every", "1"])
    told = capsys.readouterr()
    assert ended.value.code == 0, told.err
    assert "weights.safetensors" in told.out
