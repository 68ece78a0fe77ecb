"""Pictures among the figures of a claim: PNG files as text, so that results stay small."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]


def packed(pixels: NDArray[np.uint8]) -> str:
    """(h, w) grey or (h, w, 3) RGB bytes as a PNG in base 64."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def unpacked(text: str) -> NDArray[np.uint8]:
    """What `packed` was given."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))
