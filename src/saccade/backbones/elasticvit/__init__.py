"""ElasticViT: one set of weights, and the best network in it for a limit of MACs or milliseconds.

Tang et al., "ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision Transformer on Diverse Mobile
Devices", ICCV 2023, arXiv:2303.09730.

    picture -- resize -- 3x3, s2 -- stem -- C 1 (4) -- C 2 (8) -- T 3 (16) -- T 4 (16) -- T 5 (32) -- T 6 (64)
                                                            |
                 logits <-- Linear <-- hard-swish <-- 1984 <-- pool <-- hard-swish, norm, 6c on every token

    C: inverted bottlenecks       T: one of stride 2 or 1, then pairs of attention (heads of 16) and feed-forward

Weights are stored for the largest network; any other one (resolution, depths, widths, ratios, kernels, value scales)
runs by leading slices of them.

architecture.py   one sub-network as numbers             sampling.py    which ones a training step sees
space.py          what may be chosen                     training.py    training of a supernet
code.py           one as the published code writes it    latency.py     milliseconds, predicted
catalogue.py      published spaces and networks          evolution.py   evolutionary search
counting.py       what they cost                         search.py      the best one below a limit
layers.py         layers that run slices                 deploy.py      statistics and weights of its own
network.py        supernet and stand-alone network       published.py   registered names, published weights

Architectures, spaces and their cost need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage, ConvStage, Stem
from saccade.backbones.elasticvit.catalogue import (
    MIN_ARCHITECTURES,
    PUBLISHED,
    PUBLISHED_ARCHITECTURES,
    SMALL,
    SPACES,
    as_architecture,
    as_space,
)
from saccade.backbones.elasticvit.code import from_code, to_code
from saccade.backbones.elasticvit.counting import (
    as_rows,
    check_limit,
    cost_macs,
    cost_range,
    ladder,
    map_sides,
    true_macs,
)
from saccade.backbones.elasticvit.space import Column, Space, StageSpace, largest, smallest

if TYPE_CHECKING:
    from saccade.backbones.elasticvit.deploy import extract, recalibrate
    from saccade.backbones.elasticvit.network import ElasticViT, SubNetwork

__all__ = [
    "MIN_ARCHITECTURES",
    "PUBLISHED",
    "PUBLISHED_ARCHITECTURES",
    "SMALL",
    "SPACES",
    "Architecture",
    "AttentionStage",
    "Column",
    "ConvStage",
    "ElasticViT",
    "Space",
    "StageSpace",
    "Stem",
    "SubNetwork",
    "as_architecture",
    "as_rows",
    "as_space",
    "check_limit",
    "cost_macs",
    "cost_range",
    "extract",
    "from_code",
    "ladder",
    "largest",
    "map_sides",
    "recalibrate",
    "smallest",
    "to_code",
    "true_macs",
]

_WITH_TORCH = {"ElasticViT": "network", "SubNetwork": "network", "extract": "deploy", "recalibrate": "deploy"}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
