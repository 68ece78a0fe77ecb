"""One small network of every backbone, for what must hold of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from saccade.registry import create


@dataclass(frozen=True)
class Small:
    """How to make a small network of a system.

    Attributes:
        name: a registered name.
        options: what makes it small.
        side: of the square pictures that it is tried on.
        other: (height, width) of another picture; None where it is built for one size, which its docstring says.
        smallest: False where its docstring says that it takes any size.
        exports: False where its docstring says why it has no ONNX graph.
        graph: options that differ for the exported network, where a graph of any size takes long to make.
        maps: how many `features_only` gives.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 64
    other: tuple[int, int] | None = (96, 128)
    smallest: bool = True
    exports: bool = True
    graph: dict[str, Any] = field(default_factory=dict)
    maps: int = 4

    def make(self, seed: int = 0, **more: Any) -> nn.Module:
        """The network with every parameter and every statistic drawn anew: fresh ones hide mistakes."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create(self.name, weights=None, **{**self.options, **more})
            return randomised(model)

    def picture(self, batch: int = 2, seed: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
        height, width = size or (self.side, self.side)
        return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Gains around 1, offsets around 0, positive variances, layer scales and gates that are not nothing."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.7, 1.4)
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.uniform_(0.6, 1.2) if parameter.mean() >= 0 and parameter.numel() else parameter.normal_(0, 0.1)
    return model


#: a line a system; the tests of all backbones run over these
SMALL = {
    "biformer": Small(
        "biformer",
        {"widths": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "topk": (1, 2, 3, -2), "regions": 2, "head_dim": 16},
        other=(72, 128),  # maps that do not divide into regions
    ),
    "dsm": Small(
        "dsm",
        {"widths": (8, 12, 16, 20), "depths": (1, 1, 2, 1), "groups": 4, "img_size": 64},
        graph={"widths": (8, 12), "depths": (1, 1)},  # every kind of layer; each block makes its bases anew
    ),
    "efficientvit": Small(
        "efficientvit",
        {"widths": (32, 48, 64), "depths": (1, 1, 1), "heads": (2, 3, 4), "window": 3, "img_size": 64, "key_dim": 8},
        other=None,
        maps=3,
    ),
    "elasticvit": Small(
        "elasticvit_subnet",
        {
            "space": "elasticvit-small",
            "architecture": {
                "resolution": 64,
                "stem": {"depth": 1, "width": 16, "kernel": 3},
                "stages": [
                    {"kind": "conv", "depth": 2, "width": 16, "ratio": 3, "kernel": 5},
                    {"kind": "conv", "depth": 1, "width": 24, "ratio": 2, "kernel": 3},
                    {"kind": "attention", "depth": 2, "width": 24, "ratio": 3, "v_scale": 2},
                    {"kind": "attention", "depth": 1, "width": 32, "ratio": 2, "v_scale": 1},
                ],
            },
        },
        other=(96, 96),  # square ones alone
    ),
    "fast_scaling": Small(
        "anynet",
        {"depths": (1, 2, 1, 1), "widths": (16, 24, 32, 40), "group_widths": 8, "stem_width": 8, "se_ratio": 0.25},
        smallest=False,
    ),
    "fit": Small(
        "fit_classifier",
        {"widths": (16, 24), "depths": (1, 2, 1, 1, 1), "heads": (2, 4), "subimage": 16, "img_size": 64},
        other=None,
        maps=1,
    ),
    "foveated": Small("foveated", {"widths": (8, 12, 16, 24), "depths": (1, 1, 1, 1), "img_size": 64}, other=None),
    "hyperzzw": Small(
        "hyperzzw",
        {
            "widths": (12, 24, 24),
            "depths": (2, 1, 1),
            "drops": (0.0, 0.0, 0.0),
            "hidden": 8,
            "local_hidden": 6,
            "channel_hidden": 6,
            "interaction_hidden": 4,
            "spatial_hidden": 8,
            "img_size": 16,
        },
        side=16,
        other=None,
        maps=3,
    ),
    "piip": Small(
        "piip",
        {
            "widths": (32, 16, 16),
            "depths": (2, 2, 2),
            "heads": (4, 2, 2),
            "sides": (16, 32, 64),
            "patch": 8,
            "mlp_ratio": 2.0,
            "deform_heads": 4,
        },
        other=None,
        maps=1,
    ),
    "resnet_rs": Small("resnetrs", {"depth": (1, 2, 1, 1), "channels": (8, 8, 16, 16), "stem_width": 8}),
    "shiftaddvit": Small(
        "shiftaddvit",
        {
            "widths": (16, 32, 48, 64),
            "depths": (1, 1, 1, 1),
            "heads": (1, 2, 3, 4),
            "mlp_ratios": (2, 2, 2, 2),
            "hash_bits": 4,
            "anchors": 5,
        },
    ),
    "shvit": Small("shvit", {"widths": (32, 48, 64), "depths": (1, 2, 1), "partial": (8, 14, 20)}, maps=3),
    "ulsam": Small(
        "ulsam_mobilenetv2",
        {
            "rows": ((1, 8, 1, 1), (4, 16, 2, 2), (4, 24, 2, 2), (4, 32, 2, 2), (4, 40, 2, 2)),
            "stem_width": 8,
            "head_width": 48,
            "insert": (5, 9),
            "replace": (3, 7),
        },
        maps=5,
    ),
    "unireplknet": Small(
        "unireplknet", {"widths": (8, 12, 16, 20), "depths": (1, 1, 2, 1), "kernels": ((3,), (13,), (11, 0), (7,))}
    ),
    "tvconv": Small(
        "tvconv_mobilenetv2",
        {
            "blocks": ((8, 8, 1), (24, 12, 2), (36, 12, 1), (36, 16, 2)),
            "stem_width": 8,
            "last": 32,
            "img_size": 32,
            "inter_chans": 8,
            "inter_layers": 1,
        },
        side=32,
        other=None,
        maps=3,
    ),
    "van": Small("van", {"widths": (16, 24, 32, 48), "ratios": (4, 4, 2, 2), "depths": (1, 1, 2, 1)}),
    "wavemix": Small("wavemix", {"width": 16, "depth": 2, "level": 2, "ff_width": 12}, maps=1),
}


def names(system: str | None = None) -> list[str]:
    """Names that are in timm's registry."""
    from saccade.registry import entry, variants

    found = [n for slug in sorted(SMALL) for n in variants(slug) if system in (None, slug)]
    return [n for n in found if entry(n).facts.get("timm", True) and entry(n).task == "classification"]
