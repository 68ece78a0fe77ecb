"""Perceptual loss: how far two pictures are apart in the features of a VGG-19 that the user brings.

    picture in [0, 1] -- ImageNet mean, deviation -- VGG-19 -- conv1_2, 2_2, 3_4, 4_4, 5_4 before ReLU --> sum of L1

Johnson et al., ECCV 2016, arXiv:1603.08155, with the layers and weights of Real-ESRGAN (arXiv:2107.10833).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import read_state
from saccade.errors import CheckpointError, InputError

__all__ = ["LAYERS", "PerceptualLoss"]

#: places in torchvision's ``features`` and their weights
LAYERS = {2: 0.1, 7: 0.1, 16: 1.0, 25: 1.0, 34: 1.0}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PerceptualLoss(nn.Module):
    """Weighted L1 distance of VGG-19's features.

    Args:
        layers: places in torchvision's ``features``, and what each counts.

    Shape: two pictures (B, 3, h, w) in [0, 1], sides at least 16 -> scalar; the gradient reaches the first alone.

    Raises:
        InputError: pictures of different shape, or too small.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: Mapping[int, float] = LAYERS) -> None:
        super().__init__()
        from torchvision.models import vgg

        self.layers = dict(layers)
        self.features = vgg.make_layers(vgg.cfgs["E"])[: max(layers) + 1]
        for layer in self.features:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # what is compared is what stands before it
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        self.requires_grad_(False)

    @classmethod
    def of_file(cls, path: str | Path) -> PerceptualLoss:
        """The loss with torchvision's weights of VGG-19 (``vgg19-dcbb9e9d.pth``, or the same as safetensors).

        Raises:
            CheckpointError: no such file, or other weights.
        """
        with torch.device("meta"):
            made = cls()
        state, _ = read_state(path)
        wanted = made.features.state_dict()
        found = {name: state.get(f"features.{name}") for name in wanted}
        other = [name for name, v in found.items() if v is None or v.shape != wanted[name].shape]
        if other:
            raise CheckpointError(f"{path} holds no VGG-19 of torchvision's: features.{other[0]} is missing or other")
        made = made.to_empty(device="cpu")
        made.features.load_state_dict({name: v for name, v in found.items() if v is not None})
        made.mean.copy_(torch.tensor(MEAN).view_as(made.mean))
        made.std.copy_(torch.tensor(STD).view_as(made.std))
        return made

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        if made.shape != wanted.shape or made.ndim != 4 or min(made.shape[2:]) < 16:
            raise InputError(f"no perceptual loss between {tuple(made.shape)} and {tuple(wanted.shape)}")
        a, b = ((x - self.mean) / self.std for x in (made, wanted.detach()))
        total = made.new_zeros(())
        for place, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if place in self.layers:
                total = total + self.layers[place] * F.l1_loss(a, b)
        return total
