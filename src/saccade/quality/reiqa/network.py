"""Re-IQA: what two self-supervised encoders see in a picture, at two sizes, as one row of features.

Saha, Mishra and Bovik, "Re-IQA: Unsupervised Learning for Image Quality Assessment in the Wild", CVPR 2023,
arXiv:2304.00451.

    picture (B,3,h,w) in [0,1] --+-- full size --+-- quality encoder --------------------> (B,D)
                                 +-- half size --+-- quality encoder --------------------> (B,D)
                                 +-- full size --- mean, deviation -- content encoder ---> (B,D)
                                 +-- half size --- mean, deviation -- content encoder ---> (B,D)
                                                          side by side -- ridge --> score (B,)

The quality encoder takes pixels as they are (its training does); the content encoder takes them with ImageNet's mean
and deviation. ResNet-50 gives D = 2048, so 8192 features in all.

The dial drops the content branch first, then the half size, then goes to the half size alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.quality.reiqa.encoder import DEVIATION, MEAN, Block, Encoder, Head
from saccade.registry import recognise, register

__all__ = ["LAYOUTS", "SMALLEST", "Branch", "Layout", "ReIQA", "from_official"]

#: the half size is to have this many pixels on its shorter side: an encoder divides by 32
SMALLEST = 32


@dataclass(frozen=True)
class Layout:
    """Which features stand in a row, in this order: branch by branch, full size before half size.

    Attributes:
        branches: ``"quality"``, ``"content"``.
        sizes: of the picture, 1 and 0.5.
    """

    branches: tuple[str, ...]
    sizes: tuple[float, ...]

    @property
    def share(self) -> float:
        """MACs, where one branch at full size is 1."""
        return len(self.branches) * sum(s * s for s in self.sizes)


#: settings of the dial, cheapest first
LAYOUTS: dict[str, Layout] = {
    "quality_half": Layout(("quality",), (0.5,)),
    "quality_full": Layout(("quality",), (1.0,)),
    "quality": Layout(("quality",), (1.0, 0.5)),
    "quality_content": Layout(("quality", "content"), (1.0, 0.5)),
}


class Branch(nn.Module):
    """One encoder, with the projection that its pre-training compared if that is wanted.

    Args:
        encoder: the network.
        head: (hidden, out) of the projection, or None.
    """

    def __init__(self, encoder: Encoder, head: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        if head is not None:
            self.head = Head(encoder.features, *head)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.encoder(x)
        return features

    def project(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, out), unit length.

        Raises:
            UsageError: the branch was made without a projection.
        """
        if not hasattr(self, "head"):
            raise UsageError("this encoder came without the projection of its pre-training")
        made: Tensor = self.head(self.encoder(x))
        return made


def halved(x: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 3, h//2, w//2), Pillow's bicubic, rounded to 8 bits as a file of that size would be.

    Pillow's differs from `saccade.ops.resize` at the border alone: there the kernel is cut off, not mirrored.
    """
    size = (x.shape[2] // 2, x.shape[3] // 2)
    y = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    return (y.clamp(0, 1) * 255).round() / 255


class ReIQA(nn.Module):
    """Features, and with a fitted regressor scores, of pictures.

    Args:
        quality: the quality-aware encoder and its projection, if any.
        content: the content-aware one, or None to go without.
        regressors: hold a ridge regressor for every setting of the dial.

    Shape: (B, 3, h, w) in [0, 1], not normalised, h and w at least 64 -> (B, D) features of the present layout.

    Raises:
        InputError: what is no RGB picture in [0, 1] (a normalised one has values below 0), or a side below 64 pixels
            (values are looked at on the CPU).
    """

    in_channels = 3

    def __init__(self, quality: Branch, content: Branch | None = None, *, regressors: bool = False) -> None:
        super().__init__()
        self.quality = quality
        if content is not None:
            self.content = content
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.setting = self.settings()[-1]
        if regressors:
            for name in self.settings():
                self.register_buffer(f"coefficients_{name}", torch.zeros(self.dimensions(name)))
                self.register_buffer(f"intercept_{name}", torch.zeros(()))

    # -- the dial

    def settings(self) -> list[str]:
        """Names in `LAYOUTS` that this model can run, cheapest first."""
        return [n for n, layout in LAYOUTS.items() if "content" not in layout.branches or hasattr(self, "content")]

    @property
    def layout(self) -> Layout:
        """What `forward` puts out at present."""
        return LAYOUTS[self.setting]

    def use(self, setting: str) -> ReIQA:
        """Choose a layout by name; returns the model.

        Raises:
            UsageError: no such layout here.
        """
        if setting not in self.settings():
            raise UsageError(f"this model's layouts are {', '.join(self.settings())}, not {setting!r}")
        self.setting = setting
        return self

    @property
    def budget(self) -> float:
        """Share of the MACs of both branches at both sizes; setting it takes the best layout that fits."""
        return self.layout.share / LAYOUTS[self.settings()[-1]].share

    @budget.setter
    def budget(self, value: float) -> None:
        allowed = check_budget(value) * LAYOUTS[self.settings()[-1]].share
        fitting = [name for name in self.settings() if LAYOUTS[name].share <= allowed * (1 + 1e-9)]
        self.setting = (fitting or self.settings())[-1 if fitting else 0]

    def budgets(self) -> Sequence[float]:
        """Every click of the dial."""
        full = LAYOUTS[self.settings()[-1]].share
        return [LAYOUTS[name].share / full for name in self.settings()]

    def dimensions(self, setting: str | None = None) -> int:
        """Features in a row."""
        layout = LAYOUTS[setting or self.setting]
        return sum(self._branch(b).encoder.features for b in layout.branches) * len(layout.sizes)

    def _branch(self, name: str) -> Branch:
        return cast(Branch, getattr(self, name))

    # -- features and scores

    def forward(self, x: Tensor, half: Tensor | None = None) -> Tensor:
        """Features; ``half`` is the picture at half size where the caller has it (as Pillow makes it, say)."""
        if not self.training:
            check_picture_values(x, self.layout)
        layout = self.layout
        half = halved(x) if half is None and 0.5 in layout.sizes else half
        parts = []
        for name in layout.branches:
            for size in layout.sizes:
                given = x if size == 1 else cast(Tensor, half)
                if name == "content":
                    given = (given - cast(Tensor, self.mean)) / cast(Tensor, self.deviation)
                parts.append(self._branch(name)(given))
        return torch.cat(parts, 1)

    @property
    def scores(self) -> bool:
        """Whether the model holds regressors."""
        return f"coefficients_{self.setting}" in self._buffers

    def regress(self, features: Tensor) -> Tensor:
        """(B, D) features of the present layout -> (B,) scores, about 0 (worst) to 100, not clamped.

        Raises:
            UsageError: the model holds no regressor.
            InputError: features of another layout.
        """
        if not self.scores:
            raise UsageError(
                "this model gives features, not scores: fit a regressor on rated pictures (saccade train iqa)"
            )
        weights = cast(Tensor, getattr(self, f"coefficients_{self.setting}"))
        if features.shape[-1] != len(weights):
            raise InputError(
                f"the layout {self.setting} has {len(weights)} features, not {features.shape[-1]}: these are of another"
            )
        return features @ weights + cast(Tensor, getattr(self, f"intercept_{self.setting}"))

    def score(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] -> (B,) scores; higher is better."""
        return self.regress(self(x))

    def describe_layout(self, side: int | None = None) -> dict[str, Any]:
        """What a regressor depends on: the layout, the cap on the long side, and the encoders' own numbers."""
        numbers = {name: fingerprint(self._branch(name).encoder) for name in self.layout.branches}
        return {**asdict(self.layout), "dimensions": self.dimensions(), "side": side, "encoders": numbers}

    def fuse(self) -> ReIQA:
        """Fold every batch norm into its convolution, in place; for running, not for saving. Returns itself."""
        for name in ("quality", "content"):
            if hasattr(self, name):
                self._branch(name).encoder.fuse()
        return self


def check_picture_values(x: Tensor, layout: Layout) -> None:
    """Refuse what the encoders were not made for.

    Raises:
        InputError: see `ReIQA`.
    """
    check_picture(x, 3, "Re-IQA")
    smallest = SMALLEST * (2 if 0.5 in layout.sizes else 1)
    if min(x.shape[2:]) < smallest:
        raise InputError(
            f"Re-IQA takes pictures of at least {smallest} pixels a side, not {x.shape[3]} x {x.shape[2]}: at half "
            f"size there would be less than {SMALLEST} left"
        )
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and float(x.min()) < 0:
        raise InputError(
            f"Re-IQA takes pictures in [0, 1] that are not normalised; this one goes down to {float(x.min()):.3g}"
        )


@torch.no_grad()
def fingerprint(encoder: Encoder) -> str:
    """Twelve hexadecimal digits that tell an encoder's weights from others."""
    digest = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        if value.is_floating_point():
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def layout_hash(told: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits of a described layout."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


@register("reiqa", system="reiqa", task="image quality", dial="content branch, sizes")
def reiqa(
    content: bool = True,
    block: Block = "bottleneck",
    layers: Sequence[int] = (3, 4, 6, 3),
    widths: Sequence[int] = (64, 128, 256, 512),
    stem: int = 64,
    head: Sequence[int] | None = None,
    regressors: bool = False,
) -> ReIQA:
    """Re-IQA as published: two ResNet-50, 8192 features. Its weights are not ours to ship; see the system's page."""
    return _make(content, block, layers, widths, stem, head, regressors)


@register("reiqa_small", system="reiqa", task="image quality", dial="content branch, sizes")
def reiqa_small(content: bool = True, width: float = 0.5, layers: Sequence[int] = (2, 2, 2)) -> ReIQA:
    """Two ResNet-18 of half width without the last stage, on local contrast; regressors included; 512 features.

    Args:
        content: with the content branch.
        width: of every layer, relative to ResNet-18.
        layers: blocks of each stage; (2, 2, 2, 2) has the last stage, which is three quarters of the parameters.
    """
    widths = [max(1, round(w * width)) for w in (64, 128, 256, 512)[: len(layers)]]
    return _make(content, "basic", layers, widths, widths[0], None, True, contrast=True)


def _make(
    content: bool,
    block: Block,
    layers: Sequence[int],
    widths: Sequence[int],
    stem: int,
    head: Sequence[int] | None,
    regressors: bool,
    contrast: bool = False,
) -> ReIQA:
    projection = None if head is None else (int(head[0]), int(head[1]))

    def branch() -> Branch:
        return Branch(Encoder(block, tuple(layers), tuple(widths), stem, contrast), projection)

    return ReIQA(branch(), branch() if content else None, regressors=regressors)


# -- published files


@recognise("reiqa", keys=("encoder.conv1.weight", "encoder.layer1.0.conv1.weight", "head.0.weight", "head.2.weight"))
def from_official(state: StateDict, branch: Literal["quality", "content"] = "quality") -> Recipe | None:
    """A published file: one encoder and its projection. All sizes are read from the shapes.

    The two published files look alike; read by itself, one counts as the quality branch. `with_content` makes the whole
    model of both.

    Raises:
        CheckpointError: stages or tensors are missing.
    """
    layers: list[int] = []
    widths: list[int] = []
    while any(key.startswith(f"encoder.layer{len(layers) + 1}.") for key in state):
        stage = f"encoder.layer{len(layers) + 1}."
        found = {int(key.split(".")[2]) for key in state if key.startswith(stage) and key.split(".")[2].isdigit()}
        if found != set(range(len(found))):
            raise CheckpointError(f"this Re-IQA file lacks blocks of {stage[8:-1]}: it has {sorted(found)}")
        layers.append(len(found))
        widths.append(_need(state, f"{stage}0.conv1.weight", 4).shape[0])
    options: dict[str, Any] = {
        "content": False,
        "block": "bottleneck" if "encoder.layer1.0.conv3.weight" in state else "basic",
        "layers": layers,
        "widths": widths,
        "stem": _need(state, "encoder.conv1.weight", 4).shape[0],
        "head": [_need(state, "head.0.weight", 2).shape[0], _need(state, "head.2.weight", 2).shape[0]],
    }
    return Recipe("reiqa", options, {f"{branch}.{key}": value for key, value in state.items()})


def _need(state: StateDict, key: str, rank: int) -> Tensor:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != rank:
        wrong = "lacks it" if tensor is None else f"holds it as {tuple(tensor.shape)}"
        raise CheckpointError(f"a Re-IQA file needs {key} with {rank} dimensions; this one {wrong}")
    return tensor


def with_content(quality: ReIQA, content: ReIQA) -> ReIQA:
    """One model of the quality branch of two: the second's becomes the content branch.

        saccade.load("quality_aware_r50.pth"), saccade.load("content_aware_r50.pth") -> the published 8192 features

    Raises:
        UsageError: a branch of another kind.
    """
    if not (isinstance(quality, ReIQA) and isinstance(content, ReIQA)):
        raise UsageError("with_content takes two Re-IQA models")
    made = ReIQA(quality.quality, content.quality)
    made.saccade_name = "reiqa"  # type: ignore[assignment]
    made.saccade_options = {**getattr(quality, "saccade_options", {}), "content": True}  # type: ignore[assignment]
    return made.eval()
