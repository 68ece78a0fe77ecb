"""Foveated perceptual systems: a fixed stage that shows pictures as an eye might, in front of a trainable network.

Deza and Konkle, "Emergent Properties of Foveated Perceptual Systems", arXiv:2006.07991; the transform from Deza,
Jonnalagadda and Eckstein, "Towards Metamerism via Foveated Style Transfer", ICLR 2019, arXiv:1705.10041.

windows.py      pooling windows that grow with eccentricity, and the regions that they make on a grid of features
adain.py        AdaIN, CORAL, the published encoder and decoder, their losses and their files
lapped.py       features with an exact inverse, where there are no published files
transform.py    the foveated texture transform
blurs.py        the controls: uniform and foveated blur, matched by SSIM
stages.py       the four systems' stages
network.py      the four systems as trainable networks
foveate.py      one call for one picture
probes.py       occlusion, spatial frequency, cue conflict
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saccade.backbones.foveated.foveate import foveate
from saccade.backbones.foveated.stages import KINDS, InFront, stage
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.backbones.foveated.windows import Regions, Windows, painted_regions, pooling_regions

if TYPE_CHECKING:
    from saccade.backbones.foveated.network import FoveatedNetwork

__all__ = [
    "KINDS",
    "FoveatedNetwork",
    "FoveatedTexture",
    "InFront",
    "Regions",
    "Windows",
    "foveate",
    "painted_regions",
    "pooling_regions",
    "stage",
]


def __getattr__(name: str) -> Any:
    if name == "FoveatedNetwork":  # with torchvision, which takes seconds to import
        return importlib.import_module(f"{__name__}.network").FoveatedNetwork
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
