"""ElasticViT: one set of weights, and the best network in it for a limit of MACs or milliseconds.

Tang et al., "ElasticViT: Conflict-aware Supernet Training for Deploying Fast Vision Transformer on Diverse Mobile
Devices", ICCV 2023, arXiv:2303.09730.

    picture -- resize -- 3x3, s2 -- stem -- C 1 (4) -- C 2 (8) -- T 3 (16) -- T 4 (16) -- T 5 (32) -- T 6 (64)
                                                            |
                 logits <-- Linear <-- hard-swish <-- 1984 <-- pool <-- hard-swish, norm, 6c on every token

    C: inverted bottlenecks       T: one of stride 2 or 1, then pairs of attention (heads of 16) and feed-forward

Weights are stored for the largest network; any other one (resolution, depths, widths, ratios, kernels, value scales)
runs by leading slices of them. `architecture` says what may be chosen, `counting` what it costs, `network` runs it,
`deploy` makes a network of its own of it; `sampling` chooses what a training step sees, `evolution` and `latency` find
the best within a limit.

Architectures, spaces and their cost need no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from saccade.backbones.elasticvit.architecture import (
    MIN_ARCHITECTURES,
    PUBLISHED,
    PUBLISHED_ARCHITECTURES,
    SMALL,
    SPACES,
    Architecture,
    AttentionStage,
    Column,
    ConvStage,
    Space,
    StageSpace,
    Stem,
    as_architecture,
    as_space,
    largest,
    smallest,
)
from saccade.backbones.elasticvit.counting import (
    as_rows,
    check_limit,
    cost_macs,
    cost_range,
    ladder,
    map_sides,
    true_macs,
)

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
    "ladder",
    "largest",
    "map_sides",
    "recalibrate",
    "smallest",
    "true_macs",
]

_WITH_TORCH = {"ElasticViT": "network", "SubNetwork": "network", "extract": "deploy", "recalibrate": "deploy"}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
