"""A picture for benchmarks, made from a seed: smooth ground, hard edges, and patches of fine texture."""

from __future__ import annotations

import numpy as np

from saccade.runtime.colour import bicubic

__all__ = ["scene"]


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: what matters to speed (routing, coding) varies over it as over a photograph."""
    random = np.random.default_rng(seed)
    coarse = random.random((-(-height // 64) + 1, -(-width // 64) + 1, 3), dtype=np.float32)
    for scale in (4, 4, 4):
        coarse = bicubic(coarse, scale)
    picture = coarse[:height, :width]
    for _ in range(40):
        top, left = int(random.integers(height)), int(random.integers(width))
        part = picture[top : top + max(1, height // 5), left : left + max(1, width // 6)]
        part *= 0.5
        part += 0.5 * random.random(3, dtype=np.float32)
        if random.random() < 0.5:
            part += 0.15 * random.standard_normal(part.shape, dtype=np.float32)
    made: np.ndarray = np.rint(picture.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(made)
