"""Pictures as groups of tokens: sub-images in order, patches in order inside them, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError

__all__ = ["from_subimages", "glimpses", "snake", "subimages"]


def subimages(pictures: Tensor, size: tuple[int, int], patch: int) -> Tensor:
    """(B, C, H, W) -> (B, groups, tokens, patch * patch * C).

    Sub-images in row-major order, patches row-major inside, and a patch's numbers by row, column and channel.

    Args:
        pictures: in [0, 1] or standardised, as the network was trained.
        size: (height, width) of a sub-image in pixels.
        patch: side of a patch in pixels.

    Raises:
        InputError: pictures that do not divide into sub-images, or these into patches.
    """
    if pictures.ndim != 4 or not pictures.is_floating_point():
        raise InputError(f"sub-images are cut of float (B, C, H, W), not of {pictures.dtype} {tuple(pictures.shape)}")
    batch, channels, height, width = pictures.shape
    h, w = size
    if min(h, w, patch) < 1 or height % h or width % w or h % patch or w % patch:
        raise InputError(f"{width} x {height} px do not divide into {w} x {h}, and these into patches of {patch}")
    grid = pictures.reshape(batch, channels, height // h, h // patch, patch, width // w, w // patch, patch)
    tokens = grid.permute(0, 2, 5, 3, 6, 4, 7, 1)  # (B, gy, gx, ny, nx, py, px, C)
    return tokens.reshape(batch, (height // h) * (width // w), (h // patch) * (w // patch), -1)


def glimpses(
    pictures: Tensor, size: tuple[int, int], patch: int, whole: int = 1, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sub-images with small copies of the whole picture before them, and which is which.

    `FIT` takes the second result as its extra tokens (``extra_dim`` groups, in ``num_groups`` of as many).

    Args:
        pictures, size, patch: as `subimages`.
        whole: copies of the whole picture, bilinearly resized to a sub-image, that come first.
        seed: of an order of the groups that is drawn anew for each picture; None leaves them in order.

    Returns:
        (B, whole + groups, tokens, patch * patch * C), and one-hot numbers (B, whole + groups, 1, whole + groups).

    Raises:
        InputError: as `subimages`, or a negative number of copies.
    """
    if whole < 0:
        raise InputError(f"there are 0 or more copies of the whole picture, not {whole}")
    tokens = subimages(pictures, size, patch)
    if whole:
        small = subimages(F.interpolate(pictures, size, mode="bilinear", align_corners=False), size, patch)
        tokens = torch.cat([small.expand(-1, whole, -1, -1), tokens], 1)
    batch, groups = tokens.shape[:2]
    order = torch.arange(groups).expand(batch, -1)
    if seed is not None:
        order = torch.rand(batch, groups, generator=torch.Generator().manual_seed(seed)).argsort(1)
    order = order.to(tokens.device)
    tokens = tokens.gather(1, order[:, :, None, None].expand_as(tokens))
    return tokens, F.one_hot(order, groups).to(tokens.dtype)[:, :, None]


def from_subimages(tokens: Tensor, picture: tuple[int, int], size: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `subimages`: (B, groups, tokens, patch * patch * C) -> (B, C, H, W).

    Args:
        picture: (H, W).

    Raises:
        InputError: tokens that cannot have come from such a picture.
    """
    (height, width), (h, w) = picture, size
    if min(h, w, patch) < 1:
        raise InputError(f"sub-images of {w} x {h} and patches of {patch} have no pixels")
    wanted = ((height // h) * (width // w), (h // patch) * (w // patch))
    if tokens.ndim != 4 or tuple(tokens.shape[1:3]) != wanted or tokens.shape[3] % patch**2:
        raise InputError(
            f"a {width} x {height} picture has (B, {wanted[0]}, {wanted[1]}, ..), not {tuple(tokens.shape)}"
        )
    grid = tokens.reshape(len(tokens), height // h, width // w, h // patch, w // patch, patch, patch, -1)
    return grid.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(len(tokens), -1, height, width)


def snake(tokens: Tensor, columns: int) -> Tensor:
    """Every second row of groups from right to left, so that neighbours in order are neighbours in the picture.

    Args:
        tokens: (B, rows * columns, ...) in row-major order; the same call undoes it.
        columns: groups a row.

    Raises:
        InputError: groups that do not divide into rows.
    """
    if columns < 1 or tokens.shape[1] % columns:
        raise InputError(f"{tokens.shape[1]} groups do not make rows of {columns}")
    rows = tokens.unflatten(1, (-1, columns))
    odd = torch.arange(rows.shape[1], device=tokens.device) % 2 == 1
    return torch.where(odd.view(1, -1, *[1] * (rows.ndim - 2)), rows.flip(2), rows).flatten(1, 2)
