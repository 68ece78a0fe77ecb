"""The face that every backbone shows: logits, maps at several strides, a head to change, and what timm's tools ask for.

A network derives from `Backbone` and gives three things, besides widths and strides:

    picture (B, 3, H, W) -- stem -- stages[0] -- stages[1] ... -- norm -- (B, C, h, w)      forward_features
                                        |            |                       |
                                    the maps of `features_only`      pool -- head_norm -- head -- logits

Everything else (``features_only``, ``forward_intermediates``, ``reset_classifier``, gradient checkpointing, the checks
of the input) is here once. The names of methods and their meaning are timm's, so that what is built on timm takes our
networks as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import InputError, UsageError

__all__ = ["Backbone", "NamedStages", "check_stages", "made", "named"]

B = TypeVar("B", bound="Backbone")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A classifier whose stages can be used one by one.

    Shape: (B, in_chans, H, W), standardised by ``mean`` and ``std`` -> (B, num_classes) logits; with ``num_classes=0``
    the pooled features (B, num_features).

    A subclass calls ``super().__init__(...)`` first, then sets ``stem`` and ``stages`` (an ``nn.ModuleList``; each
    takes and returns NCHW), may set ``norm`` (on the last map) and ``head_norm`` (on the pooled features), and calls
    `reset_classifier` when all else stands.

    Args:
        widths: channels of the map behind each stage.
        reductions: how many pixels of the picture lie along a side of a cell of that map.
        num_classes: outputs; 0 for none.
        in_chans: channels of the picture.
        drop_rate: dropout before the classifier.
        global_pool: ``"avg"``, or ``""`` for none.
        least: the smallest side of a picture that it takes.
        size: the one side that it takes, where it is built for one.
    """

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    final = "norm"  # the name of what stands between the last stage and the pool
    classifier = "head"  # the name of the last layer
    stem: nn.Module
    stages: nn.ModuleList
    norm: nn.Module
    head_norm: nn.Module
    head: nn.Module
    built_with: dict[str, Any]  # the options by which `made` made it

    def __init__(
        self,
        widths: Sequence[int],
        reductions: Sequence[int],
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
        least: int = 32,
        size: int | None = None,
    ) -> None:
        super().__init__()
        if in_chans < 1 or num_classes < 0:
            raise UsageError(f"in_chans is at least 1 and num_classes at least 0, not {in_chans} and {num_classes}")
        if not 0 <= drop_rate <= 1:
            raise UsageError(f"drop_rate lies in [0, 1], not {drop_rate}")
        if len(widths) != len(reductions) or not widths:
            raise UsageError(f"{len(widths)} widths, but {len(reductions)} strides")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.global_pool, self.least, self.size = global_pool, least, size
        self.num_features = self.head_hidden_size = int(widths[-1])
        self.feature_info = [
            {"num_chs": int(w), "reduction": int(r), "module": f"stages.{i}"}
            for i, (w, r) in enumerate(zip(widths, reductions, strict=True))
        ]
        self.grad_checkpointing = False
        self.norm, self.head_norm, self.head_drop = nn.Identity(), nn.Identity(), nn.Dropout(drop_rate)

    # -- the picture

    def check(self, x: Tensor) -> None:
        """Refuse what is no batch of pictures for this network; nothing is looked at during compilation and export.

        Raises:
            InputError: another rank, dtype, number of channels or size; the message says which is taken.
        """
        if torch.compiler.is_compiling():
            return
        takes = f"{type(self).__name__} takes float pictures (B, {self.in_chans}, H, W)"
        if x.ndim != 4 or not x.is_floating_point():
            raise InputError(f"{takes}, not {x.dtype} {tuple(x.shape)}")
        if x.shape[1] != self.in_chans:
            raise InputError(f"{takes}, not {x.shape[1]} channels")
        height, width = x.shape[2:]
        if self.size is not None and (height, width) != (self.size, self.size):
            raise InputError(
                f"{type(self).__name__} was built for {self.size} x {self.size} px, not {width} x {height}; "
                f"build it with img_size={max(height, width)} or resize the picture"
            )
        if min(height, width) < self.least:
            raise InputError(f"{takes} with sides of at least {self.least} px, not {width} x {height}")

    # -- the maps

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map behind each stage, (B, C, h, w), finest first; what is not asked for is not computed."""
        self.check(x)
        x = self.stem(x)
        for stage in self.stages:
            x = self._run(stage, x)
            yield x

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.grad_checkpointing and self.training and torch.is_grad_enabled()):
            out: Tensor = stage(x)
            return out
        for block in stage if isinstance(stage, nn.Sequential) else (stage,):
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised as the head wants it: (B, num_features, h, w)."""
        for last in self.maps(x):
            x = last
        out: Tensor = getattr(self, self.final)(x)
        return out

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of the last map; with ``pre_logits`` what the classifier would see."""
        if self.global_pool:
            x = self.head_norm(x.mean((2, 3)))
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps behind chosen stages, and the last one (timm's method of that name).

        Args:
            indices: numbers of stages, negative ones from the end; a number n alone: the last n; None: all.
            norm: put the final norm on the last map too.
            stop_early: compute nothing behind the last map asked for.
            output_fmt: ``"NCHW"``.
            intermediates_only: the maps alone.

        Raises:
            UsageError: no such stage or format.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"maps come as NCHW, not {output_fmt}")
        taken, final = self.stage_numbers(indices), getattr(self, self.final)
        found: dict[int, Tensor] = {}
        last = x
        for i, last in enumerate(self.maps(x)):
            if i in taken:
                found[i] = final(last) if norm and i == len(self.feature_info) - 1 else last
            if stop_early and intermediates_only and i == max(taken):
                break
        maps = [found[i] for i in taken]
        return maps if intermediates_only else (final(last), maps)

    def stage_numbers(self, indices: int | Sequence[int] | None) -> list[int]:
        """Numbers of stages from 0, as `forward_intermediates` takes them.

        Raises:
            UsageError: there is no such stage.
        """
        count = len(self.feature_info)
        if isinstance(indices, int):
            indices = range(count - indices, count) if 0 < indices <= count else [count]
        numbers = [i + count if i < 0 else i for i in (range(count) if indices is None else indices)]
        if not numbers or not all(0 <= i < count for i in numbers):
            raise UsageError(f"{type(self).__name__} has {count} maps, 0 to {count - 1}; not {indices}")
        return numbers

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last map that is asked for, and norm and head with them; returns the numbers."""
        taken = self.stage_numbers(indices)
        self.stages = nn.ModuleList(list(self.stages)[: max(taken) + 1])
        if prune_norm:
            setattr(self, self.final, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    # -- the head

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        last: nn.Module = getattr(self, self.classifier)
        return last

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier, or none for ``num_classes=0``; ``global_pool=""`` leaves the map unpooled.

        Raises:
            UsageError: another pooling than ``"avg"`` and ``""``, or a classifier without pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", ""):
            raise UsageError(f"global_pool is 'avg' or '', not {pool!r}")
        if num_classes and not pool:
            raise UsageError("a classifier needs pooled features: global_pool='avg'")
        self.num_classes, self.global_pool = num_classes, pool
        if not pool:
            self.head_norm = nn.Identity()
        setattr(self, self.classifier, self.make_head(num_classes) if num_classes else nn.Identity())
        told: Any = getattr(self, "saccade_options", None)
        if isinstance(told, dict):  # what `saccade.save` writes
            told["num_classes"] = num_classes
            if global_pool is not None:
                told["global_pool"] = pool

    def make_head(self, num_classes: int) -> nn.Module:
        """The classifier: a linear layer, truncated normal of deviation 0.02."""
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    # -- training

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again on the way back instead of keeping them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns by which timm groups parameters for layer-wise rates: the stem, then stages or blocks."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None)]}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, beside vectors."""
        return set()


class NamedStages(Backbone):
    """A backbone whose stages have names of their own, because the key names of published weights are kept.

    A subclass gives the names, and its `opening` where that is more than ``stem``.

    Args:
        stage_names: attributes that hold the stages, in order.
        options: as `Backbone`.
    """

    def __init__(
        self, stage_names: Sequence[str], widths: Sequence[int], reductions: Sequence[int], **options: Any
    ) -> None:
        super().__init__(widths, reductions, **options)
        self.stage_names = list(stage_names)
        for info, name in zip(self.feature_info, stage_names, strict=True):
            info["module"] = name

    def opening(self, x: Tensor) -> Tensor:
        """What stands before the first stage."""
        out: Tensor = self.stem(x)
        return out

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map behind each stage, as `Backbone.maps`."""
        self.check(x)
        x = self.opening(x)
        for name in self.stage_names:
            x = self._run(getattr(self, name), x)
            yield x

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `Backbone.prune_intermediate_layers`."""
        taken = self.stage_numbers(indices)
        for name in self.stage_names[max(taken) + 1 :]:
            delattr(self, name)
        self.stage_names = self.stage_names[: max(taken) + 1]
        if prune_norm:
            setattr(self, self.final, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`; what stands before the first stage is the stem."""
        children = [name for name, _ in self.named_children()]
        stem = "|".join(map(re.escape, children[: children.index(self.stage_names[0])]))
        stage = rf"^{self.stage_names[0].rstrip('0123456789')}(\d+)"
        return {"stem": rf"^(?:{stem})\.", "blocks": stage if coarse else [(rf"{stage}\.\D*(\d+)", None)]}


def check_stages(**given: Sequence[float]) -> None:
    """Refuse lists that do not give each of four stages a number.

    Raises:
        UsageError: another count, or a number below 1; the message names the list.
    """
    for what, numbers in given.items():
        if len(numbers) != 4 or min(numbers, default=0) < 1:
            raise UsageError(f"{what} are four numbers of at least 1, one a stage, not {tuple(numbers)}")


def made(
    network: Callable[..., B],
    options: Mapping[str, Any],
    variants: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    variant: str = "",
) -> nn.Module:
    """A backbone with a user's options: what the functions behind registered names return.

    Args:
        network: the class.
        options: what the user gave; ``features_only=True`` asks for the maps alone (`FeatureMaps`: a list of
            (B, C_i, H/r_i, W/r_i), finest first), ``out_indices`` for some of them.
        variants: what each name stands for; options win.
        variant: the name that is asked for, "" for the general network.

    Raises:
        UsageError: ``out_indices`` without ``features_only``.
    """
    rest = {**(variants[variant] if variant else {}), **options}
    features_only, out_indices = rest.pop("features_only", False), rest.pop("out_indices", None)
    if out_indices is not None and not features_only:
        raise UsageError("out_indices choose maps: they go with features_only=True")
    model = network(**rest)
    model.built_with = rest
    if not features_only:
        return model
    from saccade.nn.feature_maps import FeatureMaps

    return FeatureMaps(model, tuple(model.stage_numbers(out_indices)))


def named(
    general: str, variants: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], state: StateDict
) -> Recipe:
    """The registered model that a state belongs to: the variant that the options describe, or the general one.

    Args:
        general: registered name of any network of the family.
        variants: what each registered name stands for.
        options: all that the state tells, sequences as tuples.
        state: in our key names.
    """
    for name, variant in variants.items():
        if all(options.get(key) == value for key, value in variant.items()):
            return Recipe(name, {key: value for key, value in options.items() if key not in variant}, state)
    return Recipe(general, dict(options), state)
