"""``import saccade.timm``: every backbone of ours in timm's registry, as ``saccade_NAME``.

    import timm, saccade.timm
    model = timm.create_model("saccade_van_b2", num_classes=10, features_only=True)

timm's own names are never taken. As with timm's models, what comes is in training mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import DefaultCfg, generate_default_cfgs, register_model
from torch import nn

from saccade.nn.backbone import IMAGENET_MEAN, IMAGENET_STD
from saccade.registry import ModelEntry, create, entry, list_models

PREFIX = "saccade_"
default_cfgs: dict[str, DefaultCfg] = {}
__all__: list[str] = []  # timm's registry appends the names


def _cfg(found: ModelEntry) -> dict[str, Any]:
    side = int(found.facts.get("size", 224))
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "fixed_input_size": bool(found.facts.get("fixed_size", False)),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bicubic",
        "crop_pct": float(found.facts.get("crop_pct", 0.9)),
        "classifier": "head",
    }


def _completed(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """What only the built network tells: names of its first convolution and its classifier, size of the last map."""
    convs = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    config["first_conv"] = next((n for n, m in convs if m.in_channels == getattr(model, "in_chans", 3)), None)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    config["classifier"] = next((n for n in linears if n.startswith(getattr(model, "classifier", "head"))), None)
    config["num_classes"] = getattr(model, "num_classes", 0)
    maps: Any = getattr(model, "feature_info", None)
    stride = maps[-1]["reduction"] if isinstance(maps, list) else 32
    config["pool_size"] = tuple(-(-side // stride) for side in config["input_size"][1:])
    return config


def _entry_point(found: ModelEntry) -> Callable[..., nn.Module]:
    def make(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **options: Any,
    ) -> nn.Module:
        model = create(found.name, weights="official" if pretrained else None, **options).train()
        config: Any = _completed(
            {**_cfg(found), "architecture": make.__name__, **(pretrained_cfg_overlay or {})}, model
        )
        model.pretrained_cfg = model.default_cfg = config
        return model

    make.__name__ = make.__qualname__ = PREFIX + found.name
    make.__doc__ = f"``saccade.create({found.name!r})`` for timm."
    make.__module__ = __name__
    return make


def _register() -> None:
    found = [entry(name) for name in list_models(task="classification") if entry(name).facts.get("timm", True)]
    default_cfgs.update(generate_default_cfgs({PREFIX + e.name: _cfg(e) for e in found}))
    for e in found:
        register_model(_entry_point(e))


_register()
