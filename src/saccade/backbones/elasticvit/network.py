"""The supernet, of which any architecture runs by leading slices, and the stand-alone networks that come out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from saccade.backbones.elasticvit.architecture import Architecture, AttentionStage, ConvStage
from saccade.backbones.elasticvit.catalogue import as_architecture, as_space
from saccade.backbones.elasticvit.code import to_code
from saccade.backbones.elasticvit.counting import cost_macs, ladder, map_sides
from saccade.backbones.elasticvit.layers import (
    Attention,
    ElasticConv,
    ElasticConvNorm,
    ElasticLinear,
    FeedForward,
    MobileBlock,
    MobileSize,
    TransformerBlock,
    relative_index,
)
from saccade.backbones.elasticvit.space import Space, StageSpace, largest
from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.nn.backbone import Backbone
from saccade.nn.dimensions import Dimensions, Numbers
from saccade.nn.fuse import fuse

__all__ = ["ElasticViT", "SubNetwork"]

Given = Architecture | str | Mapping[str, Any] | Sequence[Any]


class ActiveBlocks(nn.ModuleList):
    """Blocks of which the first ``active`` run, one after the other."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__(blocks)
        self.active = len(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self):
            if i < self.active:
                x = block(x)
        return x


def _stem(architecture: Architecture, in_chans: int, exact: bool) -> ActiveBlocks:
    width, kernel = architecture.stem.width, architecture.stem.kernel
    first = ElasticConvNorm(ElasticConv(in_chans, width, 3, 2), nn.Hardswish())
    size = MobileSize(width, width, 1, kernel)
    return ActiveBlocks([first, *(MobileBlock(size, shortcut=not exact) for _ in range(architecture.stem.depth))])


def _stage(
    stage: ConvStage | AttentionStage, choices: StageSpace, inputs: int, side: int, head_dim: int, exact: bool
) -> ActiveBlocks:
    """The blocks of a stage on maps of ``side`` cells.

    Published supernets store every block for as many channels in as out, and a shortcut convolution in all of them;
    ``exact`` ones have what runs.
    """
    width = stage.width

    def mobile(i: int, ratio: int, kernel: int, se: bool) -> MobileBlock:
        before = inputs if i == 0 and exact else width
        stride = choices.stride if i == 0 else 1
        return MobileBlock(
            MobileSize(before, width, ratio, kernel), stride, se=se, shortcut=before != width or not exact
        )

    if isinstance(stage, ConvStage):
        return ActiveBlocks([mobile(i, stage.ratio, stage.kernel, choices.se) for i in range(stage.depth)])
    index = relative_index(side)
    return ActiveBlocks(
        [
            TransformerBlock(
                Attention(width, head_dim, stage.v_scale, index),
                FeedForward(width, stage.ratio),
                mobile(0, 6, 3, se=True) if i == 0 else None,
            )
            for i in range(stage.depth)
        ]
    )


class _Network(Backbone):
    """What the supernet and a stand-alone network share: all but the choice of slices."""

    def __init__(self, architecture: Architecture, space: Space, *, exact: bool, resize: bool, **options: Any) -> None:
        stages = list(zip(architecture.stages, space.stages, strict=True))
        strides = [2]
        for choices in space.stages:
            strides.append(strides[-1] * choices.stride)
        super().__init__([s.width for s in architecture.stages], strides[1:], **options)
        self.space, self.resize, self._architecture = space, resize, architecture
        self.stem = _stem(architecture, self.in_chans, exact)
        inputs, built = architecture.stem.width, []
        for (stage, choices), side in zip(stages, map_sides(architecture, space)[1:], strict=True):
            built.append(_stage(stage, choices, inputs, side, space.head_dim, exact))
            inputs = stage.width
        self.stages = nn.ModuleList(built)
        self.num_features, self.head_hidden_size = inputs * space.head_ratio, space.head_width
        # The head's first layer works on every token, before the pool: a 1x1 convolution of the last map.
        self.norm = ElasticConvNorm(ElasticConv(inputs, self.num_features, bias=True), nn.Hardswish())
        self.pre_head: nn.Module = ElasticLinear(self.num_features, space.head_width)
        self.reset_classifier(self.num_classes)

    @property
    def architecture(self) -> Architecture:
        """What runs."""
        return self._architecture

    def check(self, x: Tensor) -> None:
        """Refuse what is no batch of pictures for this network, as `Backbone.check`.

        Raises:
            InputError: also pictures that are not square, unless built with ``resize=False``: then larger ones than
                the resolution, whose maps the attention has no biases for.
        """
        super().check(x)
        height, width = x.shape[2:]
        name, side = type(self).__name__, self.architecture.resolution
        if self.resize and height != width:
            raise InputError(
                f"{name} resizes square pictures to {side} x {side} px, not {width} x {height}: crop or pad them, or "
                "build it with resize=False"
            )
        if not self.resize and max(height, width) > side:
            raise InputError(f"{name} without resizing takes sides of up to {side} px, not {width} x {height}")

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map behind each stage, (B, C, h, w), finest first, of the resized picture."""
        self.check(x)
        return super().maps(self._resized(x))

    def _resized(self, x: Tensor) -> Tensor:
        side = self.architecture.resolution
        if not self.resize:
            return x
        if isinstance(x.shape[2], int) and isinstance(x.shape[3], int) and tuple(x.shape[2:]) == (side, side):
            return x  # where sides are free in an exported graph, it always resizes
        return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of the last map; with ``pre_logits`` the (B, head_hidden_size) that the classifier would see.

        With ``num_classes=0`` the head is left out: the pooled map, (B, num_features).
        """
        if not self.global_pool or (self.num_classes == 0 and not pre_logits):
            return super().forward_head(x, pre_logits=True)
        x = self.head_drop(F.hardswish(self.pre_head(x.mean((2, 3)))))
        return x if pre_logits else self.get_classifier()(x)

    def make_head(self, num_classes: int) -> nn.Module:
        """A linear layer on the head's hidden channels."""
        head = nn.Linear(self.head_hidden_size, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `Backbone.prune_intermediate_layers`."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.pre_head = nn.Identity()
        return taken

    def no_weight_decay(self) -> set[str]:
        """The tables of biases, as published."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}


class SubNetwork(_Network):
    """A stand-alone network of one architecture, with the weights that it runs and no more.

    Args:
        architecture: a published name (``"t1"`` to ``"l3"``), a code (ten entries), a dictionary or an `Architecture`.
        space: of the supernet that it comes from: its name, dictionary or `Space`.
        resize: resize pictures inside to the architecture's resolution (bicubic), as published. Otherwise maps have
            their strides on the picture as it is, whose sides may be up to the resolution, and need not be equal.
        img_size: another resolution than the architecture's, in the space or not; beyond it the tables of biases are
            larger than the supernet's, and attention's memory grows with its fourth power. None for the architecture's.
        options: as `Backbone`.

    Shape: (B, 3, S, S) -> (B, num_classes); sides of at least 32 pixels.

    Raises:
        UsageError: no such architecture in this space; the message names entry and stage.
    """

    def __init__(
        self,
        architecture: Given = "t1",
        space: Space | str | Mapping[str, Any] = "elasticvit",
        resize: bool = True,
        img_size: int | None = None,
        **options: Any,
    ) -> None:
        space = as_space(space)
        found = as_architecture(architecture, space)
        if img_size is not None:
            found = replace(found, resolution=img_size)
            space = replace(space, resolutions=tuple(sorted({*space.resolutions, img_size})))
        super().__init__(found, space, exact=True, resize=resize, **options)

    def dimensions(self) -> Dimensions:
        """Widths and depths of stem and stages, and the resolution, each out of the space's choices.

        So what is scaled stays a network of the supernet, and may inherit its weights.
        """
        found, columns = self.architecture, self.space.columns
        kinds = {"widths": "width", "depths": "depth", "sides": "resolution"}
        places = {name: [i for i, c in enumerate(columns) if c.kind == kind] for name, kind in kinds.items()}

        def options(numbers: Numbers) -> dict[str, Any]:
            row = list(found.row)
            for name, own in places.items():
                for place, number in zip(own, numbers[name], strict=True):
                    row[place] = number
            code = to_code(self.space.architecture(row), self.space.head_dim)
            return {"architecture": tuple(tuple(e) if isinstance(e, list) else e for e in code)}

        numbers = {name: tuple(found.row[i] for i in own) for name, own in places.items()}
        return Dimensions(numbers, options, {name: [columns[i].values for i in own] for name, own in places.items()})


class ElasticViT(_Network):
    """The supernet: weights of the largest architecture, of which any runs by leading slices.

    ``model.architecture = a`` chooses what runs; ``model.budget = b`` chooses from ``model.ladder`` the costliest
    that takes at most that share of the largest one's MACs (cost model). Both only set numbers: nothing is copied.

    Running statistics of the norms are those of whatever was trained last: before an architecture is used,
    `recalibrate` them on training pictures. `extract` gives the network that runs as one of its own.

    Args:
        space: name (`SPACES`), dictionary or `Space` (which `saccade.save` cannot write).
        architecture: what runs first, as `SubNetwork`; the largest by default.
        resize, options: as `SubNetwork`.

    Shape: (B, 3, S, S) -> (B, num_classes); sides of at least 32 pixels.

    Raises:
        UsageError: no such space, or no such architecture in it.
    """

    def __init__(
        self,
        space: Space | str | Mapping[str, Any] = "elasticvit",
        architecture: Given | None = None,
        resize: bool = True,
        **options: Any,
    ) -> None:
        space = as_space(space)
        first = as_architecture(largest(space) if architecture is None else architecture, space)
        super().__init__(largest(space), space, exact=False, resize=resize, **options)
        self.ladder = ladder(space, self.num_classes)
        self.architecture = first

    @property
    def architecture(self) -> Architecture:
        """What runs."""
        return self._architecture

    @architecture.setter
    def architecture(self, given: Given) -> None:
        self.set_architecture(given)

    def set_architecture(self, given: Given) -> Architecture:
        """Choose what runs from the next call on.

        Args:
            given: a published name, a code (ten entries), a dictionary or an `Architecture`.

        Raises:
            UsageError: not of this space; the message names entry and stage.
        """
        found = as_architecture(given, self.space)
        self._set_stem(found)
        inputs = found.stem.width
        for blocks, stage in zip(self.stages, found.stages, strict=False):  # those that nobody asks for may be pruned
            _set_stage(blocks, stage, inputs)
            inputs = stage.width
        last = found.stages[-1].width
        self.num_features = last * self.space.head_ratio
        for info, stage in zip(self.feature_info, found.stages, strict=True):
            info["num_chs"] = stage.width
        if isinstance(self.norm, ElasticConvNorm):
            self.norm.set_active(self.num_features, last)
        if isinstance(self.pre_head, ElasticLinear):
            self.pre_head.active = (self.space.head_width, self.num_features)
        self._architecture = found
        self._budget = float(self._costs([found])[0] / self._costs([largest(self.space)])[0])
        return found

    def _costs(self, found: Sequence[Architecture]) -> NDArray[np.float64]:
        """MACs by the cost model, in millions, with this network's classes."""
        return cost_macs(found, self.space, self.num_classes)

    def _set_stem(self, found: Architecture) -> None:
        width, kernel = found.stem.width, found.stem.kernel
        assert isinstance(self.stem, ActiveBlocks)
        self.stem.active = 1 + found.stem.depth
        for block in self.stem:
            if isinstance(block, MobileBlock):
                block.set_active(MobileSize(width, width, 1, kernel))
            elif isinstance(block, ElasticConvNorm):
                block.set_active(width, self.in_chans)
            else:
                raise UsageError("this supernet is fused: it runs one architecture; choose on the unfused one")

    @property
    def budget(self) -> float:
        """The share of the largest architecture's MACs (cost model) that may be spent, in (0, 1]."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        share = check_budget(value)
        costs = self._costs(self.ladder)
        affordable = [a for a, c in zip(self.ladder, costs, strict=True) if c <= share * costs.max() * (1 + 1e-9)]
        self.set_architecture(affordable[-1] if affordable else self.ladder[0])
        self._budget = share

    def budgets(self) -> list[float]:
        """The shares that the rungs of the ladder take, ascending."""
        costs = self._costs(self.ladder)
        return [float(c / costs.max()) for c in costs]

    def fuse(self) -> nn.Module:
        """What runs, as a network of its own, fused."""
        from saccade.backbones.elasticvit.deploy import extract

        return fuse(extract(self), inplace=True)


def _set_stage(blocks: nn.Module, stage: ConvStage | AttentionStage, inputs: int) -> None:
    assert isinstance(blocks, ActiveBlocks)
    blocks.active = stage.depth
    for i, block in enumerate(blocks):
        before = inputs if i == 0 else stage.width
        if isinstance(stage, ConvStage) and isinstance(block, MobileBlock):
            block.set_active(MobileSize(before, stage.width, stage.ratio, stage.kernel))
        elif isinstance(stage, AttentionStage) and isinstance(block, TransformerBlock):
            block.set_active(before, stage.width, stage.ratio, stage.v_scale)
