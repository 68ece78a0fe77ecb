"""How gradients are held to a bound: by the norm of all of them, or each unit's by the norm of its weights.

The latter is adaptive gradient clipping, Brock et al., "High-Performance Large-Scale Image Recognition Without
Normalization", ICML 2021, arXiv:2102.06171, equation 3; timm's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["CLIP_MODES", "clip"]

CLIP_MODES = ("norm", "agc")


def clip(
    mode: str, bound: float, fabric: Any, model: Any, optimiser: Any, parameters: Iterable[nn.Parameter] = ()
) -> None:
    """Hold the gradients of a step to a bound.

    Args:
        mode: one of `CLIP_MODES`. ``"norm"``: ``bound`` is that of the norm of all gradients together. ``"agc"``: the
            gradient of each unit, what makes one output, has at most ``bound`` times the norm of the unit's weights;
            weights below 1e-3 count as that, so that those which begin at zero can leave it.
        bound: positive.
        fabric, model, optimiser: of the run, as Fabric set them up.
        parameters: those that ``"agc"`` clips.
    """
    if mode == "norm":
        fabric.clip_gradients(model, optimiser, max_norm=bound)
        return
    from timm.utils.agc import adaptive_clip_grad

    # what 16-mixed multiplied gradients by would count as gradient
    fabric.strategy.precision.unscale_gradients(getattr(optimiser, "optimizer", optimiser))
    adaptive_clip_grad(list(parameters), bound)
