"""Serpent: restoration by scanning the picture at several scales, linear in the number of its pixels.

Shahabadi, Sepehri and Soltanolkotabi, "Serpent: Scalable and Efficient Image Restoration via Multi-scale Structured
State Space Models", arXiv:2403.17902. The authors' code could not be had: the operator SS2D is VMamba's
(arXiv:2401.10166, form "v0") and held to vectors of its code; the network around it is ours, after the paper's idea.

    picture (B,3,H,W) -- stem 3x3 -- blocks, C ------------------------- fuse -- blocks, C -- head 3x3 --(+ picture)
                                      down -- blocks, 2C ------- fuse -- blocks, 2C -- up
                                               down -- blocks, 4C, fuse -- blocks, 4C -- up
                                                        down -- blocks, 4C -- up

    block:  x + sum over scales p of  expand_p( SS2D( embed_p( norm x )))   H/p x W/p tokens each
            x + Linear( GELU( depthwise 3x3( Linear( norm x ))))

    SS2D:   [x, z] = Linear;  x = SiLU(depthwise 3x3 x)
            selective scan of x along the rows, the columns, and both backwards; the sum of the four, normed, times
            SiLU(z);  Linear

Every output sees the whole picture, and neither time nor memory grow faster than its pixels.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.checkpoint import Recipe, StateDict
from saccade.errors import CheckpointError, UsageError
from saccade.nn.pictures import check_picture
from saccade.nn.restormer import depthwise_rows, row_strips
from saccade.ops.selective_scan import Operands, scan_tokens
from saccade.registry import recognise, register

__all__ = ["SS2D", "VARIANTS", "Serpent", "SerpentBlock", "from_state"]

PIECE = 1 << 14  # tokens whose step sizes, B and C exist at once, near the processor; four times as many with gradients
LEVELS = 4


class SS2D(nn.Module):
    """Two-dimensional selective scan (VMamba, form "v0"): four directions, gated.

    Args:
        width: channels C.
        states: numbers of state a channel, N.
        ratio: inner channels E = int(ratio * C).

    Shape: (B, H, W, C) -> (B, H, W, C).

    Raises:
        UsageError: no channels or no states.
        CheckpointError: loaded decay rates that are not negative and finite: such a scan is unstable.
    """

    def __init__(self, width: int, states: int = 16, ratio: float = 2.0) -> None:
        super().__init__()
        inner, rank = int(ratio * width), math.ceil(width / 16)
        if inner < 1 or states < 1:
            raise UsageError(f"SS2D needs channels and states, not {inner} and {states}")
        self.inner, self.states, self.rank = inner, states, rank
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(4, rank + 2 * states, inner).uniform_(-1, 1) / inner**0.5)
        self.dt_projs_weight = nn.Parameter(torch.empty(4, inner, rank).uniform_(-1, 1) / rank**0.5)
        self.dt_projs_bias = nn.Parameter(_first_steps(4, inner))
        self.A_logs = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(4 * inner, 1))
        self.Ds = nn.Parameter(torch.ones(4 * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, width, bias=False)
        self.register_load_state_dict_pre_hook(_refuse_unstable)

    def forward(self, x: Tensor) -> Tensor:
        if _in_strips():
            return self._forward_in_strips(x)
        inside, gate = self.in_proj(x).chunk(2, -1)  # (B, H, W, E)
        inside = F.silu(_on_planes(self.conv2d, inside))
        return self.out_proj(self.out_norm(self.scan(_rows_and_columns(inside), inside.shape)) * F.silu(gate))

    def _forward_in_strips(self, x: Tensor) -> Tensor:
        """The same without gradients: of the inner maps only the tokens and what is summed exist whole."""
        batch, height, width, _ = x.shape
        into, gate = self.in_proj.weight.chunk(2)
        inside = x.new_empty(batch, 2, height, width, self.inner)
        row_bytes = batch * width * 2 * self.inner * x.element_size()
        for rows in row_strips(height, row_bytes, 1):
            hidden = F.linear(x[:, rows.low : rows.high], into).permute(0, 3, 1, 2)
            hidden = depthwise_rows(hidden, self.conv2d, (rows.top, rows.bottom), rows, height)
            inside[:, 0, rows.top : rows.bottom] = F.silu(hidden, inplace=True).permute(0, 2, 3, 1)
        inside[:, 1].view(batch, width, height, self.inner).copy_(inside[:, 0].transpose(1, 2))
        scanned = self.scan(inside.flatten(2, 3), inside[:, 0].shape)
        made = torch.empty_like(x)
        for rows in row_strips(height, row_bytes):
            now = slice(rows.top, rows.bottom)
            y = self.out_norm(scanned[:, now]).mul_(F.silu(F.linear(x[:, now], gate), inplace=True))
            made[:, now] = self.out_proj(y)
        return made

    def scan(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """The sum of the scans along rows and columns, each both ways.

        The ways back read the same tokens from their end. Step sizes, B and C are made for a piece of the sequence
        at a time and the state is carried on.

        Args:
            tokens: along the rows and along the columns, (B, 2, L, E).
            shape: (B, H, W, E), of the result.
        """
        kind = tokens.dtype
        tokens = tokens.float() if kind in (torch.float16, torch.bfloat16) else tokens
        D = self.Ds.to(tokens.dtype).view(2, 2, 1, self.inner).sum(0)  # each place is passed forwards and backwards
        y = tokens * D  # (B, 2, L, E)
        length = tokens.shape[2]
        piece = length if torch.compiler.is_compiling() else PIECE if _in_strips() else 4 * PIECE
        for way in (0, 1):
            state, starts = None, range(0, length, piece)
            for first in starts[:: -1 if way else 1]:
                now = slice(first, first + piece)
                made, state = self.scan_piece(tokens[:, :, now], way, state)
                y[:, :, now].add_(made)
        rows, columns = y.to(kind).unbind(1)
        rows, columns = rows.view(shape), columns.view(shape[0], shape[2], shape[1], shape[3]).transpose(1, 2)
        return rows.add_(columns) if _in_strips() else rows + columns

    def scan_piece(self, tokens: Tensor, way: int, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows and columns (B, 2, P, E) in one of the two ways, without the D term, and the state it leaves."""
        ks, batch = slice(2 * way, 2 * way + 2), tokens.shape[0]
        told = tokens @ self.x_proj_weight[ks].to(tokens.dtype).transpose(1, 2)  # (B, 2, P, R + 2N)
        dt, B, C = told.split((self.rank, self.states, self.states), -1)
        weight = self.dt_projs_weight[ks].to(tokens.dtype).repeat(batch, 1, 1)
        bias = self.dt_projs_bias[ks].to(tokens.dtype).repeat(batch, 1)[:, None]
        delta = torch.baddbmm(bias, dt.flatten(0, 1), weight.transpose(1, 2))  # (2B, P, E)
        operands = Operands(
            tokens.transpose(1, 2),
            delta.unflatten(0, (batch, 2)).transpose(1, 2),
            -self.A_logs.to(tokens.dtype).exp().view(4, self.inner, self.states)[ks],
            B.transpose(1, 2),
            C.transpose(1, 2),
        )
        y, state = scan_tokens(operands, softplus=True, reverse=bool(way), state=state)
        return y.transpose(1, 2), state

    def macs(self) -> int:
        """A token, as the ledger counts them: projections, depthwise convolution, four scans."""
        inner, width = self.inner, self.in_proj.in_features
        per_way = inner * (self.rank + 2 * self.states) + inner * self.rank + 4 * inner * self.states
        return 3 * width * inner + 9 * inner + 4 * per_way


def _first_steps(*shape: int) -> Tensor:
    """Biases whose softplus is log-uniform in [1e-3, 0.1]: channels start with memories from 10 to 1000 tokens."""
    steps = torch.exp(torch.empty(shape).uniform_(math.log(1e-3), math.log(0.1))).clamp(min=1e-4)
    return steps + torch.log(-torch.expm1(-steps))


def _refuse_unstable(module: nn.Module, state: StateDict, prefix: str, *_: Any) -> None:
    logs = state.get(f"{prefix}A_logs")
    if logs is not None and logs.is_floating_point() and not logs.is_meta:
        A = -torch.exp(logs.float())
        if not bool((torch.isfinite(A) & (A < 0)).all()):
            raise CheckpointError(f"{prefix}A_logs gives decay rates that are not negative and finite: unstable")


def _in_strips() -> bool:
    """Whether maps may be worked on strip by strip and in place: nobody will ask for gradients or for a graph."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _rows_and_columns(x: Tensor) -> Tensor:
    """The tokens of (B, H, W, E) in the order of its rows, and beside them in that of its columns: (B, 2, L, E)."""
    return torch.stack((x, x.transpose(1, 2).reshape(x.shape)), 1).flatten(2, 3)


def _on_planes(layer: nn.Module, x: Tensor) -> Tensor:
    """A convolution on (B, H, W, C): the permuted view is what PyTorch calls channels-last, so nothing is copied."""
    made: Tensor = layer(x.permute(0, 3, 1, 2))
    return made.permute(0, 2, 3, 1)


class SerpentBlock(nn.Module):
    """Multi-scale scan and a convolutional feed-forward, each a residual on its norm.

    Args:
        width: channels w.
        states, ratio: of every SS2D.
        scales: patch sizes p; scale 1 is the picture's own.

    Shape: (B, H, W, w) -> (B, H, W, w), H and W divisible by every scale.

    Attributes:
        active: indices of the scales that are summed.
        scan: class of the scans; a subclass may put its own in its place.
    """

    scan: type[SS2D] = SS2D

    def __init__(self, width: int, states: int, ratio: float, scales: Sequence[int]) -> None:
        super().__init__()
        self.width, self.scales, self.active = width, tuple(scales), tuple(range(len(scales)))
        self.norm1 = nn.LayerNorm(width)
        self.ssm = nn.ModuleList(self.scan(width, states, ratio) for _ in scales)
        self.embed = nn.ModuleList(self._embed(width, p) for p in scales)
        self.expand = nn.ModuleList(self._expand(width, p) for p in scales)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.dw = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    @staticmethod
    def _embed(width: int, p: int) -> nn.Module:
        if p == 1:
            return nn.Identity()
        return nn.Sequential(nn.Conv2d(width, width, p, p, groups=width), nn.Conv2d(width, width, 1))

    @staticmethod
    def _expand(width: int, p: int) -> nn.Module:
        if p == 1:
            return nn.Identity()
        return nn.Sequential(nn.Conv2d(width, width, 1), nn.ConvTranspose2d(width, width, p, p, groups=width))

    def forward(self, x: Tensor) -> Tensor:
        g = self.norm1(x)
        for k in self.active:
            x = self._add(k, x, self.ssm[k](_on_planes(self.embed[k], g)))
        if _in_strips():
            return self._feed_forward_in_strips(x)
        hidden = _on_planes(self.dw, self.fc1(self.norm2(x)))  # (B, H, W, 2w)
        return x + self.fc2(F.gelu(hidden))

    def _add(self, k: int, x: Tensor, y: Tensor) -> Tensor:
        """x + expand(y). A transposed convolution whose stride is its size gives each patch its own outer product."""
        p = self.scales[k]
        if p == 1:
            return x + y
        project, spread = cast(Any, self.expand[k])
        y = F.linear(y, project.weight.flatten(1), project.bias)[:, :, None, :, None]  # (B, H/p, 1, W/p, 1, w)
        patches = (x + spread.bias).unflatten(2, (-1, p)).unflatten(1, (-1, p))  # (B, H/p, p, W/p, p, w)
        return torch.addcmul(patches, y, spread.weight[:, 0].permute(1, 2, 0)[:, None]).view(x.shape)

    def _feed_forward_in_strips(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        made = torch.empty_like(x)
        for rows in row_strips(height, batch * width * 2 * channels * x.element_size(), 1):
            now = slice(rows.top, rows.bottom)
            hidden = self.fc1(self.norm2(x[:, rows.low : rows.high])).permute(0, 3, 1, 2)
            hidden = depthwise_rows(hidden, self.dw, (rows.top, rows.bottom), rows, height)
            made[:, now] = self.fc2(F.gelu(hidden).permute(0, 2, 3, 1)).add_(x[:, now])
        return made

    def macs(self, active: Sequence[int]) -> float:
        """A token of this level, with these scales."""
        width = self.width
        total = 4.0 * width * width + 18 * width
        for k in active:
            p = self.scales[k]
            total += cast(SS2D, self.ssm[k]).macs() / p**2
            total += 0 if p == 1 else 2 * (width + width * width / p**2)
        return total


class Down(nn.Module):
    """Half the size: each 2x2 as channels, normed, projected. (B, H, W, w) -> (B, H/2, W/2, outputs)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H/2, 2, W/2, 2, w)
        return self.reduction(self.norm(x.permute(0, 1, 3, 2, 4, 5).flatten(3)))


class Serpent(nn.Module):
    """U-shaped network of Serpent blocks for pictures of any size.

    The dial sums fewer scales a block: ``budgets()`` lists the share of the multiply-adds that each set of scales
    takes; a budget takes the dearest set within it, at least scale 1 alone. Blurred or small pictures are enlarged
    to their final size first (bicubic), where enlarging is wanted.

    Args:
        width: channels C of the first level; the four levels have C, 2C, 4C and 4C.
        blocks: of each level; the first three also on the way up.
        states, ratio: of SS2D.
        scales: patch sizes, ascending from 1.

    Shape: (B, 3, H, W) in [0, 1] -> (B, 3, H, W), not clamped. The untrained network is the identity. Sides that are
    no multiple of 8 * max(scales) are padded inside.

    It compiles (`torch.compile`) and exports (`torch.export`) at a fixed size; ONNX has no operator for the scan.

    Raises:
        UsageError: widths, depths or scales that make no network.
        InputError: in evaluation mode, what is no RGB picture in [0, 1].
    """

    colour = "rgb"
    in_channels = 3
    halo = None  # every output sees the whole picture
    block: type[SerpentBlock] = SerpentBlock

    def __init__(
        self,
        width: int = 48,
        blocks: Sequence[int] = (2, 2, 2, 4),
        states: int = 16,
        ratio: float = 2.0,
        scales: Sequence[int] = (1, 2, 4),
    ) -> None:
        super().__init__()
        if width < 1 or len(blocks) != LEVELS or min(blocks) < 1:
            raise UsageError(f"Serpent needs channels and {LEVELS} depths of at least 1, not {width} and {blocks}")
        if not scales or tuple(scales) != tuple(sorted(set(scales))) or scales[0] != 1:
            raise UsageError(f"Serpent's scales are to ascend from 1, not {tuple(scales)}")
        self.scales, self.multiple = tuple(scales), 8 * max(scales)
        widths = (width, 2 * width, 4 * width, 4 * width)

        def level(i: int) -> nn.ModuleList:
            return nn.ModuleList(self.block(widths[i], states, ratio, scales) for _ in range(blocks[i]))

        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.enc = nn.ModuleList(level(i) for i in range(3))
        self.down = nn.ModuleList(Down(widths[i], widths[i + 1]) for i in range(3))
        self.mid = level(3)
        self.up = nn.ModuleList(nn.Linear(widths[i + 1], 4 * widths[i], bias=False) for i in range(3))
        self.fuse = nn.ModuleList(nn.Linear(2 * widths[i], widths[i]) for i in range(3))
        self.dec = nn.ModuleList(level(i) for i in range(3))
        self.head = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self._budget = 1.0

    def forward(self, picture: Tensor) -> Tensor:
        if not self.training:
            check_picture(picture, 3, "Serpent")
        height, width = picture.shape[2:]
        padded = pad_to_multiple(picture, self.multiple)
        x = _on_planes(self.stem, padded.permute(0, 2, 3, 1))  # (B, H', W', C)
        skips = []
        for blocks, down in zip(self.enc, self.down, strict=True):
            x = _through(blocks, x)
            skips.append(x)
            x = down(x)
        x = _through(self.mid, x)
        for i in (2, 1, 0):
            x = F.pixel_shuffle(self.up[i](x).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            x = _through(self.dec[i], self.fuse[i](torch.cat((x, skips.pop()), -1)))
        y: Tensor = self.head(x.permute(0, 3, 1, 2)) + padded
        return y[..., :height, :width]

    # -- the dial

    @property
    def budget(self) -> float:
        """The share of the full cost that may be spent, in (0, 1]."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)
        within = [s for share, s in self._sets() if share <= self._budget + 1e-9] or [(0,)]
        for block in self._blocks():
            block.active = within[-1]

    def budgets(self) -> list[float]:
        """The shares of all sets of scales, ascending."""
        return [share for share, _ in self._sets()]

    def _sets(self) -> list[tuple[float, tuple[int, ...]]]:
        """(share of the full cost, indices of scales), ascending; scale 1 is always among them."""
        every = tuple(range(len(self.scales)))
        sets = [(0, *more) for n in range(len(every)) for more in itertools.combinations(every[1:], n)]
        full = self.macs_per_pixel(every)
        return sorted((self.macs_per_pixel(chosen) / full, chosen) for chosen in sets)

    def macs_per_pixel(self, active: Sequence[int]) -> float:
        """Multiply-adds a pixel of the padded picture, with these scales."""
        total = sum(p.numel() / 4**i for p, i in self._projections())
        levels = [*enumerate(self.enc), *enumerate(self.dec), (3, self.mid)]
        for i, blocks in levels:
            total += sum(block.macs(active) for block in cast("Iterable[SerpentBlock]", blocks)) / 4**i
        return total

    def _projections(self) -> Iterator[tuple[Tensor, int]]:
        """Weights outside of the blocks, each with the level that it works at."""
        yield from ((self.stem.weight, 0), (self.head.weight, 0))
        for i in range(3):
            down, up, fuse = (cast(Any, part)[i] for part in (self.down, self.up, self.fuse))
            yield from ((down.reduction.weight, i + 1), (up.weight, i + 1), (fuse.weight, i))

    def _blocks(self) -> list[SerpentBlock]:
        return [m for m in self.modules() if isinstance(m, SerpentBlock)]


def _through(blocks: Any, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) on the right and at the bottom: mirrored, or the edge repeated where a side is too short."""
    bottom, right = (-side % multiple for side in x.shape[2:])
    for pad, side in (((0, right, 0, 0), x.shape[3]), ((0, 0, 0, bottom), x.shape[2])):
        if any(pad):
            x = F.pad(x, pad, mode="reflect" if sum(pad) < side else "replicate")
    return x


#: name: (width C, blocks a level, states N, ratio); ours: the paper's layer list could not be had
VARIANTS: dict[str, tuple[int, tuple[int, int, int, int], int, float]] = {
    "serpent_tiny": (24, (1, 1, 1, 2), 8, 1.0),
    "serpent_base": (48, (2, 2, 2, 4), 16, 2.0),
    "serpent_large": (64, (2, 2, 4, 6), 16, 2.0),
}


@register("serpent_tiny", system="serpent", task="restoration", removes=("noise", "blur"))
def serpent_tiny() -> Serpent:
    """Serpent with 1.16 M parameters: for tests and processors."""
    return Serpent(*VARIANTS["serpent_tiny"])


@register("serpent_base", system="serpent", task="restoration", removes=("noise", "blur"))
def serpent_base() -> Serpent:
    """Serpent with 13.3 M parameters."""
    return Serpent(*VARIANTS["serpent_base"])


@register("serpent_large", system="serpent", task="restoration", removes=("noise", "blur"))
def serpent_large() -> Serpent:
    """Serpent with 35.9 M parameters."""
    return Serpent(*VARIANTS["serpent_large"])


@register("serpent", system="serpent", task="restoration", removes=("noise", "blur"))
def serpent(
    width: int = 24,
    blocks: Sequence[int] = (1, 1, 1, 2),
    states: int = 8,
    ratio: float = 1.0,
    scales: Sequence[int] = (1, 2, 4),
) -> Serpent:
    """Serpent of any width, depth and set of scales."""
    return Serpent(width, tuple(blocks), states, ratio, tuple(scales))


# -- files of weights without a header

_BLOCK = re.compile(r"(enc\.\d+|mid)\.(\d+)\.norm1\.weight$")
_LOGS, _EMBED = "enc.0.0.ssm.{}.A_logs", "enc.0.0.embed.{}.0.weight"


def _ratio(width: int, inner: int, deepest: int) -> float:
    """The ratio whose products with the widths of the levels, rounded down, are the inner widths of a file.

    Args:
        width: channels of the first level; the deepest has four times as many.
        inner, deepest: inner channels of those two.
    """
    tried = (inner / width, (deepest + 0.5) / (4 * width))
    return next((r for r in tried if (int(r * width), int(r * 4 * width)) == (inner, deepest)), tried[0])


@recognise("serpent", keys=("stem.weight", "enc.0.0.ssm.0.A_logs", "mid.0.ssm.0.x_proj_weight", "head.weight"))
def from_state(state: StateDict) -> Recipe | None:
    """A bare state dict of our network: everything is read from names and shapes.

    No weights of the authors are public. SS2D has VMamba's names, so that a converter is a change of prefixes.

    Raises:
        CheckpointError: shapes that make no Serpent.
    """
    depths: dict[str, int] = {}
    for key in state:
        if found := _BLOCK.match(key):
            depths[found[1]] = depths.get(found[1], 0) + 1
    count = next(k for k in itertools.count() if _LOGS.format(k) not in state)
    try:
        logs, width = state[_LOGS.format(0)], state["stem.weight"].shape[0]
        blocks = tuple(depths[level] for level in ("enc.0", "enc.1", "enc.2", "mid"))
        scales = (1, *(state[_EMBED.format(k)].shape[-1] for k in range(1, count)))
        ratio = _ratio(width, logs.shape[0] // 4, state["mid.0.ssm.0.A_logs"].shape[0] // 4)
        options = {"states": logs.shape[1], "ratio": ratio, "scales": scales}
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"this Serpent file lacks what tells its shape ({error})") from error
    for name, (w, n, s, r) in VARIANTS.items():
        if (width, blocks, options["states"], options["ratio"], scales) == (w, n, s, r, (1, 2, 4)):
            return Recipe(name, {}, state)
    return Recipe("serpent", {"width": width, "blocks": blocks, **options}, state)
