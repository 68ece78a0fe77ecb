"""One call: a picture as it may look to an eye that rests on a point."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saccade.backbones.foveated.stages import stage
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.errors import InputError
from saccade.io.pil import from_pil, to_pil
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
        image: a path, a PIL image, a numpy array (h, w) or (h, w, 3) of uint8, uint16 or floats in [0, 1], or a float
            tensor ([B,] 1 or 3, h, w) in [0, 1]. Sides are multiples of 8 (of ``block``, or of the encoder's stride).
        fixation: (x, y) as parts of width and height; (0, 0) is the corner at the top left.
        scale: how fast the regions grow, diameter over eccentricity; 0.25 to 0.7 were published. Larger ones keep less.
        kind: ``"texture"``, ``"blur"`` (grows with eccentricity), ``"uniform"`` or ``"reference"``.
        strength: of the blurs: deviation over eccentricity, or deviation in pixels.
        block: of the lapped transform, for ``"texture"``.
        encoder, decoder: the published ones, once loaded; without them the lapped transform.
        generator: draws the noise; without one it is the same at every call.

    Returns:
        What came in: a PIL image for a path or a PIL image, an array or a tensor of the same dtype otherwise. Alpha
        stays as it is. Pictures of 16 bits are computed in 16; PIL images keep them where they are grey, as PIL has no
        colour of 16 bits. Wide blurs are within 0.0008 of the exact ones (`blurs.BOUND`); `stage` has those.

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
    options = texture if kind == "texture" else {"exact": False}
    made = stage(kind, size, scale, fixation, strength=strength, **options)
    made = made.to(pixels.device, pixels.dtype)
    with torch.no_grad():
        out = made(pixels, generator) if isinstance(made, FoveatedTexture) else made(pixels)
    return back(out.to(given.dtype))


def _given(image: Any) -> tuple[Tensor, Any]:
    """(B, C, h, w) in [0, 1], and what turns a result into what was given."""
    if isinstance(image, str | os.PathLike):
        from saccade.io import read_picture

        return _given_pixels(*read_picture(image)[:2])
    if type(image).__module__.startswith("PIL."):
        return _given_pixels(*from_pil(image))
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


def _given_pixels(colour: np.ndarray, alpha: np.ndarray | None) -> tuple[Tensor, Any]:
    pixels, back = _given_array(colour)
    return pixels, lambda made: to_pil(back(made), alpha)


def _given_array(image: np.ndarray) -> tuple[Tensor, Any]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise InputError(f"an array picture is (h, w) or (h, w, 3), not {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise InputError(f"an array picture is uint8, uint16, or floats in [0, 1], not {image.dtype}")
    whole = image.dtype.kind == "u"
    most = np.iinfo(image.dtype).max if whole else 1
    planes = image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)[None].astype(np.float32)
    pixels = torch.from_numpy(planes) / most

    def back(made: Tensor) -> np.ndarray:
        found = made[0].permute(1, 2, 0).numpy()
        found = np.rint(found * most) if whole else found
        return found.astype(image.dtype).reshape(image.shape)

    return pixels, back
