"""IARN's network: see the package's docstring for what it does, and why it is built as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.restoration.iarn.irn import round_straight
from saccade.restoration.iarn.phases import Maps, Window, gather, maps, scatter, window

__all__ = ["IARN", "Lifting", "Subnet", "from_opponent", "to_opponent"]

COLOURS = 3
LARGEST = 4.0  # factor up to which the shipped weights were trained
#: rows: grey, red against blue, green against both; orthonormal
OPPONENT = ((3**-0.5,) * 3, (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))
LINEAR = 0.1  # the straight path's weights are learned in tenths: large ones, kept from jumping
BALANCES = 4  # ranges of factors that each have their own weight of the guide


def to_opponent(rgb: Tensor) -> Tensor:
    """RGB in [0, 1] -> grey and two differences of colours, mid-grey at zero. Orthonormal."""
    return torch.einsum("oc,bchw->bohw", rgb.new_tensor(OPPONENT), rgb - 0.5)


def from_opponent(x: Tensor) -> Tensor:
    """Undoes `to_opponent`."""
    return torch.einsum("oc,bohw->bchw", x.new_tensor(OPPONENT), x) + 0.5


def mirrored(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, h+2, w+2): one pixel more on each side, mirrored; a single row or column is repeated."""
    return F.pad(x, (1, 1, 1, 1), mode="reflect" if min(x.shape[-2:]) > 1 else "replicate")


def _modulation(ratios: tuple[float, float], like: Tensor) -> Tensor:
    """(4,): the ratios and their squares, around one half."""
    a, b = ratios[0] - 0.5, ratios[1] - 0.5
    return like.new_tensor([a, b, a * a, b * b])


class Residual(nn.Module):
    """Two 3x3 convolutions beside the identity, then a gain: (B, width, h, w) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for conv, gain in ((self.conv1, 1.0), (self.conv2, 0.1)):
            nn.init.kaiming_normal_(conv.weight, a=0.2)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            with torch.no_grad():
                conv.weight.mul_(gain)

    def forward(self, x: Tensor, gain: Tensor) -> Tensor:
        """(x + convolutions) * gain, one factor a channel; the factor goes into the kernel, the sum is in place."""
        hidden = F.leaky_relu(self.conv1(x), 0.2, inplace=True)
        assert self.conv2.bias is not None
        y = F.conv2d(hidden, self.conv2.weight * gain[:, None, None, None], self.conv2.bias * gain, padding=1)
        return y.addcmul_(x, gain[:, None, None])


class Subnet(nn.Module):
    """A residual network and, beside it, one linear convolution; both told the ratio of sizes.

    The linear path carries what can be solved for before training (`training.linear_start`); the network
    starts at zero and learns what is not linear.

    Shape: (B, inputs, h, w) -> (B, outputs, h, w).
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.linear = nn.Conv2d(3 * inputs, outputs, 3)
        self.first = nn.Conv2d(inputs + 2, width, 3, padding=1)
        self.body = nn.ModuleList(Residual(width) for _ in range(depth))
        self.modulate = nn.ModuleList(nn.Linear(4, width) for _ in range(depth + 1))
        self.last = nn.Conv2d(width, outputs, 3, padding=1)
        for zero in (self.linear, self.last, *self.modulate):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    @property
    def reach(self) -> int:
        """Small pixels that an output sees beyond its own place."""
        return 2 * len(self.body) + 2

    @staticmethod
    def linear_inputs(x: Tensor, ratios: tuple[float, float]) -> Tensor:
        """(B, 3 C, h, w): the input, and the input times each ratio, so that the linear path varies with the factor."""
        return torch.cat([x, (ratios[0] - 0.5) * x, (ratios[1] - 0.5) * x], 1)

    def linear_kernel(self, ratios: tuple[float, float]) -> Tensor:
        """(outputs, C, 3, 3): the one kernel that the linear path amounts to at these ratios."""
        plain, by_rows, by_columns = self.linear.weight.chunk(3, 1)
        return LINEAR * (plain + (ratios[0] - 0.5) * by_rows + (ratios[1] - 0.5) * by_columns)

    def forward(self, x: Tensor, ratios: tuple[float, float]) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        told = x.new_tensor(ratios)[None, :, None, None].expand(len(x), 2, *x.shape[-2:])
        modulation = _modulation(ratios, x)
        y = torch.cat([x, told], 1)
        gains = [1 + modulate(modulation) for modulate in self.modulate]
        y = F.leaky_relu(self.first(y), 0.2, inplace=True) * gains[0][:, None, None]
        for block, gain in zip(self.body, gains[1:], strict=True):
            y = block(y, gain)
        assert self.linear.bias is not None
        linear = F.conv2d(mirrored(x), self.linear_kernel(ratios), LINEAR * self.linear.bias)
        made: Tensor = self.last(F.leaky_relu(y, 0.2, inplace=True))
        return made.add_(linear)


def synthesise(parts: Tensor, axes: tuple[Maps, Maps], functions: int) -> Tensor:
    """(B, 3 K K, h, w) -> (B, 3, H, W)."""
    return axes[1].synthesis.columns(axes[0].synthesis.rows(scatter(parts, functions)))


def upwards(y: Tensor, axes: tuple[Maps, Maps]) -> Tensor:
    """Bicubic enlargement (B, C, h, w) -> (B, C, H, W)."""
    return axes[1].up.columns(axes[0].up.rows(y))


class Lifting(nn.Module):
    """One coupling of a small picture y and the detail z of the large one; undone exactly.

    y <- y + F(analysis(z))         hide: at h x w
    z <- z + synthesis(G(y))        take away what y tells of z: G at h x w, z at H x W
    """

    def __init__(self, functions: int, hider: tuple[int, int], teller: tuple[int, int]) -> None:
        super().__init__()
        self.functions = functions
        self.F = Subnet(COLOURS * functions**2, COLOURS, *hider)
        self.G = Subnet(COLOURS, COLOURS * functions**2, *teller)

    def hidden(self, z: Tensor, axes: tuple[Maps, Maps], ratios: tuple[float, float]) -> Tensor:
        """F: what is added to the small picture (B, 3, h, w) for a detail z (B, 3, H, W)."""
        parts = axes[1].analysis.columns(axes[0].analysis.rows(z))
        made: Tensor = self.F(gather(parts, self.functions), ratios)
        return made

    def told(self, y: Tensor, axes: tuple[Maps, Maps], ratios: tuple[float, float]) -> Tensor:
        """G: minus the detail (B, 3, H, W) that a small picture tells."""
        return synthesise(self.G(y, ratios), axes, self.functions)


class IARN(nn.Module):
    """Invertible arbitrary rescaling: one network for all real factors in (1, 4], different in height and width.

    Args:
        blocks: couplings.
        opening: width and depth of the network that first tells the detail about the small picture (P); without it
            the first hider would not know what it hides in.
        hider: width and depth of the networks that hide detail in the small picture (F).
        teller: width and depth of those that read it again (G).
        functions: cosines per axis and small pixel, K.

    Shape: `forward` (B, 3, H, W) in [0, 1] -> the same, shrunk by 2, rounded to 8 bit and enlarged back; not clamped.

    It compiles (`torch.compile`) and exports (`torch.export`) at fixed sizes: the matrices that tie the two grids
    (`phases`) are made from them.

    Raises:
        UsageError: no blocks, widths or functions.
    """

    def __init__(
        self,
        blocks: int = 1,
        opening: Sequence[int] = (24, 1),
        hider: Sequence[int] = (32, 2),
        teller: Sequence[int] = (48, 5),
        functions: int = 3,
    ) -> None:
        super().__init__()
        nets = (opening, hider, teller)
        if blocks < 1 or not 1 <= functions <= 8 or any(len(s) != 2 or s[0] < 1 or s[1] < 0 for s in nets):
            raise UsageError(f"IARN needs blocks, 1 to 8 functions and three (width, depth): {blocks}, {nets}")
        self.functions = functions
        self.P = Subnet(COLOURS, COLOURS * functions**2, *opening)
        self.blocks = nn.ModuleList(
            Lifting(functions, (hider[0], hider[1]), (teller[0], teller[1])) for _ in range(blocks)
        )
        # of training alone: what the small picture's distance from bicubic costs, by factor (see `training_loss`)
        self.register_buffer("balance", torch.full((BALANCES,), 3.0))

    @property
    def halo(self) -> int:
        """Small pixels that a large pixel sees beyond its own place when enlarged; the resize itself sees 3."""
        return 4 + self.P.reach + sum(block.F.reach + block.G.reach + 2 for block in self._couplings())

    @property
    def halo_of_shrinking(self) -> int:
        """Small pixels that a small pixel sees beyond its own place when made: all but the last G."""
        return self.halo - self._couplings()[-1].G.reach

    def _couplings(self) -> list[Lifting]:
        return [block for block in self.blocks if isinstance(block, Lifting)]

    # -- the invertible map

    def split(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """A picture as a small one and what is then left: (B, 3, H, W) -> y (B, 3, h, w), z (B, 3, H, W).

        Exactly undone by `merge`. y is not rounded.

        Raises:
            InputError: what is no RGB picture, or a target larger than it.
        """
        check_picture(x, COLOURS, "IARN")
        where = _whole((x.shape[-2], x.shape[-1]), size)
        y, z = self._hide(to_opponent(x), where, latent=True)
        return from_opponent(y), z

    def merge(self, y: Tensor, z: Tensor) -> Tensor:
        """The large picture from the small one and what was left: undoes `split`.

        Raises:
            InputError: y or z of another rank, number of colours or batch.
        """
        if y.ndim != 4 or y.shape[1] != COLOURS or z.ndim != 4 or z.shape[:2] != y.shape[:2]:
            given = f"{tuple(y.shape)} and {tuple(z.shape)}"
            raise InputError(f"merge takes y (B, 3, h, w) and z (B, 3, H, W) with the batch of y, not {given}")
        where = _whole((z.shape[-2], z.shape[-1]), (y.shape[-2], y.shape[-1]))
        return from_opponent(self._tell(to_opponent(y), where, z))

    def _axes(self, where: Window) -> tuple[Maps, Maps]:
        found = [
            maps(n, m, self.functions, small, large)
            for (n, m), small, large in zip(where.sizes, where.small, where.large, strict=True)
        ]
        return found[0], found[1]

    def _hide(self, x: Tensor, where: Window, latent: bool) -> tuple[Tensor, Tensor]:
        """Opponent colours (B, 3, H, W) -> y (B, 3, h, w), z (B, 3, H, W); z is not finished without ``latent``."""
        axes, ratios = self._axes(where), where.ratios
        y = axes[1].down.columns(axes[0].down.rows(x))
        z = x - upwards(y, axes) + synthesise(self.P(y, ratios), axes, self.functions)
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Lifting)
            y = y + block.hidden(z, axes, ratios)
            if latent or i + 1 < len(self.blocks):
                z = z + block.told(y, axes, ratios)
        return y, z

    def _tell(self, y: Tensor, where: Window, z: Tensor | None) -> Tensor:
        """Opponent colours: y (B, 3, h, w) and z, None for zero, -> (B, 3, H, W)."""
        axes, ratios = self._axes(where), where.ratios
        for block in reversed(self.blocks):
            assert isinstance(block, Lifting)
            told = block.told(y, axes, ratios)
            z = -told if z is None else z - told
            y = y - block.hidden(z, axes, ratios)
        assert z is not None
        return upwards(y, axes) + z - synthesise(self.P(y, ratios), axes, self.functions)

    # -- use

    def shrink(self, x: Tensor, size: tuple[int, int] | None = None, *, where: Window | None = None) -> Tensor:
        """The small picture, rounded to multiples of 1/255: (B, 3, H, W) -> (B, 3, h, w).

        Args:
            x: RGB in [0, 1].
            size: (h, w).
            where: the part of a larger picture that ``x`` is; then ``size`` is not needed.

        Raises:
            InputError: as `split`.
        """
        check_picture(x, COLOURS, "IARN")
        if where is None:
            if size is None:
                raise UsageError("shrink needs a size (height, width)")
            where = _whole((x.shape[-2], x.shape[-1]), size)
        return round_straight(from_opponent(self._hide(to_opponent(x), where, latent=False)[0]))

    def enlarge(self, y: Tensor, size: tuple[int, int] | None = None, *, where: Window | None = None) -> Tensor:
        """The large picture, not clamped: (B, 3, h, w) -> (B, 3, H, W).

        Args:
            y: what `shrink` made.
            size: (H, W), the size that was shrunk.
            where: the part of a larger picture that ``y`` is; then ``size`` is not needed.

        Raises:
            InputError: what is no RGB picture, or a target smaller than it.
        """
        check_picture(y, COLOURS, "IARN")
        if where is None:
            if size is None:
                raise UsageError("enlarge needs a size (height, width)")
            where = _whole(size, (y.shape[-2], y.shape[-1]))
        return from_opponent(self._tell(to_opponent(y), where, None))

    def forward(self, x: Tensor, factor: float | tuple[float, float] = 2.0) -> Tensor:
        """A picture after having been stored small: shrunk by ``factor`` (rows, columns), rounded, enlarged."""
        pair = factor if isinstance(factor, tuple) else (factor, factor)
        if not all(math.isfinite(f) and f >= 1 for f in pair):
            raise UsageError(f"a factor of shrinking is at least 1, not {factor}")
        height, width = x.shape[-2:]
        small = self.shrink(x, (max(1, round(height / pair[0])), max(1, round(width / pair[1]))))
        return self.enlarge(small, (height, width))

    # -- training

    def training_loss(self, given: Tensor, wanted: Tensor, phase: int = 0) -> Tensor:
        """Restored picture against ``given`` (L1, colour at half the weight) + small picture against ``wanted``.

        The guide's weight is no constant: it rises while the small picture is farther from bicubic than `GUIDE`
        allows, and falls otherwise, for four ranges of factors apart (a Lagrange multiplier).

        Args:
            given: the large picture (B, 3, H, W).
            wanted: its bicubic reduction (B, 3, h, w), not rounded; its size is the size to shrink to.
        """
        size, shape = (wanted.shape[-2], wanted.shape[-1]), (given.shape[-2], given.shape[-1])
        where = _whole(shape, size)
        y = from_opponent(self._hide(to_opponent(given), where, latent=False)[0])
        made = from_opponent(self._tell(to_opponent(round_straight(y)), where, None))
        guide = (y - wanted).square().mean()
        error = made - given
        grey = (error * error.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
        rate = math.sqrt(where.ratios[0] * where.ratios[1])
        restored = 2 * rate * (grey.abs().mean() + 0.5 * (error - grey).abs().mean())
        own = min(BALANCES - 1, int(BALANCES * -math.log(rate) / math.log(LARGEST)))
        balance: Tensor = self.balance  # type: ignore[assignment]
        weight = balance[own].clone()
        with torch.no_grad():
            excess = (guide / 10 ** (-GUIDE / 10)).clamp_min(1e-9).log().clamp(-1, 1)
            balance[own] = (weight * (0.04 * excess).exp()).clamp(0.05, 200)
        return restored + weight * guide

    def cycle_loss(self, given: Tensor, size: tuple[int, int]) -> Tensor:
        """How far a second round of shrinking and enlarging moves a picture that went through a first one; L1.

        To be added to `training_loss` where pictures are to be stored small again and again. Nothing is learnt through
        the first round.

        Args:
            given: the large picture (B, 3, H, W).
            size: (h, w) to shrink to.
        """
        shape = (given.shape[-2], given.shape[-1])
        with torch.no_grad():
            once = self.enlarge(self.shrink(given, size), shape).clamp(0, 1).mul(255).round().div(255)
        return (self.enlarge(self.shrink(once, size), shape) - once).abs().mean()


GUIDE = 38.0  # dB: how near to bicubic the small pictures of training are held, in the mean


def _whole(large: tuple[int, int], small: tuple[int, int]) -> Window:
    """The window of a whole picture.

    Raises:
        InputError: sizes that are not positive, or a small picture larger than the large one.
    """
    if min(*large, *small) < 1:
        raise InputError(f"pictures have at least one pixel, not {small[1]} x {small[0]} and {large[1]} x {large[0]}")
    if small[0] > large[0] or small[1] > large[1]:
        raise InputError(
            f"{small[1]} x {small[0]} px is larger than {large[1]} x {large[0]} px; IARN shrinks, and enlarges back"
        )
    return window(large, small)
