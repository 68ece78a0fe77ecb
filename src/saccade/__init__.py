"""saccade: resource-efficient visual computing.

One name per thing (`create`, `load`), one dial (`budget`), one ledger (`cost`), claims that are code (`reproduce`).
Importing this package imports neither torch nor any other heavy library; each name loads what it needs when used.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules=["backbones", "data", "errors", "io", "nn", "ops", "quality", "reproduce", "restoration", "training"],
    submod_attrs={
        "registry": ["create", "list_models"],
        "checkpoint": ["load", "save"],
        "cost": ["cost"],
        "nn.fuse": ["fuse"],
        "runtime.accelerate": ["accelerate"],
        "budget": ["pareto"],
        "systems": ["all_systems"],
        "restoration.restore": ["restore"],
        "restoration.upscale": ["upscale"],
    },
)

__all__ = [
    "__version__",
    "accelerate",
    "all_systems",
    "cost",
    "create",
    "errors",
    "fuse",
    "list_models",
    "load",
    "pareto",
    "restore",
    "save",
    "upscale",
]
