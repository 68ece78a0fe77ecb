"""The pyramid: branches from the largest network on the smallest picture to the smallest on the largest.

picture -- resized --> branch 1 (large, coarse)  --+-- blocks --+-- ... -- norm or merge
           resized --> branch 2                  --+  exchange  +
           as it is -> branch N (small, fine)    --+  (N-1,N) .. (1,2)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.backbones.piip.branch import Branch
from saccade.backbones.piip.interaction import Exchange, InteractionUnit
from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.nn.backbone import Backbone

__all__ = ["PIIP", "SeparateHeads"]

EPS = 1e-6
Ranges = tuple[tuple[tuple[int, int], ...], ...]


class TokenNorm(nn.LayerNorm):
    """Layer norm of the channels of a map. Shape: (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MergeStep(nn.Module):
    """A branch's map brought to the merged map's channels: group norm, linear, group norm; for the first, one norm.

    Shape: (B, inputs, H, W) -> (B, outputs, H, W).

    Raises:
        UsageError: channels that do not divide by 32.
    """

    def __init__(self, inputs: int, outputs: int, first: bool) -> None:
        super().__init__()
        if inputs % 32 or outputs % 32:
            raise UsageError(f"merging takes widths that divide by 32 (group norms), not {inputs} and {outputs}")
        self.norm1 = nn.GroupNorm(32, inputs)
        self.linear = nn.Identity() if first else nn.Conv2d(inputs, outputs, 1)
        self.norm2 = nn.Identity() if first else nn.GroupNorm(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm2(self.linear(self.norm1(x)))
        return out


class DenseMergeStep(nn.Module):
    """`MergeStep` of the published detectors: twice a 3x3 convolution, group norm and ReLU.

    Shape: (B, inputs, H, W) -> (B, outputs, H, W).

    Raises:
        UsageError: outputs that do not divide by 32.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        if outputs % 32:
            raise UsageError(f"merging takes a first width that divides by 32 (group norms), not {outputs}")
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(32, outputs), nn.GroupNorm(32, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def merge_step(widths: Sequence[int], i: int, *, dense: bool) -> nn.Module:
    """What brings the map of branch ``i`` to the channels of the first."""
    return DenseMergeStep(widths[i], widths[0]) if dense else MergeStep(widths[i], widths[0], i == 0)


class FeaturePyramid(nn.Module):
    """Four maps of one: deconvolutions up by 4 and 2, the map itself, its maxima of 2 x 2 (as ViTDet).

    Shape: (B, C, H, W) -> (B, C, 4H, 4W), (B, C, 2H, 2W), (B, C, H, W), (B, C, H/2, W/2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.GroupNorm(32, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, 2, 2)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        yield self.up4(x)
        yield self.up2(x)
        yield x
        yield F.max_pool2d(x, 2)


class SeparateHeads(nn.Module):
    """A classifier for each branch; the mean of their logits, over the branches that run.

    Shape: (B, sum of widths) -> (B, num_classes).
    """

    def __init__(self, widths: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.widths, self.running = list(widths), tuple(range(len(widths)))
        made = [nn.Linear(width, num_classes) for width in widths]
        self.heads = nn.ModuleList(made)
        for head in made:
            nn.init.trunc_normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.widths, -1)
        logits = [self.heads[i](parts[i]) for i in self.running]
        return torch.stack(logits).mean(0)


class PIIP(Backbone):
    """Parameter-inverted image pyramid of plain vision transformers.

    Args:
        widths, depths, heads: of the branches, from the largest network to the smallest; widths never increase.
        sides: of their pictures in pixels, multiples of ``patch``; the input has the largest, in a parameter-inverted
            pyramid the last one.
        img_size: side of the input, a multiple of ``patch``: all sides are scaled in proportion, to the nearest
            multiples; None for ``sides`` as they are.
        ranges: for every branch the blocks (first, last) between exchanges, as many ranges in each; None splits the
            blocks of each branch evenly into as many as the shallowest has.
        scaled: which branches have LayerScale (DeiT); the others are plain (AugReg).
        patch: side of a patch.
        mlp_ratio: of the blocks.
        kinds: of the blocks of each branch, ``"vit"``, ``"intern"`` or ``"beit"`` (`branch.Block`); one for all, or one
            a branch.
        gelu: ``"exact"``, or ``"tanh"``: the approximation that the published pyramids with fused feed-forwards ran.
        tables: side in cells of the position tables, one for all or one a branch; 0 for that of the branch's pictures.
            The published detectors keep those of the vision transformers that they come from, and resize them.
        window: side in cells of the windows that attend on their own; 0 for none. The published detectors have
            14, those with the large network 28; or a pattern that repeats over the blocks, ``(24, 24, 0)`` for DINO.
        merge: one map of all branches at the finest grid, and one head on it; else a head for each branch.
            ``"dense"`` merges by 3x3 convolutions, as the published detectors do.
        pyramid: give four maps of the merged one, at a quarter, half, once and twice ``patch`` pixels a cell
            (`FeaturePyramid`); the head, if any, sees the last.
        with_cls: class tokens; separate heads need them.
        read: ``"first"``: separate heads see the first patch, as the published classifiers do; ``"mean"``: the mean of
            the map. (Merged maps are always averaged.)
        deform_heads, points, ratio, cffn_ratio, attention, exchange_norms, project: of the exchanges (`Injector`,
            `InteractionUnit`).
        drop_path_rate: of the last blocks, one number or one a branch.
        interaction_drop_path_rate: of the exchanges.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, S, S) -> (B, num_classes), where S is the largest side, as built or as in use. One map, at ``patch``
    pixels a cell: the merged one, or that of all branches side by side, resized to the finest grid. `branch_maps`
    gives each.

    The dial: `use` runs the same weights at other sides, with fewer branches or no exchanges; ``budget`` shrinks all
    sides so that about that share of the tokens is left.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (768, 384, 192),
        depths: Sequence[int] = (12, 12, 12),
        heads: Sequence[int] = (12, 6, 3),
        sides: Sequence[int] = (128, 192, 368),
        img_size: int | None = None,
        ranges: Sequence[Sequence[Sequence[int]]] | None = None,
        scaled: Sequence[bool] | bool = True,
        patch: int = 16,
        mlp_ratio: float = 4.0,
        kinds: Sequence[str] | str = "vit",
        gelu: str = "exact",
        tables: Sequence[int] | int = 0,
        window: Sequence[int] | int = 0,
        merge: bool | str = False,
        pyramid: bool = False,
        with_cls: bool = True,
        read: str = "first",
        deform_heads: int = 16,
        points: int = 4,
        ratio: float = 0.5,
        cffn_ratio: float = 0.25,
        attention: str = "deform",
        exchange_norms: bool = True,
        project: bool = True,
        drop_path_rate: float | Sequence[float] = 0.0,
        interaction_drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        count = len(widths)
        scales, blocks = _each("scaled", scaled, count), _each("kinds", kinds, count)
        drops, grids = _each("drop_path_rate", drop_path_rate, count), _each("tables", tables, count)
        windows = (window,) if isinstance(window, int) else tuple(window)
        _check_branches(widths, depths, heads, sides, patch)
        sides = sides if img_size is None else _proportional(sides, img_size, patch)
        _check_rates(drops, grids)
        _check_output(merge, pyramid, patch, with_cls, read)
        strides = [patch // 4, patch // 2, patch, 2 * patch] if pyramid else [patch]
        maps = [widths[0] if merge else sum(widths)] * len(strides)
        super().__init__(maps, strides, least=1, **options)
        for info in self.feature_info:
            info["module"] = "fpn" if pyramid else "interactions"
        self.widths, self.sides, self.patch = tuple(widths), tuple(sides), patch
        self.merge, self.read = bool(merge), read
        self.ranges = even_ranges(depths, min(depths)) if ranges is None else _checked_ranges(depths, ranges)
        shared: dict[str, Any] = {"in_chans": self.in_chans, "with_cls": with_cls, "windows": windows, "gelu": gelu}
        own = zip(widths, depths, heads, sides, scales, drops, grids, blocks, strict=True)
        self.branches = nn.ModuleList(
            Branch(w, d, h, mlp_ratio, side=s, patch=patch, scaled=c, drop_path_rate=r, table=t, kind=k, **shared)
            for w, d, h, s, c, r, t, k in own
        )
        told: Exchange = {
            "heads": deform_heads,
            "points": points,
            "ratio": ratio,
            "cffn_ratio": cffn_ratio,
            "attention": attention,
            "drop_path": interaction_drop_path_rate,
            "norms": exchange_norms,
        }
        self.interactions = nn.ModuleList(
            nn.ModuleList(InteractionUnit(widths[i], widths[i + 1], project, **told) for i in range(count - 1))
            for _ in self.ranges[0]
        )
        if merge:
            self.merging = nn.ModuleList(merge_step(widths, i, dense=merge == "dense") for i in range(count))
            self.weights = nn.Parameter(torch.ones(count))
            self.norm = TokenNorm(widths[0], EPS)
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(w, EPS) for w in widths)
        self.fpn = FeaturePyramid(widths[0]) if pyramid else None
        self._sides, self._running, self._budget = tuple(sides), tuple(range(count)), 1.0
        self._exchanging = True
        self.reset_classifier(self.num_classes)

    def check(self, x: Tensor) -> None:
        """As `Backbone.check`; the size is that of the branch with the finest grid, as built or as in use."""
        super().check(x)
        side = max(self.sides)
        if not torch.compiler.is_compiling() and tuple(x.shape[2:]) not in ((side, side), (max(self._sides),) * 2):
            raise InputError(
                f"PIIP was built for {side} x {side} px, the side of its finest branch, not "
                f"{x.shape[3]} x {x.shape[2]}; build it with other sides or resize the picture"
            )

    # -- the dial

    @property
    def budget(self) -> float:
        """The share of the tokens that is spent, about; 1 after `use`'s own sides too."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)
        scale = self._budget**0.5
        self._sides = tuple(max(self.patch, round(s * scale / self.patch) * self.patch) for s in self.sides)

    def budgets(self) -> Sequence[float]:
        """Samples of the dial."""
        return (0.25, 0.5, 0.75, 1.0)

    def use(
        self, sides: Sequence[int] | None = None, branches: Sequence[int] | None = None, exchanges: bool = True
    ) -> None:
        """Run at other sides, or with some branches alone, from now on; None for what it was built with.

        Args:
            sides: of the pictures of each branch in pixels, multiples of the patch. Position tables are interpolated.
                Pictures may then come at the largest of these sides as well as at that it was built for.
            branches: numbers from 0; exchanges happen between neighbours that both run.
            exchanges: False leaves them out: the branches side by side.

        Raises:
            UsageError: no such sides or branches.
        """
        chosen = tuple(range(len(self.branches))) if branches is None else tuple(sorted(set(branches)))
        if not chosen or not all(0 <= i < len(self.branches) for i in chosen):
            raise UsageError(f"there are branches 0 to {len(self.branches) - 1}, not {branches}")
        wanted = self.sides if sides is None else tuple(sides)
        if len(wanted) != len(self.branches) or any(s < self.patch or s % self.patch for s in wanted):
            raise UsageError(f"{len(self.branches)} sides that are multiples of {self.patch} px are wanted: {wanted}")
        self._sides, self._running, self._budget = wanted, chosen, 1.0
        self._exchanging = exchanges
        if isinstance(self.head, SeparateHeads):
            self.head.running = chosen

    # -- the maps

    def _exchange(self, stage: int, *flat: Tensor | None) -> tuple[Tensor | None, ...]:
        """One range of blocks in every branch, then the exchanges, fine pair first. Tokens and class tokens in turn."""
        state = dict(zip(self._running, zip(flat[::2], flat[1::2], strict=True), strict=True))
        for i, (x, cls) in state.items():
            assert x is not None
            state[i] = self.branch(i).run(x, cls, *self.ranges[i][stage], self.grid(i))
        for i in reversed(range(len(self.branches) - 1)):
            if self._exchanging and i in state and i + 1 in state:
                (coarse, a), (fine, b) = state[i], state[i + 1]
                coarse, fine = self.unit(stage, i)(coarse, fine, (self.grid(i), self.grid(i + 1)))
                state[i], state[i + 1] = (coarse, a), (fine, b)
        return tuple(t for pair in state.values() for t in pair)

    def branch(self, i: int) -> Branch:
        """Branch ``i``, from 0 for the largest network."""
        found = self.branches[i]
        assert isinstance(found, Branch)
        return found

    def unit(self, stage: int, i: int) -> InteractionUnit:
        """The exchange between the branches ``i`` and ``i + 1`` behind a range of blocks."""
        units = self.interactions[stage]
        assert isinstance(units, nn.ModuleList)
        found = units[i]
        assert isinstance(found, InteractionUnit)
        return found

    def grid(self, i: int) -> tuple[int, int]:
        """Cells of branch ``i`` at its present side."""
        return (self._sides[i] // self.patch,) * 2

    def branch_maps(self, x: Tensor) -> list[Tensor]:
        """The map of each branch that runs, (B, C_i, h_i, w_i), the largest network's first."""
        self.check(x)
        flat: tuple[Tensor | None, ...] = ()
        for i in self._running:
            flat += self.branch(i).embed(_resized(x, (self._sides[i],) * 2))
        again = self.grad_checkpointing and self.training and torch.is_grad_enabled()
        for stage in range(len(self.interactions)):
            flat = (
                checkpoint(self._exchange, stage, *flat, use_reentrant=False) if again else self._exchange(stage, *flat)
            )
        pairs = zip(self._running, flat[::2], strict=True)
        return [t.mT.unflatten(2, self.grid(i)) for i, t in pairs if t is not None]

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """One map at the finest grid that runs, or the pyramid's four."""
        found = dict(zip(self._running, self.branch_maps(x), strict=True))
        grid = max([self.grid(i) for i in self._running])
        if self.merge:
            merged = [self.weights[i] * _resized(self.merging[i](m), grid) for i, m in found.items()]
            whole = torch.stack(merged).sum(0)
            yield from (whole,) if self.fpn is None else self.fpn(whole)
            return
        parts = []
        for i, width in enumerate(self.widths):
            if i not in found:
                parts.append(x.new_zeros(x.shape[0], width, *grid))
                continue
            normed = self.norms[i](found[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            parts.append(_resized(normed, grid))
        yield torch.cat(parts, 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """As `Backbone.forward_head`. The first cell of a resized map is the first token, unchanged."""
        if self.global_pool:
            x = x[:, :, 0, 0] if self.read == "first" and not self.merge else x.mean((2, 3))
        x = self.head_drop(x)
        return x if pre_logits else self.get_classifier()(x)

    def make_head(self, num_classes: int) -> nn.Module:
        """One classifier, or one for each branch."""
        return super().make_head(num_classes) if self.merge else SeparateHeads(self.widths, num_classes)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = None, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As `Backbone.prune_intermediate_layers`; all branches are needed for the one map."""
        taken = self.stage_numbers(indices)
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`: blocks of the same depth go together, exchanges behind them."""
        return {
            "stem": r"^branches\.\d+\.(cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^branches\.\d+\.blocks\.(\d+)", None), (r"^interactions\.(\d+)", None), (r"^", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Tables of positions and of biases, class tokens."""
        return {n for n, _ in self.named_parameters() if n.endswith(("pos_embed", "bias_table", "cls_token"))}


def _resized(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map on another grid, bilinear."""
    if tuple(x.shape[2:]) == grid:
        return x
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def even_ranges(depths: Sequence[int], count: int) -> Ranges:
    """The blocks (first, last) of every branch between ``count`` exchanges, as many in each range as can be."""
    edges = [[depth * i // count for i in range(count + 1)] for depth in depths]
    return tuple(tuple((e[i], e[i + 1] - 1) for i in range(count)) for e in edges)


def _checked_ranges(depths: Sequence[int], given: Sequence[Sequence[Sequence[int]]]) -> Ranges:
    """Ranges that were given.

    Raises:
        UsageError: another number of ranges in some branch, blocks twice or not at all.
    """
    if len(given) != len(depths) or len({len(ranges) for ranges in given}) != 1 or not given[0]:
        raise UsageError(f"every branch needs as many ranges of blocks: {[len(r) for r in given]}")
    for branch, (depth, ranges) in enumerate(zip(depths, given, strict=True)):
        blocks = [i for first, last in ranges for i in range(first, last + 1)]
        if blocks != list(range(depth)):
            raise UsageError(f"the ranges of branch {branch} take blocks {blocks}; it has 0 to {depth - 1}, each once")
    return tuple(tuple((int(r[0]), int(r[1])) for r in ranges) for ranges in given)


def _each(what: str, given: Sequence[Any] | str | float, count: int) -> list[Any]:
    """A value for every branch, of one for all or of one each.

    Raises:
        UsageError: another number of them.
    """
    made = [given] * count if isinstance(given, str | int | float) else list(given)
    if len(made) != count:
        raise UsageError(f"{what} has {len(made)} entries for {count} branches")
    return made


def _proportional(sides: Sequence[int], most: int, patch: int) -> list[int]:
    """Sides of which the largest is ``most``, the others in proportion.

    Raises:
        UsageError: a side that does not divide into patches.
    """
    if most < patch or most % patch:
        raise UsageError(f"img_size is a multiple of the patch, {patch} px, not {most}")
    return [max(patch, round(side * most / max(sides) / patch) * patch) for side in sides]


def _check_output(merge: bool | str, pyramid: bool, patch: int, with_cls: bool, read: str) -> None:
    if merge not in (False, True, "dense"):
        raise UsageError(f"merge is False, True or 'dense', not {merge!r}")
    if pyramid and (not merge or patch % 4):
        raise UsageError(f"a pyramid is made of the merged map, of patches that divide by 4: merge={merge}, {patch} px")
    if not merge and not with_cls:
        raise UsageError("separate heads go with class tokens: with_cls=True, or merge=True")
    if read not in ("first", "mean"):
        raise UsageError(f"read is 'first' or 'mean', not {read!r}")


def _check_rates(drops: Sequence[float], tables: Sequence[int]) -> None:
    if not all(0 <= rate < 1 for rate in drops):
        raise UsageError(f"drop_path_rate lies in [0, 1), not {tuple(drops)}")
    if any(side < 0 for side in tables):
        raise UsageError(f"tables are sides in cells, or 0, not {tuple(tables)}")


def _check_branches(
    widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], sides: Sequence[int], patch: int
) -> None:
    for what, given in {"depths": depths, "heads": heads, "sides": sides}.items():
        _each(what, given, len(widths))
    if not 2 <= len(widths) <= 4:
        raise UsageError(f"a pyramid has 2 to 4 branches, not {len(widths)}")
    if any(a < b for a, b in itertools.pairwise(widths)):
        raise UsageError(f"widths go from the largest network to the smallest, they never increase: {tuple(widths)}")
    for i, (width, count) in enumerate(zip(widths, heads, strict=True)):
        if min(width, count, depths[i]) < 1 or width % count:
            raise UsageError(f"widths[{i}] is {width}, it must divide by its {count} heads")
    if patch < 1 or any(side < patch or side % patch for side in sides):
        raise UsageError(f"sides are multiples of the patch, {patch} px, not {tuple(sides)}")
