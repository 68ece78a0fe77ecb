"""Training of RealBasicVSR on footage: first for fidelity, then against a discriminator.

    footage -- excerpts, run to and fro, sharpened, degraded (`data.clips`) --> low, high
    phase 0   Charbonnier(made, sharpened high) + Charbonnier(cleaned, sharpened high reduced by area)
    phase 1   the same + perceptual(made, sharpened high) + 0.05 * adversarial(made); a discriminator learns beside

Chan et al., "Investigating Tradeoffs in Real-World Video Super-Resolution", CVPR 2022, arXiv:2111.12704, section 3 and
the published configuration: Adam at constant rates, 300 000 steps at 1e-4, then 150 000 at 5e-5 and 1e-4 for the
discriminator, which sees single frames and compares with high frames that are not sharpened.
"""

from __future__ import annotations

import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import read_state
from saccade.data.clips import (
    DEGRADATIONS,
    ClipPairs,
    Footage,
    clip_degradation,
    footage,
    held_out_clips,
    sharpened,
)
from saccade.errors import CheckpointError, UsageError
from saccade.quality import psnr, quantise8
from saccade.quality.perceptual import PerceptualLoss
from saccade.restoration.realbasicvsr.network import RealBasicVSR, flow_of
from saccade.restoration.realbasicvsr.spynet import SPyNet
from saccade.training import trainer
from saccade.training.adversarial import Opponent

__all__ = ["Options", "charbonnier", "load_flow", "train"]

#: what each phase is, where the user says nothing
PHASES: tuple[dict[str, Any], ...] = (
    {"steps": 300_000, "rate": 1e-4, "batch": 2},
    {"steps": 150_000, "rate": 5e-5, "batch": 1},
)
ADVERSARIAL = 0.05  # weight of the discriminator's word
OWN_FLOW = 5_000  # steps that a SPyNet without weights waits before it learns, and at what share of the rate (BasicVSR)
FLOW_SHARE = 0.125
MEASURED = 15  # frames of each clip that is held out


def charbonnier(made: Tensor, wanted: Tensor, epsilon2: float = 1e-12) -> Tensor:
    """Mean of sqrt((a - b)^2 + epsilon^2): L1 with a gradient at 0 (BasicVSR, arXiv:2012.02181)."""
    return ((made - wanted).square() + epsilon2).sqrt().mean()


def load_flow(flow: SPyNet, path: str | Path) -> None:
    """Give a flow network the weights of a file: SPyNet as MMEditing publishes it, or a whole (Real)BasicVSR.

    Raises:
        CheckpointError: no such file, or no such flow network in it.
    """
    found, own = flow_of(read_state(path)[0]), flow.state_dict()
    wanted = {k: v for k, v in own.items() if k.startswith("levels.")}
    missing = [k for k, v in wanted.items() if k not in found or found[k].shape != v.shape]
    if missing:
        raise CheckpointError(f"{path} holds no SPyNet of {len(flow.levels)} levels: {missing[0]} is missing or other")
    flow.load_state_dict({**own, **{k: found[k] for k in wanted}})


@dataclass
class Options(trainer.Options):
    """What a run is.

    Args:
        data, validate: folders of clips (`data.clips.footage`); without ``validate`` every 16th clip is held out.
        patch: side of the low-resolution frames.
        phase: 0 for fidelity, 1 against a discriminator; 1 goes on from ``start``.
        frames: of the clips that the network sees. loaded: frames that are read for each.
        stay, still: see `ClipPairs`. Networks that never saw still clips can run away on them.
        degrade: what makes the low-resolution frames.
        loss: of output and cleaned frames, ``charbonnier`` (the paper) or ``l1`` (the published configuration).
        flow: file of SPyNet's weights.
        freeze_flow: steps before SPyNet learns; -1: it never does, as published.
        perceptual: file of torchvision's VGG-19, for phase 1; None leaves the perceptual loss out.
        discriminator_rate, discriminator_width: of the discriminator: learning rate, channels at the picture's size.
        workers: processes that read and degrade.
    """

    TASK: ClassVar[str] = "video-super-resolution"
    FIGURE: ClassVar[str] = "psnr_y_db"
    LOSSES: ClassVar[tuple[str, ...]] = ("charbonnier", "l1")
    FORWARDS: ClassVar[tuple[str, ...]] = ("cleaned_and_enlarged",)

    patch: int = 64
    batch: int = 2
    warmup: int = 0
    hold: float = 1.0
    loss: str = "charbonnier"
    validate_every: int = 5_000
    frames: int = 30
    loaded: int = 15
    stay: float = 0.0
    still: float = 0.25
    degrade: str = "second-order"
    flow: str | None = None
    freeze_flow: int = -1
    perceptual: str | None = None
    discriminator_rate: float = 1e-4
    discriminator_width: int = 64
    workers: int = 2

    def __post_init__(self) -> None:
        self._say: Callable[[str], None] = lambda line: None
        self._flow: SPyNet | None = None
        self._cleans = True
        self._opponent: Opponent | None = None
        self._kept: Any = None
        self._parts: defaultdict[str, list[float]] = defaultdict(list)

    @classmethod
    def of_phase(cls, phase: int, **given: Any) -> Options:
        """The published values of a phase with the user's own; None is the phase's.

        Raises:
            UsageError: no such phase.
        """
        if phase not in range(len(PHASES)):
            raise UsageError(f"--phase is 0 (fidelity) or 1 (against a discriminator), not {phase}")
        told = {**PHASES[phase], **{k: v for k, v in given.items() if v is not None}}
        known = any(told.get(name) for name in ("flow", "start"))
        return cls(**{"phase": phase, "freeze_flow": -1 if known else OWN_FLOW, **told})

    def check_values(self) -> None:
        super().check_values()
        if self.phase not in range(len(PHASES)):
            raise UsageError(f"--phase is 0 (fidelity) or 1 (against a discriminator), not {self.phase}")
        if self.phase == 1 and not self.start:
            raise UsageError("--phase 1 goes on from a network of phase 0: give it with --start")
        if self.perceptual and self.phase == 0:
            raise UsageError("--perceptual belongs to --phase 1; phase 0 is for fidelity alone")
        for path in (self.start, self.flow, self.perceptual):
            if path and not Path(path).is_file():
                raise CheckpointError(f"no file of weights at {path}")
        if self.degrade not in DEGRADATIONS:
            raise UsageError(f"--degrade is {' or '.join(DEGRADATIONS)}, not {self.degrade!r}")
        for name in ("frames", "loaded", "discriminator_width"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        for name in ("stay", "still"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"--{name} must lie in [0, 1), not {getattr(self, name)}")
        if not (math.isfinite(self.discriminator_rate) and self.discriminator_rate > 0):
            raise UsageError(f"--discriminator-rate must be a positive number, not {self.discriminator_rate}")
        if self.workers < 0 or self.freeze_flow < -1:
            raise UsageError("--workers must not be negative, nor --freeze-flow below -1")

    def notices(self) -> list[str]:
        """What the user should know before it starts."""
        told = []
        if self.phase == 1 and not self.perceptual:
            told.append("no --perceptual FILE (VGG-19): the losses are pixel, cleaning and adversarial alone")
        if not self.flow and not self.start:
            told.append(
                "no --flow FILE (SPyNet): the flow network starts at no motion"
                + (f" and learns from step {self.freeze_flow:,} on" if self.freeze_flow >= 0 else " and stays there")
            )
        return told

    # -- what the trainer asks for

    def split(self) -> tuple[Sequence[Footage], Sequence[Footage]]:
        clips = footage(self.data)
        held = footage(self.validate) if self.validate else clips[::16]
        return clips if self.validate else [c for c in clips if c not in held] or clips, held

    def examples(self, pictures: Sequence[Footage], model: nn.Module) -> ClipPairs:
        clips = ClipPairs(
            pictures,
            self.patch,
            frames=self.frames,
            loaded=self.loaded,
            degrade=clip_degradation(self.degrade, RealBasicVSR.scale),
            stay=self.stay,
            still=self.still,
            workers=self.workers,
        )
        if self.loaded < self.frames and not (Path(self.out) / "last.ckpt").exists():
            self._say(time_saved(clips, self.seed))
        return clips

    def measurer(self, pictures: Sequence[Footage], model: nn.Module) -> Callable[[nn.Module], float]:
        side = max(256, self.patch * RealBasicVSR.scale)
        pairs = held_out_clips(pictures, clip_degradation(self.degrade, RealBasicVSR.scale), frames=MEASURED, side=side)
        return lambda final: psnr_y(final, pairs)

    def prepare(self, model: nn.Module) -> None:
        flow = cast(RealBasicVSR, model).flow
        if self.flow:
            load_flow(flow, self.flow)
        else:
            with torch.no_grad():
                for level in flow.levels:  # no motion: what a random network says is worse
                    last = cast(nn.Conv2d, cast(nn.ModuleList, level.convs)[-1])
                    last.weight.zero_()
                    cast(Tensor, last.bias).zero_()
        if self.freeze_flow < 0:
            flow.requires_grad_(False)
        self._flow, self._cleans = flow, cast(RealBasicVSR, model).cleaning is not None

    def groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """SPyNet, where it learns, at an eighth of the rate, as in BasicVSR."""
        flow = {id(p) for p in cast(RealBasicVSR, model).flow.parameters()}
        rest = [p for p in model.parameters() if id(p) not in flow]
        learning = [p for p in model.parameters() if id(p) in flow and p.requires_grad]
        return [{"params": rest}] + ([{"params": learning, "share": FLOW_SHARE}] if learning else [])

    def before_update(self, step: int) -> None:
        if self._flow is not None and step < self.freeze_flow:
            for parameter in self._flow.parameters():
                parameter.grad = None

    def loss_function(self, model: Any) -> Callable[[Tensor, Tensor], Tensor]:
        distance = charbonnier if self.loss == "charbonnier" else F.l1_loss

        def loss(low: Tensor, high: Tensor) -> Tensor:
            cleaned, made = model.cleaned_and_enlarged(low)
            made, high = made.flatten(0, 1), high.flatten(0, 1)
            wanted = sharpened(high)
            told = {"pixel": distance(made, wanted)}
            if self._cleans:
                reduced = F.interpolate(wanted, scale_factor=1 / RealBasicVSR.scale, mode="area")
                told["cleaning"] = distance(cleaned.flatten(0, 1), reduced)
            if self._opponent is not None:
                told |= self._opponent.losses(made, wanted, high)
            for name, value in told.items():
                self._parts[name].append(float(value.detach()))
            return torch.stack(list(told.values())).sum()

        return loss

    # -- phase 1: what learns beside the network

    def set_up(self, fabric: Any, model: nn.Module) -> None:
        if self.phase == 0:
            return
        self._opponent = Opponent(
            fabric,
            width=self.discriminator_width,
            rate=self.discriminator_rate,
            seed=self.seed,
            weight=ADVERSARIAL,
            perceptual=PerceptualLoss.of_file(self.perceptual) if self.perceptual else None,
            kept=self._kept,
        )

    def after_update(self, step: int) -> None:
        if self._opponent is not None:
            for name, value in self._opponent.learn().items():
                self._parts[name].append(value)

    def state(self) -> Any:
        return "" if self._opponent is None else self._opponent.state()

    def restore(self, state: Any) -> None:
        self._kept = state

    def parts(self) -> dict[str, float]:
        """Mean of each part of the loss, and of both halves of the discriminator's."""
        told = {name: statistics.fmean(values) for name, values in self._parts.items()}
        self._parts.clear()
        return told


@torch.inference_mode()
def psnr_y(model: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over frames of the PSNR of luma in dB: 8-bit rounding, 4 pixels shaved from each border."""
    was, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[float] = []
    for low, high in pairs:
        made = quantise8(model(low.to(device))[0]).cpu()
        found += psnr(made, high[0], border=RealBasicVSR.scale, luma=True).clamp_max(100).tolist()
    model.train(was)
    return statistics.fmean(found)


def time_saved(clips: ClipPairs, seed: int) -> str:
    """What reading fewer frames than are shown saves of making a clip, measured on this footage, in words."""
    few, whole, degrading = clips.seconds(seed)
    return (
        f"processor time of a clip of {clips.frames} frames: {few:.2f} s to read {clips.loaded} of them, {whole:.2f} s "
        f"to read all, {degrading:.2f} s to degrade; {(whole - few) / (whole + degrading):.0%} saved"
    )


def train(options: Options, *, say: Callable[[str], None] = print) -> Path:
    """Train a network; see `trainer.train`. What is left out for want of a file is said first."""
    options.check()
    if os.environ.get("RANK", "0") == "0":  # torchrun's; one process speaks for all
        options._say = say
        for line in options.notices():
            say(line)
    return trainer.train(options, say=say)
