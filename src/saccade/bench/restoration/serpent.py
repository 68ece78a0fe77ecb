"""Serpent beside its published steps; the scan beside the loop and associative scans; its block beside attention's.

The peers of the scan hold their states for the whole sequence, as the usual PyTorch codes do. Blocks of the Restormer
and of the SwinIR class stand beside a Serpent block of the same number of parameters, from 256 x 256 to 2048 x 2048.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure, skipped
from saccade.bench.memory import available, held
from saccade.cost import cost, count_parameters
from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.restormer import EPSILON, GDFN, MDTA
from saccade.ops.selective_scan import selective_scan
from saccade.restoration.serpent import SS2D, VARIANTS, Serpent, SerpentBlock, serpent_tiny
from saccade.runtime.scene import scene
from saccade.runtime.threads import on_threads

__all__ = ["contests", "growth", "rows"]

SLICE = 1024  # steps whose decays exist at once in the published form; more would not fit at 1920 x 1080
SIDES = (256, 512, 1024, 2048)
LENGTH = 4096
OURS = "scan by saccade"
LARGE = 7 << 30  # bytes that a Serpent block at 3840 x 2160 and its input need, with room
ROOM = 1.15  # of the bytes of tensors that a block needs: what the process takes for them
UNTOLD = 6 << 30  # bytes taken to be there where the system does not tell
COMMAND = "saccade bench restoration --system serpent --threads {}"


# -- the network


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """serpent_tiny on one RGB picture of ``size`` (width, height), fresh weights."""
    width, height = size
    given = torch.from_numpy(scene(height, width).astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours, plain = serpent_tiny().eval(), PublishedSerpent(*VARIANTS["serpent_tiny"]).eval()
        nn.init.normal_(ours.head.weight, 0, 0.01)  # as it starts, the network changes nothing
    plain.load_state_dict(ours.state_dict())
    inside = functools.partial(peers.torch_threads, threads)
    yield Contest(
        "Serpent-tiny, RGB",
        Contender("Serpent-tiny by saccade", lambda: ours(given), threads, inside),
        Contender("Serpent-tiny with VMamba's PyTorch scan", lambda: plain(given), threads, inside),
        notes=(
            "Serpent: the tiny variant; the published loop takes minutes for the larger ones.",
            f"Serpent: the published form makes its decays for {SLICE} steps at a time here; whole, as in its code, "
            "they take 6.4 GB at 1920x1080.",
        ),
    )


class PublishedSS2D(SS2D):
    """The steps of VMamba's form "v0": four sequences in memory, channels first, scanned by a loop."""

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        inside, gate = self.in_proj(x).chunk(2, -1)
        inside = F.silu(self.conv2d(inside.permute(0, 3, 1, 2).contiguous()))  # (B, E, H, W)
        ways = torch.stack((inside.flatten(2), inside.transpose(2, 3).flatten(2)), 1)
        xs = torch.cat((ways, ways.flip(-1)), 1)  # (B, 4, E, L)
        told = torch.einsum("bkel,kre->bkrl", xs, self.x_proj_weight)
        dt, B, C = told.split((self.rank, self.states, self.states), 2)
        dt = torch.einsum("bkrl,ker->bkel", dt, self.dt_projs_weight)
        delta = F.softplus(dt + self.dt_projs_bias[..., None])
        A = -self.A_logs.exp().view(4, -1, self.states)
        y = _published_scan(xs, delta, A, B, C) + self.Ds.view(4, -1, 1) * xs
        y = y[:, :2] + y[:, 2:].flip(-1)
        y = y[:, 0] + y[:, 1].unflatten(2, (width, height)).transpose(2, 3).flatten(2)
        y = self.out_norm(y.transpose(1, 2)).view(batch, height, width, -1)
        made: Tensor = self.out_proj(y * F.silu(gate))
        return made


class PublishedBlock(SerpentBlock):
    """A block without strips, and without the short way to add what a transposed convolution makes."""

    scan = PublishedSS2D

    def forward(self, x: Tensor) -> Tensor:
        g = self.norm1(x)
        for k in self.active:
            seen = self.embed[k](g.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            x = x + self.expand[k](self.ssm[k](seen).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        hidden = self.dw(self.fc1(self.norm2(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        made: Tensor = x + self.fc2(F.gelu(hidden))
        return made


class PublishedSerpent(Serpent):
    """The network of such blocks."""

    block = PublishedBlock


def _published_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """(B, K, E, L) -> the same: decays and inputs as tensors (..., E, L, N), then a loop over L."""
    h, outputs = torch.zeros_like(u[..., :1]) * A.new_zeros(A.shape[-1]), []
    for first in range(0, u.shape[-1], SLICE):
        now = slice(first, first + SLICE)
        decay = torch.exp(delta[..., now, None] * A[:, :, None])  # (B, K, E, l, N)
        fed = (delta[..., now] * u[..., now])[..., None] * B[:, :, None, :, now].transpose(-1, -2)
        for t in range(decay.shape[3]):
            h = decay[..., t, :] * h + fed[..., t, :]
            outputs.append(torch.einsum("bken,bkn->bke", h, C[..., first + t]))
    return torch.stack(outputs, -1)


# -- the scan


def hillis_steele(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan by log2 L rounds over the whole sequence, each combining affine maps at twice the distance."""
    each = u.shape[1] // B.shape[1]
    a = torch.exp(delta[:, :, None] * A[..., None])  # (B, D, N, L)
    b = (delta * u)[:, :, None] * B.repeat_interleave(each, 1)
    distance = 1
    while distance < u.shape[-1]:
        b = torch.cat((b[..., :distance], b[..., distance:] + a[..., distance:] * b[..., :-distance]), -1)
        a = torch.cat((a[..., :distance], a[..., distance:] * a[..., :-distance]), -1)
        distance *= 2
    return (b * C.repeat_interleave(each, 1)).sum(2)


def torch_associative(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan by torch's own (experimental) associative scan, run eagerly."""
    from torch._higher_order_ops.associative_scan import generic_associative_scan

    each = u.shape[1] // B.shape[1]
    a = torch.exp(delta[:, :, None] * A[..., None])
    b = (delta * u)[:, :, None] * B.repeat_interleave(each, 1)

    def combine(a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
        return a1 * a2, a2 * b1 + b2

    _, h = generic_associative_scan(combine, [a, b], dim=3)
    return (h * C.repeat_interleave(each, 1)).sum(2)


def _operands(length: int, groups: int = 4, each: int = 48, states: int = 16) -> dict[str, Tensor]:
    chance = torch.Generator().manual_seed(0)
    tokens, weights = (1, length, groups * each), (1, length, groups, states)
    return {
        "u": torch.randn(tokens, generator=chance).transpose(1, 2),
        "delta": torch.rand(tokens, generator=chance).mul_(0.1).transpose(1, 2),
        "A": -torch.arange(1.0, states + 1).repeat(groups * each, 1),
        "B": torch.randn(weights, generator=chance).permute(0, 2, 3, 1),
        "C": torch.randn(weights, generator=chance).permute(0, 2, 3, 1),
    }


def _scan_rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Forward, and forward and backward, of 192 channels with 16 states, 4096 steps."""
    scans: dict[str, Callable[..., Tensor]] = {
        OURS: selective_scan,
        "loop over time": functools.partial(selective_scan, path="naive"),
        "chunked scan in PyTorch by saccade": functools.partial(selective_scan, path="chunked"),
        "associative scan, Hillis-Steele in PyTorch": hillis_steele,
        "associative scan of torch._higher_order_ops, eager": torch_associative,
    }
    x, notes, found = _operands(LENGTH), list[str](), list[Row]()
    truth = scans["loop over time"](**x)
    for name in list(scans):
        try:
            found_y = scans[name](**x)
        except (ImportError, AttributeError, RuntimeError, TypeError) as error:  # a private peer of another torch
            notes.append(skipped(name, error))
            del scans[name]
        else:
            torch.testing.assert_close(found_y, truth, atol=1e-3, rtol=1e-3)
    leaves = {name: value.clone().requires_grad_() for name, value in x.items()}

    def forward(scan: Callable[..., Tensor]) -> Tensor:
        with torch.no_grad():
            return scan(**x)

    def both(scan: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(scan(**leaves).sum(), list(leaves.values()))

    for job, call in (("forward", forward), ("forward and backward", both)):
        inside = functools.partial(on_threads, threads)  # gradients as they are
        contenders = [Contender(n, functools.partial(call, s), threads, inside) for n, s in scans.items()]
        timings = measure(contenders, rounds)
        found += compare(
            timings,
            OURS,
            system="serpent",
            what=f"selective scan, 192 channels, 16 states, {job}",
            size=f"{LENGTH}",
            command=COMMAND.format(threads),
        )
    return found, notes


# -- the block


class RestormerBlock(nn.Module):
    """Transposed attention over channels and a gated feed-forward (arXiv:2111.09881)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = ChannelNorm(channels, EPSILON), MDTA(channels, heads)
        self.norm2, self.feed = ChannelNorm(channels, EPSILON), GDFN(channels, 2.66)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.feed(self.norm2(x))
        return y


Blocks = dict[str, tuple[nn.Module, tuple[int, ...]]]


def _blocks() -> Blocks:
    """Blocks of about the same number of parameters, each with what turns (B, C, H, W) into its order."""
    from timm.models.swin_transformer import SwinTransformerBlock

    serpent = SerpentBlock(24, 8, 1.0, (1, 2, 4))
    wanted = count_parameters(serpent)
    restormer = min((RestormerBlock(c, 2) for c in range(24, 97, 4)), key=lambda b: abs(count_parameters(b) - wanted))
    swin = min(
        (
            SwinTransformerBlock(c, (8, 8), 4, window_size=8, mlp_ratio=2.0, always_partition=True)
            for c in range(24, 97, 4)
        ),
        key=lambda b: abs(count_parameters(b) - wanted),
    )
    return {
        "Serpent block by saccade": (serpent, (0, 2, 3, 1)),
        "Restormer-class block": (restormer, (0, 1, 2, 3)),
        "SwinIR-class block, windows of 8": (swin, (0, 2, 3, 1)),
    }


def _width(block: nn.Module) -> int:
    norm: Any = block.norm1
    return int(norm.weight.shape[0])


def _input(block: nn.Module, order: tuple[int, ...], side: int, device: str = "cpu") -> Tensor:
    """A picture of noise in the block's width and order; on "meta" its shape alone."""
    width = _width(block)
    if device == "meta":
        return torch.empty(1, width, side, side, device="meta").permute(order).contiguous()
    return torch.rand(1, width, side, side).permute(order).contiguous()


def _fitting(blocks: Blocks, side: int) -> tuple[Blocks, list[str]]:
    """The blocks that one call on ``side`` x ``side`` pixels has the memory for, and what is to be said of others.

    The inputs of all are held throughout.
    """
    there = available() or UNTOLD
    shapes = {name: _input(block, order, side, "meta") for name, (block, order) in blocks.items()}
    inputs = sum(x.nbytes for x in shapes.values())
    fits, notes = {}, []
    for name, (block, order) in blocks.items():
        need = int(ROOM * cost(block, shapes[name]).peak_bytes) + inputs - shapes[name].nbytes
        if need <= there:
            fits[name] = (block, order)
        else:
            told = f"it needs {need / 2**30:.1f} GiB (counted), {there / 2**30:.1f} were there"
            notes.append(f"without {name} at {side}x{side}: {told}.")
    return fits, notes


def _block_rows(threads: int, rounds: int, sides: tuple[int, ...] = SIDES) -> tuple[list[Row], list[str]]:
    blocks, found, notes = _blocks(), list[Row](), list[str]()
    told = ", ".join(f"{n} {count_parameters(b):,} ({_width(b)} channels)" for n, (b, _) in blocks.items())
    notes.append(f"Serpent's block against others, parameters: {told}.")
    inside = functools.partial(peers.torch_threads, threads)
    medians: dict[str, dict[int, float]] = {name: {} for name in blocks}
    first = next(iter(blocks))
    for side in sides:
        fits, said = _fitting(blocks, side)
        notes += said
        if first not in fits:
            break
        contenders = [
            Contender(name, functools.partial(block, _input(block, order, side)), threads, inside)
            for name, (block, order) in fits.items()
        ]
        timings = measure(contenders, rounds if side < 1024 else 1, warmup=int(side < 1024))
        facts = {"what": "one block, equal parameters", "size": f"{side}x{side}", "command": COMMAND.format(threads)}
        found += compare(timings, first, system="serpent", **facts)
        for name, timing in timings.items():
            medians[name][side] = timing.median
        if side >= 512:
            peaks = ", ".join(f"{c.name} {_peak(c) / 2**20:,.0f} MiB" for c in contenders)
            notes.append(f"peak memory of one call at {side}x{side}, beyond its input: {peaks}.")
    return found, [*notes, *(_growth_of(name, points) for name, points in medians.items() if len(points) > 1)]


def _growth_of(name: str, seconds: dict[int, float]) -> str:
    """The exponent in pixels of seconds by side, in words."""
    pixels = np.log([side * side for side in seconds])
    exponent = float(np.polyfit(pixels, np.log([*seconds.values()]), 1)[0])
    return f"{name}: time grows with pixels to the power of {exponent:.2f}, {min(seconds)} to {max(seconds)} px."


def _peak(contender: Contender) -> int:
    """Bytes at the peak of one call, beyond those held before it; 0 where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = held("VmRSS")
        with contender.inside() if contender.inside else nullcontext():
            contender.run()
        return held("VmHWM") - before
    except OSError:
        return 0


def growth(sizes: Sequence[tuple[int, int]], threads: int = 1) -> list[tuple[int, float, int]]:
    """Of one Serpent block forward at each (width, height), one call: pixels, processor seconds, bytes at the peak.

    Bytes are those of tensors alive at once, by the ledger; the scan's work tensors, of a fixed size, are not seen.
    """
    block, found = SerpentBlock(24, 8, 1.0, (1, 2, 4)), []
    with peers.torch_threads(threads):
        block(torch.rand(1, 128, 128, 24))  # what is compiled or loaded at the first call is not the block's
    for width, height in sizes:
        shape = (1, height, width, 24)
        peak = cost(block, torch.empty(shape, device="meta")).peak_bytes
        x = torch.rand(shape)
        with peers.torch_threads(threads):
            began = time.thread_time()
            block(x)
            found.append((width * height, time.thread_time() - began, peak))
    return found


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The scan beside other ways to run it, the block beside blocks of attention, and how the block grows to 4K."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scans, said = _scan_rows(threads, rounds)
        blocks, more = _block_rows(threads, rounds)
        sizes = ((512, 512), (1024, 1024), (1920, 1080), (3840, 2160))[: 4 if available() > LARGE else 3]
        grown = growth(sizes)
    pixels, seconds, peaks = (np.array(column) for column in zip(*grown, strict=True))
    exponents = [float(np.polyfit(np.log(pixels), np.log(y), 1)[0]) for y in (seconds, peaks)]
    width, height = sizes[-1]
    last = (
        f"Serpent's block to {width}x{height}, one thread: {seconds[-1]:.1f} s of the processor and "
        f"{peaks[-1] / 2**30:.1f} GiB of tensors there; "
        f"time grows with pixels to the power of {exponents[0]:.2f}, memory {exponents[1]:.2f}."
    )
    return scans + blocks, [*said, *more, last]
