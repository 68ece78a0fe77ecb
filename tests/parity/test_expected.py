"""Our own expected outputs: whoever lacks the published vectors still holds the numbers.

Each system that meets its published vectors has ``tests/expected/<slug>.json``: outputs alone. Weights and inputs are
drawn here, from a seed, by numpy, and so are the same everywhere. After a change that is meant to change the numbers,
and with parity met:

    python tests/parity/test_expected.py [slug ...]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from saccade.registry import create

EXPECTED = Path(__file__).resolve().parents[1] / "expected"
TOLERANCE = 2e-5  # of values around 1, in float32, between machines


def draw(chance: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.asarray(chance.standard_normal(shape), np.float32))


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter and buffer from the seed, in the order of their names; variances positive."""
    chance = np.random.default_rng(seed)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        drawn = draw(chance, tuple(value.shape))
        if name.endswith("running_var"):
            value.copy_(0.5 + drawn.abs())
        elif value.dim() > 1:
            value.copy_(drawn / value[0].numel() ** 0.5)
        else:
            value.copy_((name.endswith("weight") and "bn" in name) + 0.2 * drawn)
    return model


def picture(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape), np.float32))


@torch.no_grad()
def espcn() -> dict[str, Tensor]:
    made = {}
    for name, scale, channels in (("espcn", 3, 1), ("espcn_small", 2, 1), ("espcn_rgb", 4, 3)):
        model = fill(create(name, weights=None, scale=scale), seed=scale).train()  # before the clamp
        made[f"{name}_x{scale}"] = model(picture(1, 1, channels, 3, 4))
    return made


@torch.no_grad()
def sesr() -> dict[str, Tensor]:
    made = {}
    for name, options in (
        ("sesr_m3", {"scale": 2}),
        ("sesr_m5", {"scale": 4, "expansion": 24}),
        ("sesr_m11", {"scale": 2, "expansion": 24, "bias": "kernel"}),
        ("sesr_m3", {"scale": 3, "expansion": 24, "bias": "output"}),
        ("sesr_rgb", {"scale": 2, "expansion": 24}),
    ):
        model = fill(create(name, weights=None, **options), seed=len(made)).train()
        y = model(picture(2, 1, model.in_channels, 3, 4))
        made[f"{name}_{'_'.join(map(str, options.values()))}"] = y / y.abs().max()
    return made


@torch.no_grad()
def pcsr() -> dict[str, Tensor]:
    made = {}
    small = {"heavy": (8, 8), "light": (4,), "classifier": (4,), "width": 8}
    for name, options in (
        ("pcsr_small", {"scale": 2}),
        ("pcsr_fsrcnn", {"scale": 3, **small, "shrink": 4, "layers": 1}),
        ("pcsr_carn", {"scale": 2, **small, "groups": 2}),
        ("pcsr_srresnet", {"scale": 4, **small, "blocks": 2}),
    ):
        model = fill(create(name, weights=None, **options), seed=len(made)).eval()
        x = picture(3, 1, 3, 3, 3)
        made[f"{name}_margins"] = model.margins(x)
        made[f"{name}_mixture"] = model.forward_mixture(x)
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def fast_scaling() -> dict[str, Tensor]:
    from saccade.backbones.fast_scaling import BASES, AnyNet, complexity, regnet, scale

    made = {}
    for name in sorted(BASES):
        for strategy in ("fast", "compound"):
            net = complexity(scale(BASES[name], strategy, 4))
            made[f"{name}_{strategy}_4"] = torch.tensor([net.macs / 1e9, net.params / 1e6, net.acts / 1e6])
    net = regnet(4, 16, 12.0, 2.0, 8, stem_width=8, classes=7, se_ratio=0.25)
    made["regnet"] = fill(AnyNet(net), seed=0).eval()(picture(4, 2, 3, 32, 32))
    return made


SYSTEMS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "espcn": espcn,
    "fast_scaling": fast_scaling,
    "pcsr": pcsr,
    "sesr": sesr,
}


def told(outputs: dict[str, Tensor]) -> dict[str, Any]:
    """Shapes and numbers of six digits."""
    return {
        name: {"shape": list(y.shape), "values": [float(f"{v:.6g}") for v in y.flatten().tolist()]}
        for name, y in outputs.items()
    }


def write(slug: str) -> Path:
    rows = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in told(SYSTEMS[slug]()).items()]
    path = EXPECTED / f"{slug}.json"
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("slug", SYSTEMS)
def test_outputs_are_those_that_met_the_published_vectors(slug: str) -> None:
    expected = json.loads((EXPECTED / f"{slug}.json").read_text(encoding="utf-8"))
    found = SYSTEMS[slug]()
    assert list(found) == list(expected)
    for name, want in expected.items():
        values = torch.tensor(want["values"]).view(want["shape"])
        torch.testing.assert_close(
            found[name].float(), values, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_expected_files_are_small_and_each_has_its_system() -> None:
    for path in EXPECTED.glob("*.json"):
        assert path.stem in SYSTEMS
        assert path.stat().st_size < 16_000


if __name__ == "__main__":
    for chosen in sys.argv[1:] or SYSTEMS:
        print(write(chosen))
