"""Pictures in memory: PIL images, and floats, as the integer pixels that everything else works on."""

from __future__ import annotations

from typing import Any

import numpy as np

from saccade.errors import InputError

__all__ = ["from_pil", "to_16_bits", "to_pil"]


def from_pil(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Colour (h, w, 1 or 3) of uint8 or uint16 and alpha (h, w) or None of a PIL image.

    Raises:
        InputError: 32 bits a sample that are neither 16-bit counts nor floats in [0, 1]; a damaged file behind it.
    """
    try:
        if image.mode == "F":
            return to_16_bits(np.asarray(image))[:, :, None], None
        if image.mode.startswith("I"):
            counts = np.asarray(image)[:, :, None]
            if counts.size and (counts.min() < 0 or counts.max() > 65535):
                raise InputError(f"a PIL image of mode {image.mode} holds counts from 0 to 65535")
            return counts.astype(np.uint16), None
        return _from_pil_bytes(image)
    except (OSError, SyntaxError, ValueError) as error:  # PIL decodes here
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot use this PIL image of mode {image.mode}: {error}") from error


def _from_pil_bytes(image: Any) -> tuple[np.ndarray, np.ndarray | None]:
    has_alpha = image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    pixels = np.asarray(image.convert(("LA" if grey else "RGBA") if has_alpha else ("L" if grey else "RGB")))
    if not has_alpha:
        return pixels.reshape(*pixels.shape[:2], -1), None
    return np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1])


def to_16_bits(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] as uint16.

    Raises:
        InputError: no pixels, or values beyond [0, 1] by more than rounding.
    """
    if not image.size or not np.isfinite(image).all() or image.min() < -1e-3 or image.max() > 1 + 1e-3:
        raise InputError("floating-point pictures lie in [0, 1]; divide by 255 or give uint8")
    return np.rint(image.clip(0, 1).astype(np.float32) * 65535).astype(np.uint16)  # 65535 is infinite in float16


def to_pil(colour: np.ndarray, alpha: np.ndarray | None) -> Any:
    """Colour (h, w, 1 or 3) of uint8 or uint16 and alpha (h, w) or None as a PIL image.

    PIL has 16 bits for grey without alpha alone; all else of 16 bits is rounded to 8.
    """
    from PIL import Image

    if colour.dtype == np.uint16 and colour.shape[2] == 1 and alpha is None:
        return Image.fromarray(colour[:, :, 0])
    if colour.dtype == np.uint16:  # PIL has no 16-bit colour
        colour = np.rint(colour / 257).astype(np.uint8)
        alpha = None if alpha is None else np.rint(alpha / 257).astype(np.uint8)
    pixels = colour if alpha is None else np.concatenate((colour, alpha[:, :, None]), 2)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
