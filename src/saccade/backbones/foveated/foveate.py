"""One call: a picture as it may look to an eye that rests on a point."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.backbones.foveated.systems import stage
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.errors import InputError
from saccade.nn.pictures import check_picture

__all__ = ["foveate"]


def foveate(
    image: Any,
    fixation: tuple[float, float] = (0.5, 0.5),
    scale: float = 0.4,
    kind: str = "texture",
    *,
    strength: float | None = None,
    block: int | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Any:
    """Transform a picture: sharp where it is looked at, texture or blur elsewhere.

    Args:
        image: a path, a PIL image, a numpy array (h, w) or (h, w, 3) of uint8 or floats in [0, 1], or a float tensor
            ([B,] 1 or 3, h, w) in [0, 1]. Sides are multiples of 8 (of ``block``, or of the encoder's stride).
        fixation: (x, y) as parts of width and height; (0, 0) is the corner at the top left.
        scale: how fast the regions grow, diameter over eccentricity; 0.25 to 0.7 were published. Larger ones keep less.
        kind: ``"texture"``, ``"blur"`` (grows with eccentricity), ``"uniform"`` or ``"reference"``.
        strength: of the blurs: deviation over eccentricity, or deviation in pixels.
        block: of the lapped transform, for ``"texture"``.
        encoder, decoder: the published ones, once loaded; without them the lapped transform.
        generator: draws the noise; without one it is the same at every call.

    Returns:
        What came in: a PIL image for a path or a PIL image, an array or a tensor of the same dtype otherwise.

    Raises:
        InputError: no picture, values outside [0, 1], sides that are no multiples of 8.
        UsageError: a fixation outside the picture, a scale or kind that there is not.
    """
    given, back = _given(image)
    pixels = given.to(torch.promote_types(given.dtype, torch.float32))
    check_picture(pixels, 1 if pixels.shape[1] == 1 and encoder is None else 3, "foveate")
    size = (pixels.shape[2], pixels.shape[3])
    texture = {"block": block, "encoder": encoder, "decoder": decoder, "channels": pixels.shape[1]}
    if kind == "reference" and encoder is not None and decoder is not None:
        with torch.no_grad():
            return back(decoder(encoder(pixels)).clamp(0, 1).to(given.dtype))
    made = stage(kind, size, scale, fixation, strength=strength, **(texture if kind == "texture" else {}))
    made = made.to(pixels.device, pixels.dtype)
    with torch.no_grad():
        out = made(pixels, generator) if isinstance(made, FoveatedTexture) else made(pixels)
    return back(out.to(given.dtype))


def _given(image: Any) -> tuple[Tensor, Any]:
    """(B, C, h, w) in [0, 1], and what turns a result into what was given."""
    if isinstance(image, str | os.PathLike):
        from PIL import Image

        from saccade.io import read_picture

        colour, _, _ = read_picture(image)
        if colour.dtype == np.uint16:
            colour = (colour // 257).astype(np.uint8)
        image = Image.fromarray(colour[:, :, 0] if colour.shape[2] == 1 else colour)
    if type(image).__module__.startswith("PIL."):
        from PIL import Image

        image = image if image.mode == "L" else image.convert("RGB")
        pixels, back = _given(np.asarray(image))
        return pixels, lambda made: Image.fromarray(back(made))
    if isinstance(image, np.ndarray):
        return _given_array(image)
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4) or not image.is_floating_point():
            raise InputError(
                f"a tensor picture is float ([B,] 1 or 3, h, w) in [0, 1], not {image.dtype} {tuple(image.shape)}; "
                "divide whole numbers by 255"
            )
        return (image, lambda made: made) if image.ndim == 4 else (image[None], lambda made: made[0])
    raise InputError(f"a picture is a path, a PIL image, a numpy array or a tensor, not {type(image).__name__}")


def _given_array(image: np.ndarray) -> tuple[Tensor, Any]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise InputError(f"an array picture is (h, w) or (h, w, 3), not {image.shape}")
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise InputError(f"an array picture is uint8, or floats in [0, 1], not {image.dtype}")
    whole = image.dtype == np.uint8
    planes = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)[None].copy()
    pixels = torch.from_numpy(planes).float() / (255 if whole else 1)

    def back(made: Tensor) -> np.ndarray:
        found = made[0].permute(1, 2, 0).numpy()
        found = np.rint(found * 255) if whole else found
        return found.astype(image.dtype).reshape(image.shape)

    return pixels, back
