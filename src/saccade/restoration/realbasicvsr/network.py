"""RealBasicVSR: clean the frames first, then propagate through time.

Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, arXiv:2111.12704.

    clip (n,t,3,h,w) -- cleaning, 1 to 3 passes --+-- SPyNet, both ways -- flows (n,t-1,2,h,w)
                                                  |-- backward branch, last frame to first --+
                                                  |-- forward branch, first frame to last ---+-- tail --> (n,t,3,4h,4w)

Cleaning is a plain image network; its change is added and it runs again while the change is large (section 3.1).
Propagation then carries what it has seen in clean frames from frame to frame, along the flow, in both directions.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.registry import recognise, register
from saccade.restoration.realbasicvsr.cleaning import MOST_PASSES, Cleaning
from saccade.restoration.realbasicvsr.propagation import TAIL_HALO, Branch, Tail
from saccade.restoration.realbasicvsr.spynet import SPyNet

__all__ = ["Flows", "RealBasicVSR", "check_clip", "flow_of", "from_official"]

#: (backward, forward): from each frame to its next, and from each next frame back; both (n, t-1, 2, h, w)
Flows = tuple[Tensor, Tensor]
ONE_PASS = 255.0


def check_clip(clip: Tensor) -> None:
    """Refuse what is no batch of clips.

    Raises:
        InputError: no float tensor (n, t, 3, h, w) with t >= 1 and values in [0, 1].
    """
    if clip.ndim != 5 or clip.shape[2] != 3 or 0 in clip.shape:
        raise InputError(
            f"RealBasicVSR takes clips (n, t, 3, h, w) of at least one frame, or pictures (n, 3, h, w); "
            f"not {tuple(clip.shape)}"
        )
    check_picture(clip.flatten(0, 1), 3, "RealBasicVSR")


class RealBasicVSR(nn.Module):
    """Real-world video super-resolution by 4 (figure 5).

    The dial is the number of cleaning passes: ``budget`` is the share of the MACs of three passes, and caps them;
    within the cap the threshold decides from the clip itself.

    Args:
        width: channels, C.
        blocks: residual blocks a direction.
        cleaning_blocks: residual blocks of the cleaning module; None leaves it out (plain BasicVSR).
        high_width: channels at the output's size; 64 in the paper, whatever ``width`` is.
        threshold: cleaning stops when the mean absolute change is below it, in units of 1/255; 255, as in training and
            in the published inference configuration, always stops after one pass.
        flow_levels: of SPyNet.

    Shape: clips (n, t, 3, h, w) in [0, 1] -> (n, t, 3, 4h, 4w), or pictures (n, 3, h, w) -> (n, 3, 4h, 4w), each a
    clip of its own with one cleaning pass (tiles of a picture must not decide differently); not clamped. RGB. The
    flow's coarsest level sees 32 pixels as one: frames below 64 pixels a side work, but large motion in them is lost.

    Attributes:
        last_changes: mean absolute change of every cleaning pass of the last call, in units of 1/255.

    Raises:
        UsageError: no channels or levels, or a negative number of blocks.
        InputError: what is no clip in [0, 1].
    """

    colour = "rgb"
    in_channels = 3
    scale = 4
    halo = None  # of clips: flow follows motion as far as it goes, and features run through the whole clip

    def __init__(
        self,
        width: int = 64,
        blocks: int = 20,
        cleaning_blocks: int | None = 20,
        high_width: int = 64,
        threshold: float = ONE_PASS,
        flow_levels: int = 6,
    ) -> None:
        super().__init__()
        if width < 1 or high_width < 1 or blocks < 0 or (cleaning_blocks or 0) < 0 or flow_levels < 1:
            raise UsageError("RealBasicVSR needs channels, at least one flow level and no negative number of blocks")
        self.width, self.threshold = width, threshold
        self.most_passes, self._budget = MOST_PASSES, 1.0
        self.last_changes: list[float] = []
        self.cleaning = None if cleaning_blocks is None else Cleaning(width, cleaning_blocks)
        self.flow = SPyNet(flow_levels)
        self.backward_branch, self.forward_branch = Branch(width, blocks), Branch(width, blocks)
        self.tail = Tail(width, high_width)

    # -- the dial

    def macs(self, passes: int = 1) -> float:
        """MACs a pixel of a frame with so many cleaning passes, both flows included (their padding is not)."""
        cleaning = 0 if self.cleaning is None else self.cleaning.kernels
        flow = 2 * self.flow.kernels * sum(0.25**i for i in range(len(self.flow.levels)))
        return passes * cleaning + flow + 2 * self.forward_branch.stack.kernels + self.tail.kernels

    @property
    def budget(self) -> float:
        """The share of the full cost (three cleaning passes) that was asked for; one pass is always made."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)
        limit = self._budget * self.macs(MOST_PASSES) * (1 + 1e-9)
        self.most_passes = max([1, *(p for p in range(1, MOST_PASSES + 1) if self.macs(p) <= limit)])

    def budgets(self) -> list[float]:
        """One setting for each number of passes."""
        if self.cleaning is None:
            return [1.0]
        return [self.macs(p) / self.macs(MOST_PASSES) for p in range(1, MOST_PASSES + 1)]

    # -- the steps

    def clean(self, clip: Tensor) -> Tensor:
        """Cleaned frames: (n, t, 3, h, w) -> same. In training mode one pass, else as the threshold asks."""
        if self.cleaning is None:
            self.last_changes = []
            return clip
        threshold = ONE_PASS if self.training else self.threshold
        cleaned, self.last_changes = self.cleaning.dynamic(clip, threshold, self.most_passes)
        return cleaned

    def flows(self, clip: Tensor) -> Flows:
        """Both flows of a clip of cleaned frames, (n, t, 3, h, w); each frame's pyramid is made once.

        The forward flows of a clip that equals its own mirror image in time (training clips do) are its backward
        flows in reverse.
        """
        n, t, _, h, w = clip.shape
        mirror = t > 1 and t % 2 == 0 and torch.equal(clip[:, : t // 2], clip[:, t // 2 :].flip(1))
        backward, forward = [], []
        before = self.flow.pyramid(clip[:, 0])
        for i in range(1, t):
            after = self.flow.pyramid(clip[:, i])
            backward.append(self.flow.between(before, after, (h, w)))
            if not mirror:
                forward.append(self.flow.between(after, before, (h, w)))
            before = after
        if not backward:
            none = clip.new_zeros(n, 0, 2, h, w)
            return none, none
        first = torch.stack(backward, 1)
        return first, first.flip(1) if mirror else torch.stack(forward, 1)

    def propagate(self, clip: Tensor, flows: Flows) -> Tensor:
        """Both branches and the tail.

        Args:
            clip: cleaned, (n, t, 3, h, w).
            flows: see `Flows`.

        Returns:
            (n, t, 3, 4h, 4w).
        """
        n, t, _, h, w = clip.shape
        to_next, to_last = flows
        behind: list[Tensor] = []
        features = None
        for i in range(t - 1, -1, -1):
            features = self.backward_branch(clip[:, i], features, to_next[:, i] if i < t - 1 else None)
            behind.append(features)
        grad = torch.is_grad_enabled()
        made = [] if grad else [clip.new_empty(n, t, 3, 4 * h, 4 * w)]
        features = None
        for i in range(t):
            features = self.forward_branch(clip[:, i], features, to_last[:, i - 1] if i > 0 else None)
            frame = self.tail(clip[:, i], behind.pop(), features)
            if grad:
                made.append(frame)
            else:
                made[0][:, i] = frame
        return torch.stack(made, 1) if grad else made[0]

    def forward(self, clip: Tensor, flows: Flows | None = None) -> Tensor:
        """Enlarge clips or pictures.

        Args:
            clip: (n, t, 3, h, w), or (n, 3, h, w) for pictures.
            flows: known flows; by default SPyNet finds them.
        """
        if clip.ndim == 4:
            return self.pictures(clip)
        return self.cleaned_and_enlarged(clip, flows)[1]

    def cleaned_and_enlarged(self, clip: Tensor, flows: Flows | None = None) -> tuple[Tensor, Tensor]:
        """What training compares: the cleaned clip (n, t, 3, h, w), and what `forward` makes of it."""
        check_clip(clip)
        _check_flows(clip, flows)
        cleaned = self.clean(clip)
        return cleaned, self.propagate(cleaned, self.flows(cleaned) if flows is None else flows)

    def pictures(self, pictures: Tensor) -> Tensor:
        """Enlarge single pictures: one cleaning pass, nothing to propagate; (n, 3, h, w) -> (n, 3, 4h, 4w)."""
        check_clip(pictures[:, None])
        cleaned = pictures if self.cleaning is None else pictures + self.cleaning(pictures)
        backward, forward = (b(cleaned, None, None) for b in (self.backward_branch, self.forward_branch))
        made: Tensor = self.tail(cleaned, backward, forward)
        return made

    @property
    def picture_halo(self) -> int:
        """Input pixels that an output pixel of `pictures` sees beyond its own place."""
        cleaning = 0 if self.cleaning is None else 2 * len(self.cleaning.body.blocks) + 2
        return cleaning + 2 * len(self.forward_branch.stack.blocks) + 1 + TAIL_HALO


def _check_flows(clip: Tensor, flows: Flows | None) -> None:
    n, t, _, h, w = clip.shape
    if flows is not None and any(f.shape != (n, t - 1, 2, h, w) for f in flows):
        raise InputError(f"a clip {tuple(clip.shape)} has two flows ({n}, {t - 1}, 2, {h}, {w})")


@register("realbasicvsr", system="realbasicvsr", task="video-super-resolution", scales=(4,), colour="rgb", clip=True)
def realbasicvsr(
    scale: int = 4,
    width: int = 64,
    blocks: int = 20,
    cleaning_blocks: int | None = 20,
    high_width: int = 64,
    threshold: float = 5.0,
    flow_levels: int = 6,
) -> RealBasicVSR:
    """The published network: 6.29 M parameters. The threshold is that of the released tests, 5."""
    return RealBasicVSR(width, blocks, cleaning_blocks, high_width, threshold, flow_levels)


@register(
    "realbasicvsr_tiny", system="realbasicvsr", task="video-super-resolution", scales=(4,), colour="rgb", clip=True
)
def realbasicvsr_tiny(
    scale: int = 4, width: int = 16, blocks: int = 3, cleaning_blocks: int | None = 2, threshold: float = 5.0
) -> RealBasicVSR:
    """A small relative for tests and for training on a CPU; ours, not in the paper."""
    return RealBasicVSR(width, blocks, cleaning_blocks, width, threshold)


_NAMES = (
    (r"image_cleaning\.0\.main\.0\.", "cleaning.body.first."),
    (r"image_cleaning\.0\.main\.2\.(\d+)\.", r"cleaning.body.blocks.\1."),
    (r"image_cleaning\.1\.", "cleaning.last."),
    (r"basicvsr\.spynet\.basic_module\.(\d+)\.basic_module\.(\d+)\.conv\.", r"flow.levels.\1.convs.\2."),
    (r"basicvsr\.spynet\.(mean|std)$", r"flow.\1"),
    (r"basicvsr\.(backward|forward)_resblocks\.main\.0\.", r"\1_branch.stack.first."),
    (r"basicvsr\.(backward|forward)_resblocks\.main\.2\.(\d+)\.", r"\1_branch.stack.blocks.\2."),
    (r"basicvsr\.fusion\.", "tail.fusion."),
    (r"basicvsr\.upsample([12])\.upsample_conv\.", r"tail.enlarge\1."),
    (r"basicvsr\.conv_hr\.", "tail.high."),
    (r"basicvsr\.conv_last\.", "tail.last."),
)


def _generator(state: StateDict) -> StateDict:
    """The generator's entries: the averaged ones where there are such, else those that were trained, else all."""
    for prefix in ("generator_ema.", "generator."):
        chosen = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if any(k.startswith("basicvsr.") for k in chosen):
            return chosen
    return state


_FLOW = re.compile(
    r"(?:^|\.)(?:basic_module\.(\d+)\.basic_module\.(\d+)\.conv|levels\.(\d+)\.convs\.(\d+))\.(weight|bias)$"
)


def flow_of(state: StateDict) -> StateDict:
    """SPyNet's entries under our names, of a file with or without a network around it; published names or ours."""
    found = {}
    for name, value in _generator(state).items():
        if m := _FLOW.search(name):
            found[f"levels.{m[1] or m[3]}.convs.{m[2] or m[4]}.{m[5]}"] = value
    return found


def _count(state: StateDict, pattern: str) -> int:
    found = [int(m[1]) for k in state if (m := re.fullmatch(pattern, k))]
    return max(found, default=-1) + 1


@recognise(
    "realbasicvsr",
    keys=(
        "*basicvsr.spynet.basic_module.0.basic_module.0.conv.weight",
        "*basicvsr.backward_resblocks.main.0.weight",
        "*basicvsr.upsample2.upsample_conv.weight",
    ),
)
def from_official(state: StateDict) -> Recipe | None:
    """The published names (MMEditing, MMagic), with or without generator prefixes; everything is read from shapes."""
    told: StateDict = {}
    for name, value in _generator(state).items():
        if name == "step_counter":
            continue
        for pattern, own in _NAMES:
            renamed, times = re.subn(f"^{pattern}", own, name)
            if times:
                told[renamed] = value
                break
        else:
            return None
    cleaning = "cleaning.last.weight" in told
    options: dict[str, Any] = {
        "scale": 4,
        "width": int(told["tail.fusion.weight"].shape[0]),
        "blocks": _count(told, r"backward_branch\.stack\.blocks\.(\d+)\.conv1\.weight"),
        "cleaning_blocks": _count(told, r"cleaning\.body\.blocks\.(\d+)\.conv1\.weight") if cleaning else None,
        "high_width": int(told["tail.high.weight"].shape[0]),
        "flow_levels": _count(told, r"flow\.levels\.(\d+)\.convs\.0\.weight"),
    }
    return Recipe("realbasicvsr", options, told)
