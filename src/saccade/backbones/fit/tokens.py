"""Pictures as groups of tokens: sub-images in order, patches in order inside them, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.errors import InputError

__all__ = ["from_subimages", "snake", "subimages"]


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


def from_subimages(tokens: Tensor, picture: tuple[int, int], size: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `subimages`: (B, groups, tokens, patch * patch * C) -> (B, C, H, W).

    Args:
        picture: (H, W).

    Raises:
        InputError: tokens that cannot have come from such a picture.
    """
    (height, width), (h, w) = picture, size
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
    if tokens.shape[1] % columns:
        raise InputError(f"{tokens.shape[1]} groups do not make rows of {columns}")
    rows = tokens.unflatten(1, (-1, columns))
    odd = torch.arange(rows.shape[1], device=tokens.device) % 2 == 1
    return torch.where(odd.view(1, -1, *[1] * (rows.ndim - 2)), rows.flip(2), rows).flatten(1, 2)
