"""FIT's encoder as a classifier of pictures: sub-images are the groups, patches the tokens.

    picture -- patches, norm, place -- local -- global -- local ... -- the map of the tokens -- norm -- pool -- head

The paper uses the encoder for detection and names no classifier, so the sizes here are ours; its parts are the
encoder's. With sub-images of one size the tokens of a group stay as many on larger pictures and local layers grow in
proportion to the pixels; latents are as many for each sub-image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from saccade.backbones.fit.network import Interleaved
from saccade.errors import UsageError
from saccade.nn.backbone import Backbone, made
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.windows import join_windows, split_windows
from saccade.registry import register

__all__ = ["FITClassifier"]


class Patches(nn.Module):
    """Patches as tokens with a norm: (B, in_chans, H, W) -> (B, width, H / patch, W / patch)."""

    def __init__(self, inputs: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, width, patch, patch), ChannelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.proj(x))
        return out


class Groups(Interleaved):
    """The blocks on a map, whose windows of ``side`` x ``side`` tokens are the groups: (B, C, h, w) -> the same."""

    def __init__(self, *args: Any, side: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        windows = split_windows(x.permute(0, 2, 3, 1), self.side)  # (B, rows, columns, n, C)
        tokens = windows.flatten(1, 2) + self.x_table
        tokens, _ = self.interleave(tokens, self.start(len(x)))
        return join_windows(tokens.unflatten(1, windows.shape[1:3]), self.side).permute(0, 3, 1, 2)


class FITClassifier(Backbone):
    """A classifier whose tokens see far through a few latents of each sub-image.

    Args:
        widths: of tokens and of latents.
        depths: layers, local and global ones by turns; the last ones are local, ``(2, 8, 2)`` is ``"(2)8(2)"``.
        heads: of the local and of the global layers.
        latents: of each sub-image, m.
        patch: side of a patch, pixels.
        subimage: side of a sub-image, pixels; a multiple of ``patch``.
        img_size: side of the pictures; a multiple of ``subimage``.
        mlp_ratio: inner over outer width of feed-forwards.
        drop_path_rate: chance of a branch to be left out in training.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, S, S) -> (B, num_classes); one map, at the stride of the patches.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (192, 384),
        depths: Sequence[int] = (2, 8, 2),
        heads: Sequence[int] = (6, 6),
        latents: int = 2,
        patch: int = 8,
        subimage: int = 32,
        img_size: int = 224,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> None:
        _check(widths, depths, heads, patch, subimage, img_size)
        super().__init__(widths[:1], (patch,), least=1, size=img_size, **options)
        self.subimage = subimage
        side, groups = subimage // patch, (img_size // subimage) ** 2
        self.stem = Patches(self.in_chans, widths[0], patch)
        layers = "".join(f"({n})" if i % 2 == 0 else str(n) for i, n in enumerate(depths))
        self.stages = nn.ModuleList(
            [
                Groups(
                    *(layers, groups * side**2, groups, latents, *widths, *heads, mlp_ratio, drop_path_rate),
                    side=side,
                )
            ]
        )
        self.norm = ChannelNorm(widths[0])
        self.reset_classifier(self.num_classes)

    @property
    def blocks(self) -> Groups:
        """All layers between the patches and the norm."""
        found = self.stages[0]
        assert isinstance(found, Groups)
        return found

    @property
    def budget(self) -> float:
        """The share of the latents of each sub-image that is used."""
        return self.blocks.budget

    @budget.setter
    def budget(self, value: float) -> None:
        self.blocks.budget = value

    def budgets(self) -> Sequence[float]:
        """One setting for each number of latents a sub-image."""
        return self.blocks.budgets()

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map of the tokens, (B, C, S / patch, S / patch)."""
        self.check(x)
        yield self.blocks(self.stem(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `Backbone.set_grad_checkpointing`, layer by layer."""
        super().set_grad_checkpointing(enable)
        self.blocks.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`: the blocks of local and global layers are the layers."""
        return {"stem": r"^stem|.*_table$", "blocks": r"^stages\.0\.\w+\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """The tables of places and latents, beside vectors."""
        return {name for name, _ in self.named_parameters() if name.endswith("_table")}


def _check(
    widths: Sequence[int], depths: Sequence[int], heads: Sequence[int], patch: int, subimage: int, img_size: int
) -> None:
    if len(widths) != 2 or len(heads) != 2:
        raise UsageError(f"widths and heads are of tokens and of latents, two numbers, not {widths} and {heads}")
    if len(depths) % 2 == 0 or min(depths) < 1:
        raise UsageError(
            f"depths are local and global layers by turns, at least 1 each, local ones first and last, not {depths}"
        )
    if min(patch, subimage, img_size) < 1 or subimage % patch or img_size % subimage:
        raise UsageError(
            f"pictures of img_size={img_size} px do not divide into sub-images of {subimage}, and these into patches "
            f"of {patch}"
        )


VARIANTS: dict[str, dict[str, Any]] = {"fit_classifier_s": {}}


@register(
    "fit_classifier",
    system="fit",
    task="classification",
    size=224,
    fixed_size=True,
    side_option="img_size",
    variants={
        "fit_classifier_s": "FIT's encoder as a classifier (sizes ours): 16.7 M parameters, 3.0 G MACs at 224 px"
    },
)
def fit_classifier(variant: str = "", /, **options: Any) -> nn.Module:
    """Any classifier of FIT's encoder; options as `FITClassifier`."""
    return made(FITClassifier, options, VARIANTS, variant)
