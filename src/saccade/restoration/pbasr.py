"""PBaSR: two branches of one network, one for general pictures and one for blurred ones, melted into one of its size.

Qin et al., "A New Dataset and Framework for Real-World Blurred Images Super-Resolution", ECCV 2024, arXiv:2407.14880.

    pretrained --+-- general branch, general pictures --.   a little of the other's      general (1 - alpha)
                 |                                       X  weights after each step  --  + blur alpha  --  one network
                 '-- blur branch, blurred pictures -----'

Sharpening is right for a sharp picture and wrong for intended blur (bokeh, motion); gradients of the two pull one
network apart. Each branch sees its own kind alone (cross disentanglement) and stays near the other by exchange (cross
fusion, `saccade.training.dual_branch`), so that their weights can be averaged. The result costs what the network costs.

The network of the published files that is here is RRDBNet (Wang et al., "ESRGAN", arXiv:1809.00219):

    (B,3,h,w) -- conv --+-- 23 x RRDB -- conv --(+)-- [nearest x2 -- conv -- lrelu] x 2 -- conv -- lrelu -- conv
                        |________________________|                                               (B,3,4h,4w)

Smaller scales put a pixel unshuffle in front. This module was written from the paper and published vectors alone.
"""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict, fit, read_recipe, read_state, save
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.io.files import check_target
from saccade.nn.pictures import check_picture
from saccade.registry import entry, load_function, rebuild, recognise, register
from saccade.training.dual_branch import check_alpha, check_branches, merge_into, merged, similarity

__all__ = ["RRDBNet", "from_official", "from_rrdbnet", "load_branch", "merge_files", "mirrored"]

SHUFFLES = {4: 1, 2: 2, 1: 4}  # scale: factor of the pixel unshuffle in front
BRANCHES = {"general": "general_branch.", "blur": "defocus_branch."}


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each seeing all before it; residual scaled by 0.2: (B, c, h, w) -> the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        for i in range(5):
            outputs = width if i == 4 else growth
            setattr(self, f"conv{i + 1}", nn.Conv2d(width + i * growth, outputs, 3, padding=1))
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight)
            with torch.no_grad():
                layer.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for layer in list(self.children())[:4]:
            seen = torch.cat((seen, F.leaky_relu(layer(seen), 0.2)), 1)
        return x + 0.2 * self.get_submodule("conv5")(seen)


class RRDB(nn.Module):
    """Three dense blocks inside a residual scaled by 0.2."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """Residual-in-residual dense network (ESRGAN, section 3.1) as Real-ESRGAN and PBaSR use it.

    Args:
        scale: 4, or 2 and 1 with a pixel unshuffle in front.
        blocks, width, growth: RRDBs, their channels, those that each dense convolution adds.
        bilinear: add the bilinear enlargement of the input to the output. Ours, for short trainings: without it a small
            network stays below bicubic for thousands of steps. The published networks have none.

    Shape: (B, 3, h, w) RGB in [0, 1] -> (B, 3, scale*h, scale*w); not clamped. At x2 and x1 any size: sides that are no
        multiples of the unshuffle are continued by their last pixels and cut again.

    It compiles with free height and width, and exports to `torch.export` and ONNX with them (at x2 and x1 the multiples
    of the unshuffle).

    Raises:
        UsageError: another scale, no channels or blocks.
        InputError: an empty batch; in evaluation mode, what is no RGB picture in [0, 1] (values are looked at on the
            CPU).
    """

    colour = "rgb"
    in_channels = 3

    def __init__(
        self, scale: int = 4, blocks: int = 23, width: int = 64, growth: int = 32, bilinear: bool = False
    ) -> None:
        super().__init__()
        if scale not in SHUFFLES:
            raise UsageError(f"RRDBNet enlarges by 4, 2 or 1, not by {scale}")
        if min(blocks, width, growth) < 1:
            raise UsageError(f"RRDBNet needs blocks and channels, not {blocks}, {width} and {growth}")
        self.scale, self.shuffle, self.bilinear = scale, SHUFFLES[scale], bilinear
        self.conv_first = nn.Conv2d(3 * self.shuffle**2, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)))
        self.conv_body, self.conv_up1, self.conv_up2, self.conv_hr = (
            nn.Conv2d(width, width, 3, padding=1) for _ in range(4)
        )
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place."""
        inner = 1 + 15 * len(self.body) + 1 + 2  # 3x3 convolutions at the input's size, and those of the tail
        return inner * self.shuffle + self.shuffle

    @property
    def kernels(self) -> float:
        """MACs per input pixel."""
        macs = 0.0
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Conv2d):
                size = {"conv_up1": 4, "conv_up2": 16, "conv_hr": 16, "conv_last": 16}.get(name, 1)
                macs += layer.weight.numel() * size / self.shuffle**2
        return macs

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "RRDBNet")
        elif not len(picture):
            raise InputError(f"RRDBNet takes pictures, not an empty batch {tuple(picture.shape)}")
        height, width = picture.shape[-2:]
        x = picture
        if self.shuffle > 1:
            # not -n % shuffle: of a size that is left free torch's compiler cannot take the remainder of a negative
            below, beside = ((n + self.shuffle - 1) // self.shuffle * self.shuffle - n for n in (height, width))
            x = F.pad(x, (0, beside, 0, below), mode="replicate")
            x = F.pixel_unshuffle(x, self.shuffle)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))  # (B, width, h, w)
        for layer in (self.conv_up1, self.conv_up2):
            x = F.leaky_relu(layer(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        y = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))  # (B, 3, 4h, 4w)
        y = y[..., : height * self.scale, : width * self.scale]
        if self.bilinear:
            y = y + F.interpolate(picture, scale_factor=float(self.scale), mode="bilinear", align_corners=False)
        return y


def mirrored(network: RRDBNet, picture: Tensor) -> Tensor:
    """Run as the official tests do: bottom and right continued by mirroring, edge row included, then cut again.

    Shape: (B, 3, h, w) -> (B, 3, scale*h, scale*w). What is added makes both sides multiples of 8 // scale * 8 and is
    never nothing.

    Raises:
        InputError: a picture smaller than what is to be added.
    """
    step = 8 // network.scale * 8
    height, width = picture.shape[-2:]
    down, right = (n // step * step + step - n for n in (height, width))
    if down > height or right > width:
        raise InputError(f"a picture of {width} x {height} px is too small to be mirrored to {right} x {down} px more")
    x = torch.cat((picture, picture.flip(2)[:, :, :down]), 2)
    x = torch.cat((x, x.flip(3)[..., :right]), 3)
    made: Tensor = network(x)
    return made[..., : height * network.scale, : width * network.scale]


@register("rrdbnet", system="pbasr", task="super-resolution", scales=(4, 2, 1), colour="rgb", grid=4)
def rrdbnet(scale: int = 4, blocks: int = 23, width: int = 64, growth: int = 32, bilinear: bool = False) -> RRDBNet:
    """RRDBNet of the published size: 16,697,987 parameters at x4."""
    return RRDBNet(scale, blocks, width, growth, bilinear)


# -- published files


@recognise("pbasr", keys=("conv_first.weight", "body.*.rdb1.conv1.weight", "conv_body.weight", "conv_last.weight"))
def from_rrdbnet(state: StateDict) -> Recipe | None:
    """An RRDBNet by the names of BasicSR: Real-ESRGAN, BSRGAN and one branch of PBaSR."""
    first, growing = state["conv_first.weight"], state.get("body.0.rdb1.conv1.weight")
    if growing is None or first.ndim != 4 or growing.ndim != 4:
        return None
    numbers = {int(m[1]) for key in state if (m := re.match(r"body\.(\d+)\.", key))}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(f"this RRDBNet lacks a block: it has {len(numbers)} of {max(numbers) + 1}")
    scales = {3 * shuffle**2: scale for scale, shuffle in SHUFFLES.items()}
    if first.shape[1] not in scales:
        raise CheckpointError(f"this RRDBNet takes {first.shape[1]} channels; 3 (x4), 12 (x2) and 48 (x1) are known")
    options = {"blocks": len(numbers), "width": int(first.shape[0]), "growth": int(growing.shape[0])}
    return Recipe("rrdbnet", {"scale": scales[first.shape[1]], **options}, dict(state))


@recognise("pbasr", keys=("general_branch.*", "defocus_branch.*"))
def from_official(state: StateDict, alpha: float = 0.5, branch: str = "combined") -> Recipe | None:
    """A PBaSR file with both branches: their mixture, recomputed, for a stored ``combinet`` may be stale.

    Args:
        alpha: weight of the blur branch in the mixture; 0.5 as published.
        branch: ``combined``, or one of the two alone, ``general`` or ``blur``.

    Raises:
        CheckpointError: the branches are no RRDBNets, or do not go together.
        UsageError: another branch.
    """
    if branch not in ("combined", *BRANCHES):
        raise UsageError(f"a PBaSR file has the branches general, blur and combined, not {branch!r}")
    parts = {name: _branch(state, prefix) for name, prefix in BRANCHES.items()}
    if "conv_first.weight" not in parts["general"] or "body.0.rdb1.conv1.weight" not in parts["general"]:
        raise CheckpointError("this PBaSR file holds branches of another network than RRDBNet, which alone is here")
    recipe = from_rrdbnet(parts["general" if branch == "combined" else branch])
    if recipe is None:
        return None
    chosen = merged(parts["general"], parts["blur"], alpha) if branch == "combined" else parts[branch]
    return Recipe(recipe.model, recipe.options, chosen)


@recognise("pbasr", keys=("combinet.conv_first.weight",))
def from_combined(state: StateDict) -> Recipe | None:
    """A file with the mixture alone."""
    return (
        None if any(key.startswith("general_branch.") for key in state) else from_rrdbnet(_branch(state, "combinet."))
    )


def _branch(state: StateDict, prefix: str) -> StateDict:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_branch(path: str | Path, branch: str = "combined", alpha: float = 0.5) -> RRDBNet:
    """One network of a PBaSR file, by choice; `saccade.load` takes the published mixture.

    Args:
        path: a file with both branches, with the mixture alone (``combinet``), or of one RRDBNet. The last two hold one
            network, which is their ``combined`` at ``alpha`` 0.5.
        branch: ``general``, ``blur`` or ``combined``.
        alpha: weight of the blur branch in ``combined``, in [0, 1]; costs nothing at run time.

    Raises:
        CheckpointError: an unreadable file, one of another network, or one that does not hold that choice.
        UsageError: another branch, or an alpha outside [0, 1].
    """
    check_alpha(alpha)
    source = Path(path).name
    state, _ = read_state(path)
    if all(_branch(state, prefix) for prefix in BRANCHES.values()):
        recipe = from_official(state, alpha, branch)
    elif (branch, alpha) == ("combined", 0.5):
        recipe = read_recipe(path)
    else:
        raise CheckpointError(f"{source} holds one network, not two branches to choose from or to mix")
    if recipe is None or recipe.model != "rrdbnet":
        raise CheckpointError(f"{source} holds no RRDBNet")
    model = rebuild(recipe.model, recipe.options, source)
    fit(model, recipe.state, source)
    assert isinstance(model, RRDBNet)
    return model.eval()


def merge_files(
    general: str | Path,
    blur: str | Path | None,
    target: str | Path,
    alpha: float = 0.5,
    *,
    buffers: str = "general",
    extrapolate: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Interpolate two files of weights of one network.

    Args:
        general: file of weights, ours or published; or a PBaSR file with both branches.
        blur: the other file; None for a PBaSR file with both branches.
        target: safetensors file to write.
        alpha: weight of the second: 0 gives the first, 1 the second.
        buffers: ``general`` takes statistics of norms from the first, ``average`` interpolates them.
        extrapolate: allow ``alpha`` outside [0, 1].
        overwrite: replace ``target``.

    Returns:
        ``model``, ``options``, ``alpha``, ``parameters``, and ``similarity``: mean cosine of the two files' tensors.
        Near 1 the mixture works; two trainings from different starts come out near 0, and their mixture knows nothing.

    Raises:
        CheckpointError: unreadable files, values that are not finite, or files of different networks; the first
            difference is named.
        InputError: the target exists.
        UsageError: an alpha outside [0, 1] that was not asked for, or another word for ``buffers``.
    """
    check_alpha(alpha, extrapolate)
    check_target(Path(target), overwrite)
    first, other = _both(Path(general)) if blur is None else (read_recipe(general), None)
    model = rebuild(first.model, first.options, Path(general).name)
    fit(model, first.state, Path(general).name)
    first.state.clear()  # of the two files and the result, two are in memory at a time
    other = read_recipe(str(blur)) if other is None else other
    names = [(recipe.model, _settled(recipe)) for recipe in (first, other)]
    if names[0] != names[1]:
        told = " and ".join(f"{n} {o or ''}".strip() for n, o in names)
        raise CheckpointError(f"{Path(general).name} and {Path(str(blur)).name} hold different networks: {told}")
    mixture = model.state_dict()
    check_branches(mixture, other.state)
    learnt = {key for key, _ in model.named_parameters()}
    alike = similarity({k: mixture[k] for k in learnt}, {k: other.state[k] for k in learnt})
    if not math.isfinite(alike):
        raise CheckpointError("one of the two networks holds values that are not finite: they cannot be merged")
    merge_into(mixture, other.state, alpha, parameters=learnt, buffers=buffers)
    other.state.clear()
    save(model, Path(target), merged=f"alpha {alpha:g}")
    return {
        "model": first.model,
        "options": dict(first.options),
        "alpha": alpha,
        "parameters": sum(p.numel() for p in model.parameters()),
        "similarity": alike,
    }


def _both(path: Path) -> tuple[Recipe, Recipe]:
    """The two branches of one file."""
    state, _ = read_state(path)
    if not all(_branch(state, prefix) for prefix in BRANCHES.values()):
        raise CheckpointError(f"{path.name} does not hold two branches; give a second file to merge with")
    made = [from_official(state, branch=name) for name in BRANCHES]
    if made[0] is None or made[1] is None:
        raise CheckpointError(f"{path.name} holds branches of another network than RRDBNet, which alone is here")
    return made[0], made[1]


def _settled(recipe: Recipe) -> dict[str, Any]:
    """A model's options with the defaults of those that were not said: published files tell all, ours what differs."""
    found = entry(recipe.model)
    known = inspect.signature(load_function(found.module, found.function)).parameters
    said = {name: p.default for name, p in known.items() if p.default is not p.empty} | dict(recipe.options)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
