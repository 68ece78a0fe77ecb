"""IRN: invertible rescaling by 2 or 4, the backbone that IARN makes arbitrary; reads the published weights.

Xiao et al., "Invertible Image Rescaling", ECCV 2020, arXiv:2005.05650.

    x (B,3,H,W) -- Haar -- (B,12,H/2,W/2) -- coupling x 8 --+-- once more from Haar for x4
                                                            |
                first 3 channels: the small picture, rounded to 8 bit;   the rest: latent z, dropped

A coupling block changes one part of the channels by a function of the other, so it is undone exactly:

    y1 = x1 + F(x2),   s = 2 sigmoid(H(y1)) - 1,   y2 = x2 exp(s) + G(y1)          (equation 2)

Enlarging runs everything backwards from (small picture, z); the authors draw z from N(0, 1), zero gives the mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.registry import recognise, register

__all__ = ["IRN", "Coupling", "DenseBlock", "Haar", "charbonnier", "from_official", "round_straight"]

COLOURS = 3
#: average, and the differences along rows, along columns and along the diagonals
KERNELS = (((1, 1), (1, 1)), ((1, -1), (1, -1)), ((1, 1), (-1, -1)), ((1, -1), (-1, 1)))


def round_straight(x: Tensor) -> Tensor:
    """What 8 bits hold of a picture: clamped to [0, 1], then rounded; the gradient passes the rounding unchanged."""
    x = x.clamp(0, 1)
    return x + (x.detach().mul(255).round().div(255) - x.detach())


def charbonnier(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """sqrt((a - b)^2 + eps), summed over channels and pixels, mean over the batch (the restored picture's)."""
    return ((a - b).square() + eps).sqrt().sum((1, 2, 3)).mean()


class Haar(nn.Module):
    """Haar wavelets of 2x2 pixels: (B, C, H, W) <-> (B, 4C, H/2, W/2), the four kinds of coefficient in turn.

    Forwards the sums are divided by 4; backwards they are not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        kernels = torch.tensor(KERNELS, dtype=torch.float32)[:, None].repeat(channels, 1, 1, 1)  # (4C, 1, 2, 2)
        self.haar_weights = nn.Parameter(kernels, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.haar_weights, stride=2, groups=self.channels) / 4  # (B, C*4, H/2, W/2)
        return y.unflatten(1, (self.channels, 4)).transpose(1, 2).flatten(1, 2)

    def inverse(self, y: Tensor) -> Tensor:
        """Back to (B, C, H, W)."""
        y = y.unflatten(1, (4, self.channels)).transpose(1, 2).flatten(1, 2)
        return F.conv_transpose2d(y, self.haar_weights, stride=2, groups=self.channels)


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing the input and all results before it; LeakyReLU after the first four.

    The last one starts at zero, so that a coupling block starts as the identity.
    """

    def __init__(self, inputs: int, outputs: int, growth: int = 32) -> None:
        super().__init__()
        self.growth = growth
        for i in range(5):
            conv = nn.Conv2d(inputs + i * growth, growth if i < 4 else outputs, 3, padding=1)
            nn.init.xavier_normal_(conv.weight)
            with torch.no_grad():
                conv.weight.mul_(0.1 if i < 4 else 0.0)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"conv{i + 1}", conv)

    def convolutions(self) -> list[nn.Conv2d]:
        """In order."""
        return [self.get_submodule(f"conv{i}") for i in range(1, 6)]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        *convolutions, last = self.convolutions()
        seen = x.contiguous(memory_format=torch.channels_last)  # half again as fast on a CPU
        for conv in convolutions:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2, inplace=True)], 1)
        y: Tensor = last(seen)
        return y

    def forward_naive(self, x: Tensor) -> Tensor:
        """The published steps: all results kept apart and concatenated anew for each layer."""
        seen = [x]
        *convolutions, last = self.convolutions()
        for conv in convolutions:
            seen.append(F.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        y: Tensor = last(torch.cat(seen, 1))
        return y


class Coupling(nn.Module):
    """The invertible block (equation 2): the first 3 channels and the others change each other in turn."""

    def __init__(self, channels: int, growth: int = 32, first: int = COLOURS) -> None:
        super().__init__()
        rest = channels - first
        self.first = first
        self.F = DenseBlock(rest, first, growth)
        self.G = DenseBlock(first, rest, growth)
        self.H = DenseBlock(first, rest, growth)

    def scale(self, y1: Tensor) -> Tensor:
        """The exponent s in (-1, 1), which keeps the inverse stable."""
        s: Tensor = 2 * torch.sigmoid(self.H(y1)) - 1
        return s

    def forward(self, x: Tensor) -> Tensor:
        return self.with_logdet(x)[0]

    def with_logdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the logarithm of the Jacobian's determinant, per picture, mean over the batch."""
        x1, x2 = x[:, : self.first], x[:, self.first :]
        y1 = x1 + self.F(x2)
        s = self.scale(y1)
        y2 = x2 * s.exp() + self.G(y1)
        return torch.cat([y1, y2], 1), s.sum() / len(x)

    def inverse(self, y: Tensor) -> Tensor:
        """The input that gives ``y``."""
        y1, y2 = y[:, : self.first], y[:, self.first :]
        x2 = (y2 - self.G(y1)) * (-self.scale(y1)).exp()
        return torch.cat([y1 - self.F(x2), x2], 1)


class IRN(nn.Module):
    """Invertible rescaling network.

    Args:
        blocks: coupling blocks after each Haar step; (8,) shrinks by 2, (8, 8) by 4.
        growth: channels that each layer of a dense block adds.

    Shape: `forward` (B, 3, H, W) in [0, 1] -> (B, 3 * 4^n, H/2^n, W/2^n), n = len(blocks): the small picture, not
    rounded, then the latent. H and W must be multiples of the scale; an export may leave them free.

    Raises:
        UsageError: no steps, or a growth below 1.
        InputError: what is no RGB picture, or of a size that the scale does not divide.
    """

    def __init__(self, blocks: Sequence[int] = (8,), growth: int = 32) -> None:
        super().__init__()
        if not 1 <= len(blocks) <= 4 or min(blocks) < 0 or growth < 1:
            raise UsageError(
                f"IRN needs one to four steps of at least no blocks and a growth from 1: {blocks}, {growth}"
            )
        self.blocks, self.growth = tuple(int(b) for b in blocks), growth
        self.scale = 2 ** len(blocks)
        steps: list[nn.Module] = []
        channels = COLOURS
        for count in self.blocks:
            steps.append(Haar(channels))
            channels *= 4
            steps += [Coupling(channels, growth) for _ in range(count)]
        self.operations = nn.ModuleList(steps)
        self.channels = channels

    @property
    def halo(self) -> int:
        """Large pixels that a pixel of the round trip sees beyond its own place; two dense blocks follow each other."""
        return sum(2 * 10 * count * 2 ** (i + 1) + 2**i for i, count in enumerate(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        return self.with_logdet(x)[0]

    def with_logdet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the log determinant per picture, as the official code reports it."""
        check_picture(x, COLOURS, "IRN")
        if x.shape[-2] % self.scale or x.shape[-1] % self.scale:
            raise InputError(
                f"IRN x{self.scale} takes sides that are multiples of {self.scale}, not "
                f"{x.shape[-1]} x {x.shape[-2]}; `iarn` takes any size"
            )
        total = x.new_zeros(())
        for step in self.operations:
            if isinstance(step, Haar):
                total = total + x[0].numel() / 4 * math.log(1 / 16)
                x = step(x)
            else:
                x, own = step.with_logdet(x)  # type: ignore[operator]
                total = total + own
        return x, total

    def inverse(self, y: Tensor) -> Tensor:
        """The large picture (B, 3, H, W) from the small one and the latent, (B, 3 * 4^n, h, w) in one tensor."""
        for step in reversed(self.operations):
            y = step.inverse(y)  # type: ignore[operator]
        return y

    def shrink(self, x: Tensor) -> Tensor:
        """The small picture (B, 3, H/scale, W/scale), rounded to multiples of 1/255."""
        return round_straight(self(x)[:, :COLOURS])

    def enlarge(self, small: Tensor, latent: Tensor | None = None) -> Tensor:
        """The large picture from the small one; ``latent`` None is zero, which is deterministic and the mean.

        Raises:
            InputError: what is no RGB picture, or a latent of another size.
        """
        check_picture(small, COLOURS, "IRN")
        shape = (len(small), self.channels - COLOURS, *small.shape[-2:])
        z = small.new_zeros(shape) if latent is None else latent
        if z.shape != shape:
            raise InputError(f"the latent of this picture has shape {shape}, not {tuple(z.shape)}")
        return self.inverse(torch.cat([small, z], 1))

    def training_loss(self, given: Tensor, wanted: Tensor, phase: int = 0) -> Tensor:
        """IRN's loss (section 3.4): restored picture + 16 * small picture against bicubic + latent against N(0, 1)."""
        from saccade.ops.resize import resize

        y = self(given)
        small, z = y[:, :COLOURS], y[:, COLOURS:]
        guide = (small - resize(given, 1 / self.scale)).square().sum((1, 2, 3)).mean()
        restored = charbonnier(self.enlarge(round_straight(small)), wanted)
        return restored + 16 * guide + z.square().sum((1, 2, 3)).mean()


@register("irn_x2", system="iarn", task="image rescaling", factor=2)
def irn_x2(blocks: Sequence[int] = (8,), growth: int = 32) -> IRN:
    """IRN for factor 2: 1,667,952 parameters."""
    return IRN(blocks, growth)


@register("irn_x4", system="iarn", task="image rescaling", factor=4)
def irn_x4(blocks: Sequence[int] = (8, 8), growth: int = 32) -> IRN:
    """IRN for factor 4: 4,355,136 parameters."""
    return IRN(blocks, growth)


@recognise("iarn", keys=("operations.0.haar_weights", "operations.*.F.conv5.weight"))
def from_official(state: StateDict) -> Recipe | None:
    """IRN's published files (IRN_x2.pth, IRN_x4.pth): our key names are theirs.

    Raises:
        CheckpointError: steps or tensors are missing.
    """
    steps: dict[int, bool] = {}
    for key in state:
        found = re.match(r"operations\.(\d+)\.(haar_weights|[FGH]\.conv\d\.(?:weight|bias))$", key)
        if found is None:
            return None
        steps[int(found[1])] = found[2] == "haar_weights"
    if sorted(steps) != list(range(len(steps))):
        raise CheckpointError("the steps of an IRN are numbered without gaps; some are missing here")
    haars = [i for i in sorted(steps) if steps[i]]
    blocks = tuple(b - a - 1 for a, b in zip(haars, [*haars[1:], len(steps)], strict=True))
    first = next((f"operations.{i}.F.conv1.bias" for i in sorted(steps) if not steps[i]), "any coupling")
    if first not in state:
        raise CheckpointError(f"this IRN file lacks {first}")
    growth = int(state[first].shape[0])
    known = {(8,): "irn_x2", (8, 8): "irn_x4"}
    name = known.get(blocks, "irn_x2" if len(blocks) == 1 else "irn_x4")
    options = {} if blocks in known and growth == 32 else {"blocks": list(blocks), "growth": growth}
    return Recipe(name, options, dict(state))
