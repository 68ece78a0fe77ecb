"""Fast compound scaling (dWr): make a network larger so that it stays fast.

Dollar, Singh and Girshick, "Fast and Accurate Model Scaling", CVPR 2021, arXiv:2103.06877.

    base (depths, widths, group widths, picture size), factor s on MACs
        |            depth d = s^e_d     width w = s^(e_w/2)     resolution r = s^(e_r/2)     e_d + e_w + e_r = 1
        v
    scaled description --> MACs, parameters, activations (analytic)  --> network

The time of a network on real hardware follows the elements that its convolutions write, its activations, rather than
its MACs. For s times the MACs, depth and resolution multiply activations by s, width only by sqrt(s). So
scale mostly the width (and the group width with it): with a share of 0.8 for the width activations grow as s^0.6,
against s^0.83 for uniform scaling, at equal accuracy.

Describing (`architecture`), scaling, counting (`counting`) and solving (`solver`) are plain arithmetic and import no
torch; `networks` builds what they describe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saccade.backbones.fast_scaling.architecture import (
    BASES,
    Architecture,
    Stage,
    adjust_block_compatibility,
    generate_regnet,
    regnet,
)
from saccade.backbones.fast_scaling.counting import Complexity, complexity, exponent, part_complexities
from saccade.backbones.fast_scaling.scaling import STRATEGIES, Factors, scale, scaling_factors
from saccade.backbones.fast_scaling.solver import Solution, solve, solve_measured

if TYPE_CHECKING:
    from saccade.backbones.fast_scaling.networks import AnyNet, seconds, timm_regnet

__all__ = [
    "BASES",
    "STRATEGIES",
    "AnyNet",
    "Architecture",
    "Complexity",
    "Factors",
    "Solution",
    "Stage",
    "adjust_block_compatibility",
    "complexity",
    "exponent",
    "generate_regnet",
    "part_complexities",
    "regnet",
    "scale",
    "scaling_factors",
    "seconds",
    "solve",
    "solve_measured",
    "timm_regnet",
]


def __getattr__(name: str) -> Any:
    if name in ("AnyNet", "seconds", "timm_regnet"):  # they need torch
        from saccade.backbones.fast_scaling import networks

        return getattr(networks, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
