"""The stochastic degradation scheme: long training clips out of few loaded frames.

Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, arXiv:2111.12704, section 4.1:
long sequences train better, but loading and degrading them starves the accelerator. So fewer frames are loaded, and
the clip is run forward and backward until it is long enough; each frame may also stay for a while.

    loaded 0 1 2 3 4 --> 0 1 1 2 3 4 4 3 2 2 1 0 ...
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from saccade.errors import InputError, UsageError

__all__ = ["mirrored", "to_and_fro"]


def mirrored(clip: Tensor) -> Tensor:
    """A clip followed by itself backwards, as the published training does: (t, ...) -> (2t, ...)."""
    return torch.cat([clip, clip.flip(0)])


def to_and_fro(loaded: int, length: int, chance: np.random.Generator, *, stay: float = 0.0) -> np.ndarray:
    """Which loaded frame is shown at each of ``length`` times.

    Starts anywhere and in either direction; turns at both ends, where the outermost frame is shown twice, so that a
    start at 0 without stays is `mirrored`.

    Args:
        loaded: frames in memory.
        length: of the clip to make.
        chance: where all randomness comes from.
        stay: probability that a frame is repeated instead of left.

    Returns:
        (length,) indices.

    Raises:
        InputError: no frame, or no length. UsageError: a probability outside [0, 1).
    """
    if loaded < 1 or length < 1:
        raise InputError(f"a clip of {length} frames cannot be made of {loaded}")
    if not 0 <= stay < 1:
        raise UsageError(f"the probability of staying lies in [0, 1), not {stay}")
    moves = (chance.random(length) >= stay).astype(np.int64)
    moves[0] = chance.integers(2 * loaded)
    phase = np.cumsum(moves) % (2 * loaded)
    return np.minimum(phase, 2 * loaded - 1 - phase)
