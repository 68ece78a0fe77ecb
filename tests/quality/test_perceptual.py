"""The perceptual loss against its formula on features taken by hand, and what its file may be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from saccade.errors import CheckpointError, InputError
from saccade.quality.perceptual import LAYERS, PerceptualLoss

CONVOLUTIONS = {0: 3, 2: 64, 5: 64, 7: 128, 10: 128, 12: 256, 14: 256, 16: 256, 19: 256, 21: 512, 23: 512, 25: 512}
CONVOLUTIONS |= {28: 512, 30: 512, 32: 512, 34: 512}
WIDTHS = {0: 64, 2: 64, 5: 128, 7: 128} | dict.fromkeys((10, 12, 14, 16), 256)
WIDTHS |= dict.fromkeys((19, 21, 23, 25, 28, 30, 32, 34), 512)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    made = {}
    for place, width in WIDTHS.items():
        inputs = CONVOLUTIONS[place]
        kernel = torch.randn(width, inputs, 3, 3, generator=chance) * (2 / (9 * inputs)) ** 0.5
        made[f"features.{place}.weight"] = kernel.half()
        made[f"features.{place}.bias"] = (0.1 * torch.randn(width, generator=chance)).half()
    return made


@pytest.fixture(scope="module")
def file(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file({**weights, "classifier.6.bias": torch.zeros(1000)}, path)
    return path


def by_hand(picture: Tensor, weights: dict[str, Tensor]) -> dict[int, Tensor]:
    """Features before their ReLU; pooling stands before the first convolution of each later width."""
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    x = (picture - mean) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    found = {}
    for place in WIDTHS:
        x = F.max_pool2d(x, 2) if place in (5, 10, 19, 28) else x
        x = F.conv2d(x, *(weights[f"features.{place}.{n}"].float() for n in ("weight", "bias")), padding=1)
        found[place] = x
        x = x.relu()
    return found


def test_it_is_the_weighted_distance_of_features(file: Path, weights: dict[str, Tensor]) -> None:
    chance = torch.Generator().manual_seed(1)
    a, b = (torch.rand(2, 3, 24, 16, generator=chance) for _ in range(2))
    features = [by_hand(x, weights) for x in (a, b)]
    expected = sum(w * (features[0][k] - features[1][k]).abs().mean() for k, w in LAYERS.items())
    found = PerceptualLoss.of_file(file)(a, b)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_its_gradient_reaches_what_was_made_alone(file: Path) -> None:
    loss, a = PerceptualLoss.of_file(file), torch.rand(1, 3, 16, 16).requires_grad_()
    b = torch.rand(1, 3, 16, 16).requires_grad_()
    loss(a, b).backward()
    assert a.grad is not None
    assert float(a.grad.abs().sum()) > 0
    assert b.grad is None
    assert all(p.grad is None for p in loss.parameters())
    assert float(loss(b, b).detach()) == 0


def test_other_pictures_and_files_are_refused(file: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    loss = PerceptualLoss({2: 1.0})
    for shape in ((1, 3, 16, 17), (1, 3, 8, 8), (3, 16, 16)):
        with pytest.raises(InputError, match="no perceptual loss between"):
            loss(torch.rand(1, 3, 16, 16) if shape == (1, 3, 16, 17) else torch.rand(shape), torch.rand(shape))
    with pytest.raises(CheckpointError, match="no file of weights"):
        PerceptualLoss.of_file(tmp_path / "none.pth")
    save_file({k: v for k, v in weights.items() if not k.startswith("features.34")}, tmp_path / "vgg16.safetensors")
    with pytest.raises(CheckpointError, match=r"no VGG-19 of torchvision's: features\.34"):
        PerceptualLoss.of_file(tmp_path / "vgg16.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated"):
        PerceptualLoss.of_file(tmp_path / "cut.safetensors")
