"""What a trained system has learned to look at: occlusion, spatial frequency, centre against surround.

Deza and Konkle, arXiv:2006.07991, sections 4.1 to 4.4. Every probe takes pictures (B, 3, H, W) in [0, 1] and gives the
same; sizes are parts of the side, and those of the paper at 256 px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from saccade.backbones.foveated.blurs import gaussian_blur
from saccade.backbones.foveated.windows import bump
from saccade.errors import InputError, UsageError

__all__ = ["HIGH", "LOW", "OCCLUDERS", "area", "cue_conflict", "high_pass", "low_pass", "occlude", "sweep"]

OCCLUDERS = ("scotoma", "glaucoma", "left_to_right", "top_to_bottom")
GREY = 128 / 255
LEVELS = 17  # of occlusion, from none to all, 16 columns of 256 more each time
LOW = (0.0, 1.0, 3.0, 5.0, 7.0, 9.0, 15.0, 40.0)  # deviations in pixels; 0 is the picture
HIGH = (math.inf, 3.0, 1.5, 1.0, 0.7, 0.55, 0.45, 0.4)  # infinite is the picture
LUMA = (0.2989, 0.587, 0.114)
REACH = 2.0  # deviations of the probes' Gaussians
RAMP = 0.25  # of a window's radius, over which it fades


def _middle(part: float, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of the square in the middle that takes this part of the area, rounded outwards."""

    def span(side: int) -> slice:
        middle, half = side // 2, math.ceil(math.sqrt(part) * side / 2 - 1e-9)
        return slice(max(0, middle - half), min(middle + half, side))

    return span(height), span(width)


def occlude(pictures: Tensor, kind: str, level: int) -> Tensor:
    """Cover ``level`` / 16 of the area with grey.

    Args:
        pictures: (B, C, H, W) in [0, 1].
        kind: ``"scotoma"`` covers a square in the middle, ``"glaucoma"`` all around one, ``"left_to_right"`` and
            ``"top_to_bottom"`` columns and rows.
        level: 0 (nothing) to 16 (everything).

    Raises:
        UsageError: an unknown kind or level.
    """
    if kind not in OCCLUDERS:
        raise UsageError(f"an occluder is one of {', '.join(OCCLUDERS)}, not {kind!r}")
    if not 0 <= level < LEVELS:
        raise UsageError(f"occlusion goes from 0 to {LEVELS - 1}, not to {level}")
    height, width = pictures.shape[2:]
    part = level / (LEVELS - 1)
    out = pictures.clone()
    if kind == "scotoma":
        rows, columns = _middle(part, height, width)
        out[:, :, rows, columns] = GREY
    elif kind == "glaucoma":
        rows, columns = _middle(1 - part, height, width)
        out = torch.full_like(pictures, GREY)
        out[:, :, rows, columns] = pictures[:, :, rows, columns]
    elif kind == "left_to_right":
        out[:, :, :, : round(part * width)] = GREY
    else:
        out[:, :, : round(part * height)] = GREY
    return out


def _grey(pictures: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=pictures.dtype, device=pictures.device)[:, None, None]
    return (pictures * weights).sum(1, keepdim=True).expand_as(pictures)


def low_pass(pictures: Tensor, sigma: float, *, grey: bool = False) -> Tensor:
    """What a Gaussian of ``sigma`` pixels leaves.

    Args:
        pictures: (B, C, H, W) in [0, 1].
        sigma: 0 for the picture itself; the published ones, at 256 px, are `LOW`.
        grey: as luma; pictures of three channels then.

    Raises:
        UsageError: a sigma that is negative or not finite.
    """
    out = gaussian_blur(pictures, sigma, reach=REACH).clamp(0, 1)
    return _grey(out) if grey else out


def high_pass(pictures: Tensor, sigma: float, mean: Tensor, *, grey: bool = False) -> Tensor:
    """What a Gaussian takes away, around the mean colour of the validation pictures.

    Args:
        pictures: (B, C, H, W) in [0, 1].
        sigma: deviation in pixels, infinite for the picture itself; the published ones, at 256 px, are `HIGH`.
        mean: (C,) in [0, 1].
        grey: as luma; pictures of three channels then.

    Raises:
        InputError: a mean of other channels.
        UsageError: a negative sigma.
    """
    if mean.shape != (pictures.shape[1],):
        raise InputError(f"the mean colour has {pictures.shape[1]} values, not {tuple(mean.shape)}")
    if math.isinf(sigma):
        return _grey(pictures) if grey else pictures
    rest = pictures - gaussian_blur(pictures, sigma, reach=REACH)
    out = (rest - rest.mean((2, 3), keepdim=True) + mean.to(pictures)[:, None, None]).clamp(0, 1)
    return _grey(out) if grey else out


def cue_conflict(centre: Tensor, surround: Tensor, part: float, *, kind: str = "window") -> Tensor:
    """One picture in the middle of another: which of the two does a network name?

    Args:
        centre, surround: (B, C, H, W).
        part: of the area, 0 to 1, that shows the centre.
        kind: ``"window"`` is round and fades, weighed by one half at its edge; ``"square"`` is sharp.

    Raises:
        InputError: pictures of other shapes.
        UsageError: an unknown kind, a part outside [0, 1].
    """
    if centre.shape != surround.shape or centre.ndim != 4:
        raise InputError(f"two batches of one shape are mixed, not {tuple(centre.shape)} and {tuple(surround.shape)}")
    if kind not in ("window", "square"):
        raise UsageError(f"a cue conflict is a 'window' or a 'square', not {kind!r}")
    if not 0 <= part <= 1:
        raise UsageError(f"a part of the area lies in [0, 1], not {part}")
    height, width = centre.shape[2:]
    if kind == "square":
        out = surround.clone()
        rows, columns = _middle(part, height, width)
        out[:, :, rows, columns] = centre[:, :, rows, columns]
        return out
    if part in (0, 1):
        return centre if part else surround
    y = torch.arange(height, dtype=torch.float64) + 0.5 - height / 2
    x = torch.arange(width, dtype=torch.float64) + 0.5 - width / 2
    radius = math.sqrt(part * height * width / math.pi)
    beyond = (torch.hypot(y[:, None], x) / radius - 1).clamp_min(-RAMP) / RAMP  # -1 where the window is whole
    window = torch.from_numpy(bump(beyond.numpy() / 2 + 0.5)).to(centre)
    return centre * window + surround * (1 - window)


@torch.no_grad()
def sweep(
    model: nn.Module,
    pictures: Tensor,
    labels: Tensor,
    probe: Callable[[Tensor, float], Tensor],
    levels: Sequence[float],
    *,
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    batch: int = 250,
) -> list[float]:
    """Accuracy in percent at each level of a probe.

    Args:
        model: in evaluation mode.
        pictures: (N, 3, H, W) in [0, 1], as its stage shows them.
        labels: (N,).
        probe: ``probe(pictures, level)``.
        prepare: standardises for the network.
        batch: pictures at once.

    Raises:
        InputError: no pictures, or as many labels as there are not.
    """
    if not len(pictures) or len(pictures) != len(labels):
        raise InputError(f"{len(pictures)} pictures and {len(labels)} labels")
    found = []
    for level in levels:
        right = 0
        for some, own in zip(pictures.split(batch), labels.split(batch), strict=True):
            right += int((model(prepare(probe(some, level))).argmax(1) == own).sum())
        found.append(100 * right / len(labels))
    return found


def area(accuracies: Sequence[float]) -> float:
    """Mean height of the curve through accuracies at even steps (trapezoids): one figure for a sweep.

    Raises:
        InputError: fewer than two points.
    """
    if len(accuracies) < 2:
        raise InputError("a curve has two points or more")
    ends = (accuracies[0] + accuracies[-1]) / 2
    return (ends + math.fsum(accuracies[1:-1])) / (len(accuracies) - 1)
