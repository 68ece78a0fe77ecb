"""SESR: super-resolution trained wide and linear, run as a plain stack of small convolutions.

Bhardwaj et al., "Collapsible Linear Blocks for Super-Efficient Super Resolution", MLSys 2022, arXiv:2103.09404.

    luma x (B,1,h,w) - 0.5 -- block 5x5, f --+-- [block 3x3, f -- PReLU] x m --(+)-- block 5x5, r^2 --(+ x)-- shuffle
                                             |___________ long residual ________|        (B,r^2,h,w)      (B,1,rh,rw)

A collapsible linear block is a k x k convolution to p channels followed by a 1x1 convolution, with nothing between:
one k x k kernel in disguise. It trains better than that kernel trained directly, and costs no more, since every step
first makes the small kernel (section 3.2) and convolves once. Where input and output widths agree the kernel also
holds the short residual, as a one at its centre tap.
"""

from __future__ import annotations

import re
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.pictures import check_picture
from saccade.registry import recognise, register

__all__ = ["SESR", "AnchoredSESR", "LinearBlock", "collapse_pair", "from_aimet", "from_official"]

Bias = Literal["none", "kernel", "output"]
SCALES = (2, 3, 4)


def collapse_pair(expand: Tensor, project: Tensor) -> Tensor:
    """The kernel that a k x k convolution followed by a 1x1 convolution amounts to (algorithm 1).

    Args:
        expand: (p, i, k, k), the wide convolution.
        project: (o, p), the 1x1 convolution.

    Returns:
        (o, i, k, k).
    """
    return (project @ expand.flatten(1)).unflatten(1, expand.shape[1:])


def identity_kernel(channels: int, size: int, like: Tensor) -> Tensor:
    """(channels, channels, size, size): the convolution that changes nothing, i.e. the short residual (algorithm 2)."""
    one = torch.eye(channels, dtype=like.dtype, device=like.device)[:, :, None, None]
    return F.pad(one, (size // 2,) * 4)


class LinearBlock(nn.Module):
    """Collapsible linear block (section 3.1), in its trained or its collapsed form.

    Args:
        inputs, outputs: channels; where they agree the block carries a short residual.
        size: side of the kernel, odd.
        expansion: width p between the two convolutions, or None for the collapsed form, which holds one kernel.
        bias: ``"none"`` (the published parameter counts, our default); ``"kernel"``: the biases of the pair are folded
            into the kernel, as the official code does when it collapses; ``"output"``: they act as ordinary biases, as
            in the official code's expanded mode.

    Shape: (B, inputs, h, w) -> (B, outputs, h, w), zero padding.

    Raises:
        UsageError: an even or non-positive kernel size, or no channels.
    """

    def __init__(self, inputs: int, outputs: int, size: int, expansion: int | None, bias: Bias = "none") -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise UsageError(f"a collapsible block needs an odd kernel size, not {size}")
        if min(inputs, outputs) < 1 or (expansion is not None and expansion < 1):
            raise UsageError(f"a collapsible block needs channels, not {inputs}, {outputs} and {expansion} inside")
        self.inputs, self.outputs, self.size, self.expansion, self.bias = inputs, outputs, size, expansion, bias
        self.residual = inputs == outputs
        if expansion is None:
            self.kernel = nn.Parameter(torch.empty(outputs, inputs, size, size))
            nn.init.xavier_uniform_(self.kernel)
            if bias == "output":
                self.offset = nn.Parameter(torch.zeros(outputs))
        else:
            self.expand = nn.Parameter(torch.empty(expansion, inputs, size, size))
            self.project = nn.Parameter(torch.empty(outputs, expansion))
            nn.init.xavier_uniform_(self.expand)
            nn.init.xavier_uniform_(self.project)
            if bias != "none":
                self.expand_bias = nn.Parameter(torch.zeros(expansion))
                self.project_bias = nn.Parameter(torch.zeros(outputs))

    def collapsed(self) -> tuple[Tensor, Tensor | None]:
        """The one kernel (outputs, inputs, size, size), residual included, and the bias (outputs,) if any."""
        if self.expansion is None:
            return self.kernel, getattr(self, "offset", None)
        kernel, offset = collapse_pair(self.expand, self.project), None
        if self.bias != "none":
            offset = self.project @ self.expand_bias + self.project_bias
            if self.bias == "kernel":
                kernel, offset = kernel + offset[:, None, None, None], None
        if self.residual:
            kernel = kernel + identity_kernel(self.inputs, self.size, kernel)
        return kernel, offset

    def forward(self, x: Tensor) -> Tensor:
        kernel, offset = self.collapsed()
        return F.conv2d(x, kernel, offset, padding=self.size // 2)

    def forward_expanded(self, x: Tensor) -> Tensor:
        """The same function, the two convolutions run one after the other: the slow truth of `forward`.

        Raises:
            UsageError: the block is collapsed.
        """
        if self.expansion is None:
            raise UsageError("a collapsed block has no expanded form to run")
        if self.bias == "kernel":
            raise UsageError("kernel biases exist in the collapsed form only")
        hidden = F.conv2d(x, self.expand, getattr(self, "expand_bias", None), padding=self.size // 2)
        y = F.conv2d(hidden, self.project[:, :, None, None], getattr(self, "project_bias", None))
        return y + x if self.residual else y

    @torch.no_grad()
    def set_kernel(self, kernel: Tensor, seed: int = 0) -> None:
        """Make the block compute ``kernel`` exactly; an expanded one gets a random pair whose product it is.

        The rows of the 1x1 convolution are made orthonormal, so the pair is well conditioned for fine-tuning.
        """
        if self.expansion is None:
            self.kernel.copy_(kernel)
            return
        if self.expansion < self.outputs:
            raise UsageError(f"expansion {self.expansion} is below the {self.outputs} outputs: no exact pair exists")
        if self.residual:
            kernel = kernel - identity_kernel(self.inputs, self.size, kernel)
        random = torch.randn(self.expansion, self.outputs, generator=torch.Generator().manual_seed(seed)).to(kernel)
        self.project.copy_(torch.linalg.qr(random).Q.T)
        self.expand.copy_((self.project.T @ kernel.flatten(1)).unflatten(1, kernel.shape[1:]))


def _name(made: nn.Module, like: nn.Module, changed: dict[str, Any]) -> None:
    """Carry name and options of a registered network over to another form of it; None takes an option out."""
    if hasattr(like, "saccade_name"):
        options = {**cast(dict[str, Any], like.saccade_options), **changed}
        made.saccade_name = like.saccade_name
        made.saccade_options = {k: v for k, v in options.items() if v is not None}  # type: ignore[assignment]


class SESR(nn.Module):
    """Super-efficient super-resolution on luma (figure 2).

    Args:
        blocks: inner 3x3 blocks, m.
        width: channels, f.
        scale: enlargement: 2 or 4 in the paper, 3 is our extension.
        expansion: width p of the linear blocks for training; None builds the collapsed network that is run.
        bias: see `LinearBlock`.

    Shape: (B, 1, h, w) in [0, 1] -> (B, 1, scale*h, scale*w); clamped to [0, 1] in evaluation mode only.

    Raises:
        UsageError: another scale, no width, or a negative number of blocks.
        InputError: in evaluation mode, what is no luma picture in [0, 1] (values are looked at on the CPU).
    """

    colour = "luma"
    in_channels = 1

    def __init__(
        self, blocks: int, width: int = 16, scale: int = 2, expansion: int | None = None, bias: Bias = "none"
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise UsageError(f"SESR enlarges by 2, 3 or 4, not by {scale}")
        if blocks < 0 or width < 1:
            raise UsageError(f"SESR needs at least one channel and no negative depth, not {width} and {blocks}")
        self.scale, self.width, self.expansion = scale, width, expansion
        self.first = LinearBlock(1, width, 5, expansion, bias)
        self.blocks = nn.ModuleList(LinearBlock(width, width, 3, expansion, bias) for _ in range(blocks))
        self.slopes = nn.ParameterList(nn.Parameter(torch.full((width,), 0.25)) for _ in range(blocks))
        self.last = LinearBlock(width, scale * scale, 5, expansion, bias)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start with first kernels that sum to zero, so that features are edges, not brightness.

        Nothing in the network has a bias, so a PReLU bends where its channel is zero. With Xavier kernels every
        channel follows local brightness: all bend at mid-grey, few inside a crop, and training lingers near the best
        linear filter. Ours; not in the paper. M5 x2, one seed: 36.18 dB on Set5 after 1,250 steps against 35.49
        without, the same 36.73 after 4,750.
        """
        kernel = self.first.kernel if self.expansion is None else self.first.expand
        kernel.sub_(kernel.mean((2, 3), keepdim=True))

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place: 2 + m + 2."""
        return 4 + len(self.blocks)

    @property
    def kernels(self) -> int:
        """Parameters of the collapsed kernels alone: the paper's count, equal to the MACs per input pixel."""
        w, b = self.width, len(self.blocks)
        return 25 * w + 9 * w * w * b + 25 * w * self.scale**2

    def forward(self, luma: Tensor) -> Tensor:
        if not self.training:
            check_picture(luma, 1, "SESR")
        first = self.first(luma - 0.5)  # (B, f, h, w)
        x = first
        for block, slope in zip(self.blocks, self.slopes, strict=True):
            x = F.prelu(block(x), slope)
        x = self.last(x + first) + luma  # (B, r^2, h, w)
        y = F.pixel_shuffle(x, self.scale)
        return y if self.training else y.clamp(0, 1)

    def linear_blocks(self) -> list[LinearBlock]:
        """First, inner and last block, in order."""
        return [self.first, *cast("list[LinearBlock]", self.blocks), self.last]

    @torch.no_grad()
    def _as(self, expansion: int | None, bias: Bias) -> SESR:
        like = self.first.collapsed()[0]
        made = SESR(len(self.blocks), self.width, self.scale, expansion, bias).to(like.device, like.dtype)
        for i, (old, new) in enumerate(zip(self.linear_blocks(), made.linear_blocks(), strict=True)):
            kernel, offset = old.collapsed()
            new.set_kernel(kernel, seed=i)
            if offset is not None:
                (new.offset if expansion is None else new.project_bias).copy_(offset)
        for old_slope, new_slope in zip(self.slopes, made.slopes, strict=True):
            new_slope.copy_(old_slope)
        _name(made, self, {"expansion": expansion, "bias": None if bias == "none" else bias})
        return made.train(self.training)

    def collapse(self) -> SESR:
        """The network to run: one kernel a block, the same function. A collapsed network returns itself."""
        if self.expansion is None:
            return self
        return self._as(None, "output" if self.first.bias == "output" else "none")

    def expand(self, expansion: int) -> SESR:
        """The network to fine-tune: every kernel as an exact pair of width ``expansion``.

        Raises:
            UsageError: ``expansion`` is too small to hold the kernels.
        """
        return self._as(expansion, "output" if self.first.bias == "output" else "none")


class AnchoredSESR(nn.Module):
    """SESR as the AIMET model zoo reads it: RGB, ReLU also behind the first block, biases, nothing subtracted.

        picture (B,3,h,w) -- block 5x5 -- ReLU --+-- [block 3x3 -- ReLU] x m --(+)-- block 5x5 --(+ x)-- shuffle
                                                 |_________________________|     (B,3r^2,h,w)       (B,3,rh,rw)

    Args:
        blocks, width, scale, expansion: as in `SESR`; the zoo has 16 or 32 channels and expansion 256.

    Shape: (B, 3, h, w) in [0, 1] -> (B, 3, scale*h, scale*w); clamped in evaluation mode only (the zoo does not).

    Raises:
        UsageError: another scale, no width, a negative number of blocks, or a width of 3*scale^2, where the last block
            would hold a residual.
        InputError: in evaluation mode, what is no RGB picture in [0, 1].
    """

    colour = "rgb"
    in_channels = 3

    def __init__(self, blocks: int = 5, width: int = 16, scale: int = 2, expansion: int | None = None) -> None:
        super().__init__()
        if scale not in SCALES:
            raise UsageError(f"SESR enlarges by 2, 3 or 4, not by {scale}")
        if blocks < 0 or width < 1:
            raise UsageError(f"SESR needs at least one channel and no negative depth, not {width} and {blocks}")
        if width == 3 * scale**2:
            raise UsageError(f"this form of SESR cannot be {width} wide at x{scale}")
        self.scale, self.width, self.expansion = scale, width, expansion
        self.first = LinearBlock(3, width, 5, expansion, "output")
        self.blocks = nn.ModuleList(LinearBlock(width, width, 3, expansion, "output") for _ in range(blocks))
        self.last = LinearBlock(width, 3 * scale * scale, 5, expansion, "output")

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place: 2 + m + 2."""
        return 4 + len(self.blocks)

    @property
    def kernels(self) -> int:
        """Parameters of the collapsed kernels alone: the MACs per input pixel."""
        return sum(block.inputs * block.outputs * block.size**2 for block in self.linear_blocks())

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "SESR on RGB")
        first = F.relu(self.first(picture))  # (B, f, h, w)
        x = first
        for block in self.blocks:
            x = F.relu(block(x))
        x = self.last(x + first) + picture.repeat_interleave(self.scale**2, 1)  # (B, 3 r^2, h, w)
        y = F.pixel_shuffle(x, self.scale)
        return y if self.training else y.clamp(0, 1)

    def linear_blocks(self) -> list[LinearBlock]:
        """First, inner and last block, in order."""
        return [self.first, *cast("list[LinearBlock]", self.blocks), self.last]

    @torch.no_grad()
    def collapse(self) -> AnchoredSESR:
        """The network to run: one kernel a block, the same function. A collapsed network returns itself."""
        if self.expansion is None:
            return self
        kernel = self.first.collapsed()[0]
        made = AnchoredSESR(len(self.blocks), self.width, self.scale).to(kernel.device, kernel.dtype)
        for old, new in zip(self.linear_blocks(), made.linear_blocks(), strict=True):
            kernel, offset = old.collapsed()
            new.set_kernel(kernel)
            new.offset.copy_(cast(Tensor, offset))
        _name(made, self, {"expansion": None})
        return made.train(self.training)


#: name: (inner blocks m, width f, expansion p in training), table 1 of the paper
VARIANTS: dict[str, tuple[int, int, int]] = {
    "sesr_m3": (3, 16, 256),
    "sesr_m5": (5, 16, 256),
    "sesr_m7": (7, 16, 256),
    "sesr_m11": (11, 16, 64),
    "sesr_xl": (11, 32, 64),
}


def _make(name: str, scale: int, expansion: int | Literal["paper"] | None, bias: Bias) -> SESR:
    blocks, width, paper = VARIANTS[name]
    return SESR(blocks, width, scale, paper if expansion == "paper" else expansion, bias)


@register("sesr_m3", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr_m3(scale: int = 2, expansion: int | Literal["paper"] | None = None, bias: Bias = "none") -> SESR:
    """SESR-M3: 8,912 parameters at x2."""
    return _make("sesr_m3", scale, expansion, bias)


@register("sesr_m5", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr_m5(scale: int = 2, expansion: int | Literal["paper"] | None = None, bias: Bias = "none") -> SESR:
    """SESR-M5: 13,520 parameters at x2; the library's default for pictures."""
    return _make("sesr_m5", scale, expansion, bias)


@register("sesr_m7", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr_m7(scale: int = 2, expansion: int | Literal["paper"] | None = None, bias: Bias = "none") -> SESR:
    """SESR-M7: 18,128 parameters at x2."""
    return _make("sesr_m7", scale, expansion, bias)


@register("sesr_m11", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr_m11(scale: int = 2, expansion: int | Literal["paper"] | None = None, bias: Bias = "none") -> SESR:
    """SESR-M11: 27,344 parameters at x2."""
    return _make("sesr_m11", scale, expansion, bias)


@register("sesr_xl", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr_xl(scale: int = 2, expansion: int | Literal["paper"] | None = None, bias: Bias = "none") -> SESR:
    """SESR-XL: 105,376 parameters at x2."""
    return _make("sesr_xl", scale, expansion, bias)


@register("sesr", system="sesr", task="super-resolution", scales=(2, 3, 4), training={"expansion": "paper"})
def sesr(
    scale: int = 2,
    blocks: int = 5,
    width: int = 16,
    expansion: int | Literal["paper"] | None = None,
    bias: Bias = "none",
) -> SESR:
    """SESR of any depth and width: what published files hold that are none of the named variants."""
    return SESR(blocks, width, scale, 256 if expansion == "paper" else expansion, bias)


@register("sesr_rgb", system="sesr", task="super-resolution", scales=(2, 3, 4), colour="rgb")
def sesr_rgb(
    scale: int = 2, blocks: int = 5, width: int = 16, expansion: int | Literal["paper"] | None = None
) -> AnchoredSESR:
    """SESR on RGB, as in the AIMET model zoo."""
    return AnchoredSESR(blocks, width, scale, 256 if expansion == "paper" else expansion)


# -- published files

_OFFICIAL_BLOCK = re.compile(r"(input_block|output_block|linear_blocks\.(\d+))\.(expand|project)\.(kernel|bias)$")


def _count(found: set[int], what: str) -> int:
    """How many there are of things numbered from 0; a gap means that the file is incomplete."""
    if found != set(range(len(found))):
        lacking = min(set(range(max(found))) - found)
        raise CheckpointError(f"this SESR file lacks {what} {lacking}")
    return len(found)


def _need(state: StateDict, key: str, rank: int) -> Tensor:
    tensor = state.get(key)
    if tensor is None or tensor.ndim != rank:
        wrong = "lacks it" if tensor is None else f"holds it as {tuple(tensor.shape)}"
        raise CheckpointError(f"a SESR file needs {key} with {rank} dimensions; this one {wrong}")
    return tensor.float()


def _scale_of(outputs: int, colours: int) -> int:
    for scale in SCALES:
        if outputs == colours * scale**2:
            return scale
    raise CheckpointError(f"this SESR file ends in {outputs} channels: not a scale of 2, 3 or 4")


def twice_by_two(scale: int) -> list[int]:
    """Which channel of two depth-to-space steps by 2 is each channel of one pixel shuffle by 4; identity below 4.

    The official x4 network writes y[4h+2a+c, 4w+2b+d] from channel 4(2a+b) + 2c+d; one shuffle by 4 takes it from
    channel 4(2a+c) + 2b+d.
    """
    if scale != 4:
        return list(range(scale**2))
    return [4 * (2 * a + b) + 2 * c + d for a in (0, 1) for c in (0, 1) for b in (0, 1) for d in (0, 1)]


@recognise("sesr", keys=("input_block.expand.kernel", "input_block.project.kernel", "output_block.project.kernel"))
def from_official(state: StateDict, bias: Bias = "kernel") -> Recipe | None:
    """The official TensorFlow code's weights, exported under its attribute names.

    Kernels are (kh, kw, in, out), slopes ``activations.<i>.alpha`` (1, 1, f); none of them means ReLU (the quantised
    networks). What the biases of a pair mean depends on how the network was trained, which no file tells:

    Args:
        bias: ``"kernel"`` for collapsed training, the official default: the biases went through the collapse and
            shift the kernel; ``"output"`` for expanded training: they are biases.

    Raises:
        CheckpointError: blocks or tensors are missing, or shapes contradict each other.
    """
    blocks = _count({int(m[2]) for k in state if (m := _OFFICIAL_BLOCK.match(k)) and m[2]}, "linear block")
    ours = {"input_block": "first", "output_block": "last"} | {
        f"linear_blocks.{i}": f"blocks.{i}" for i in range(blocks)
    }
    biased = any(k.endswith(".expand.bias") for k in state)
    made: StateDict = {}
    for theirs, name in ours.items():
        made[f"{name}.expand"] = _need(state, f"{theirs}.expand.kernel", 4).permute(3, 2, 0, 1)
        made[f"{name}.project"] = _need(state, f"{theirs}.project.kernel", 4)[0, 0].T
        if biased:
            made[f"{name}.expand_bias"] = _need(state, f"{theirs}.expand.bias", 1)
            made[f"{name}.project_bias"] = _need(state, f"{theirs}.project.bias", 1)
    expansion, _, *_ = made["first.expand"].shape
    width, scale = made["first.project"].shape[0], _scale_of(made["last.project"].shape[0], 1)
    for i in range(blocks):
        alpha = state.get(f"activations.{i}.alpha")
        made[f"slopes.{i}"] = torch.zeros(width) if alpha is None else alpha.float().flatten()
    order = twice_by_two(scale)
    for key in [k for k in made if k.startswith("last.project")]:
        made[key] = made[key][order]
    if width == scale**2:
        # Our last block, as any block of equal widths, adds the identity. Theirs adds it too, before the channels
        # were put in our order; expanded, theirs adds nothing. The pair takes up the difference.
        wanted = torch.eye(width)[order] if bias != "output" else torch.zeros(width, width)
        if expansion < width:
            raise CheckpointError(f"this SESR file's last block is {expansion} wide inside, {width} outside")
        shift = torch.linalg.pinv(made["last.project"].double()) @ (wanted - torch.eye(width)).double()
        made["last.expand"] = made["last.expand"] + identity_kernel(1, 5, shift) * shift[:, :, None, None]
        made["last.expand"] = made["last.expand"].float()
    options = {"scale": scale, "expansion": expansion, "bias": bias if biased else "none"}
    return Recipe(*_named(blocks, width, options), {k: v.contiguous() for k, v in made.items()})


def _named(blocks: int, width: int, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a variant and its options, or of the general network."""
    for name, (m, f, _) in VARIANTS.items():
        if (m, f) == (blocks, width):
            return name, options
    return "sesr", {**options, "blocks": blocks, "width": width}


@recognise("sesr", keys=("conv_first.conv_expand.weight", "conv_last.conv_expand.weight", "residual_block.*"))
def from_aimet(state: StateDict) -> Recipe | None:
    """A file of the AIMET model zoo, expanded or collapsed.

    The quantised releases hold the collapsed network; their quantiser's own tensors, if any, are reported as not
    expected.

    Raises:
        CheckpointError: blocks or tensors are missing.
    """
    blocks = _count({int(k.split(".")[1]) for k in state if re.match(r"residual_block\.\d+\.", k)}, "residual block")
    ours = {"conv_first": "first", "conv_last": "last"}
    ours |= {f"residual_block.{i}": f"blocks.{i}" for i in range(blocks)}
    collapsed = not any(".conv_squeeze." in k for k in state)
    made: StateDict = {}
    for theirs, name in ours.items():
        kernel = _need(state, f"{theirs}.conv_expand.weight", 4)
        if collapsed:
            made[f"{name}.kernel"], made[f"{name}.offset"] = kernel, _need(state, f"{theirs}.conv_expand.bias", 1)
            continue
        made[f"{name}.expand"], made[f"{name}.expand_bias"] = kernel, torch.zeros(len(kernel))
        made[f"{name}.project"] = _need(state, f"{theirs}.conv_squeeze.weight", 4)[:, :, 0, 0]
        made[f"{name}.project_bias"] = _need(state, f"{theirs}.conv_squeeze.bias", 1)
    outer = "kernel" if collapsed else "project"
    options: dict[str, Any] = {
        "scale": _scale_of(len(made[f"last.{outer}"]), 3),
        "blocks": blocks,
        "width": len(made[f"first.{outer}"]),
    }
    if not collapsed:
        options["expansion"] = len(made["first.expand"])
    known = re.compile(
        r"(anchor\.net|(conv_first|conv_last|residual_block\.\d+)\.(conv_expand|conv_squeeze))\.(weight|bias)$"
    )
    unknown = {k: v for k, v in state.items() if not known.match(k)}
    return Recipe("sesr_rgb", options, {**{k: v.contiguous() for k, v in made.items()}, **unknown})
