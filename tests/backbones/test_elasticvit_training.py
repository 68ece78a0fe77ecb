"""Training of a supernet: what its step adds up to, what is decayed, and that a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import saccade
from saccade.backbones.elasticvit.catalogue import PUBLISHED, SMALL
from saccade.backbones.elasticvit.layers import MobileBlock
from saccade.backbones.elasticvit.network import ElasticViT
from saccade.backbones.elasticvit.sampling import BANKS, NeighbourSampler, UniformSampler
from saccade.backbones.elasticvit.space import largest
from saccade.backbones.elasticvit.training import Options, sampler_for, train
from saccade.checkpoint import read_state
from saccade.errors import UsageError


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright noise, 20 pictures each."""
    folder, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, offset in (("dark", 0), ("bright", 100)):
        (folder / name).mkdir()
        for i in range(20):
            pixels = (offset + chance.integers(0, 120, (48, 52, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def options(pictures: Path, tmp_path: Path) -> Options:
    return Options(
        model="elasticvit", data=str(pictures), out=str(tmp_path / "run"), space="elasticvit-small", steps=4, batch=6,
        patch=64, warmup=1, ema=0.9, validate_every=4, save_every=2, workers=0, operations=1,
    )  # fmt: skip


def network(classes: int = 2) -> ElasticViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = saccade.create("elasticvit", weights=None, space="elasticvit-small", num_classes=classes)
    assert isinstance(made, ElasticViT)
    return made.train()


def test_a_run_ends_in_a_supernet_to_search_in(options: Options) -> None:
    path = train(options, say=lambda _: None)
    made = saccade.load(path)
    assert isinstance(made, ElasticViT)
    assert made.space == SMALL
    course = json.loads((path.parent / "run.json").read_text())["course"]
    assert 0 <= course[-1]["mean_top1_percent"] <= 100
    assert course[-1]["loss"] > 3 * 0.3  # of three networks and the least


def test_gradients_are_clipped_by_their_weights_as_published(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind each step no unit's gradient is above a tenth of its weights' norm, and some are at it."""
    shares = list[float]()

    def look(self: torch.optim.AdamW, *given: Any, **named: Any) -> Any:
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None and p.ndim > 1):
            norms = [t.detach().flatten(1).norm(dim=1) for t in (p.grad, p)]
            shares.append(float((norms[0] / norms[1].clamp(min=1e-3)).max()))
        return step(self, *given, **named)

    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    train(options, say=lambda _: None)
    assert max(shares) == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("sampling", ["neighbours", "uniform"])
def test_a_run_that_was_cut_off_ends_as_if_it_never_was(options: Options, tmp_path: Path, sampling: str) -> None:
    class Cut(Options):
        """The power goes before the last step."""

        def loss_function(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
            made = super().loss_function(model)

            def loss(images: Tensor, wanted: Tensor) -> Tensor:
                if self._done == 3:
                    raise KeyboardInterrupt
                return made(images, wanted)

            return loss

    whole = replace(options, sampling=sampling)
    with pytest.raises(KeyboardInterrupt):
        train(Cut(**{**asdict(whole), "out": str(tmp_path / "cut")}), say=lambda _: None)
    ended = train(replace(whole, out=str(tmp_path / "cut")), say=lambda _: None)
    first, second = (read_state(path)[0] for path in (train(whole, say=lambda _: None), ended))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_of_a_step_and_its_gradient_are_those_of_all_four_networks(options: Options) -> None:
    model, chance = network(), torch.Generator().manual_seed(1)
    images, wanted = torch.randn(4, 3, 64, 64, generator=chance), torch.rand(4, 2, generator=chance).softmax(1)
    options.loss_function(model)(images, wanted).backward()
    given = {name: p.grad for name, p in model.named_parameters()}
    total = float(options.loss_function(network())(images, wanted).detach())

    from saccade.training.supernet import gradients

    plain = network()
    told = gradients(plain, sampler_for(SMALL, "neighbours", classes=2).draw(), images, wanted)
    assert total == pytest.approx(sum(told.drawn) + told.least, rel=1e-5)
    for name, p in plain.named_parameters():
        assert (p.grad is None) == (given[name] is None)
        if p.grad is not None:
            torch.testing.assert_close(given[name], p.grad)


def test_inverted_bottlenecks_and_vectors_are_not_decayed(options: Options) -> None:
    model = network()
    decayed, others = options.groups(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert others["weight_decay"] == 0
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    blocks = [name for name, m in model.named_modules() if isinstance(m, MobileBlock)]
    assert blocks
    for p in decayed["params"]:
        name = names[id(p)]
        assert p.dim() > 1
        assert not name.startswith(("stem.", *(f"{block}." for block in blocks)))
    assert any("attention.qkv" in names[id(p)] for p in decayed["params"])
    assert any(names[id(p)] == "stem.0.conv.weight" for p in others["params"])


def test_teachers_take_the_place_of_the_labels(options: Options, pictures: Path, tmp_path: Path) -> None:
    teacher, other = tmp_path / "teacher.safetensors", tmp_path / "other.safetensors"
    for path, classes in ((teacher, 2), (other, 5)):
        net = saccade.create(
            "elasticvit_subnet", weights=None, space="elasticvit-small", architecture=largest(SMALL).to_dict(),
            num_classes=classes,
        )  # fmt: skip
        saccade.save(net, path)
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1])
    taught = replace(options, teachers=(str(teacher),)).loss_function(network())
    swapped = replace(options, teachers=(str(teacher),)).loss_function(network())
    assert float(taught(images, labels).detach()) == float(swapped(images, 1 - labels).detach())
    with pytest.raises(UsageError, match="knows 5 classes, the supernet 2"):
        replace(options, teachers=(str(other),)).loss_function(network())


def test_drawing_from_memory_grows_with_the_training(options: Options) -> None:
    long = replace(options, steps=6)
    loss = long.loss_function(network())
    images, labels = torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])
    seen = []
    for _ in range(6):
        loss(images, labels)
        assert isinstance(long._sampler, NeighbourSampler)
        seen.append(long._sampler.probability)
    assert seen == pytest.approx([0.2, 0.35, 0.5, 0.65, 0.8, 0.95])


def test_what_banks_remember_is_scored_anew(options: Options) -> None:
    """By the weights as they are then, on the pictures of that step; never by default."""
    images, labels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1])

    def scores(**changed: int) -> tuple[Options, ElasticViT, dict[tuple[int, ...], float]]:
        run, model = replace(options, **changed), network()
        loss = run.loss_function(model)
        loss(images, labels)
        assert isinstance(run._sampler, NeighbourSampler)
        assert run._sampler.memories is not None
        before = {row: score for memory in run._sampler.memories for row, score in memory.entries.items()}
        with torch.no_grad():
            model.get_parameter("head.bias").copy_(torch.tensor([3.0, -3.0]))
        loss(images, labels)
        memories = run._sampler.memories
        return run, model, {row: s for memory in memories for row, s in memory.entries.items() if row in before}

    _, _, kept = scores()
    _, model, fresh = scores(refresh=1)
    assert kept.keys() == fresh.keys()
    for row, score in fresh.items():
        model.architecture = SMALL.architecture(row)
        wanted = -torch.nn.functional.cross_entropy(model(images), labels)
        assert score == pytest.approx(float(wanted.detach()), rel=1e-4)
        assert score != pytest.approx(kept[row], rel=1e-2)


def test_samplers_have_the_published_banks_or_levels_of_the_space() -> None:
    published = sampler_for(PUBLISHED, "walk")
    assert isinstance(published, NeighbourSampler)
    assert published.banks == BANKS
    assert published.memories is None
    assert isinstance(sampler_for(SMALL, "uniform"), UniformSampler)
    small = sampler_for(SMALL, "neighbours", drawn=2, classes=5)
    assert isinstance(small, NeighbourSampler)
    assert len(small.banks) == 5
    assert len(small.draw().drawn) == 2


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sampling": "all"}, "--sampling is neighbours, walk, uniform"),
        ({"space": "large"}, "no space 'large'"),
        ({"model": "shvit"}, "shvit is no supernet"),
        ({"drawn": 0}, "--drawn is at least 1"),
        ({"temperature": 0.0}, "--temperature positive"),
        ({"refresh": -1}, "--refresh is a number of steps"),
        ({"devices": "2"}, "trained on one device"),
        ({"precision": "16-mixed"}, "32-true or bf16-mixed"),
        ({"compile": True}, "uncompiled"),
        ({"clip_mode": "value"}, "--clip-mode is norm or agc, not 'value'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: Options, wrong: dict[str, object], said: str) -> None:
    for name, value in wrong.items():
        setattr(options, name, value)
    with pytest.raises(UsageError, match=said):
        options.check()


def test_modules_keep_their_mode(options: Options) -> None:
    model = network()
    options.loss_function(model)(torch.zeros(2, 3, 64, 64), torch.tensor([0, 1]))
    assert all(m.training for m in model.modules() if not isinstance(m, nn.Identity))
