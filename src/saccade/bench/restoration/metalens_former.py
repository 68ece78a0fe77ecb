"""ACFormer in strips beside its published steps; the Wiener bank beside complex transforms, its floor, and peers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure, skipped
from saccade.nn.restormer import EPSILON
from saccade.registry import create
from saccade.restoration.metalens_former import Deblurrer, blur, lens_psfs, naive_bank, psf2otf, wiener_bank
from saccade.runtime.scene import scene

__all__ = ["Plain", "contests", "rows"]

WHOLE = 512 * 512  # pixels up to which the published size runs too


class Plain:
    """The published steps in eager PyTorch, with the weights of ``model``: (B, M, 3, H, W) -> (B, 3, H, W).

    All M pictures go through MAFG at once, queries included; windows are unfolded for the whole picture; the relative
    logits are padded and reshaped into place; layer norm runs on flattened pixels.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, stack: Tensor) -> Tensor:
        with torch.inference_mode():
            height, width = stack.shape[-2:]
            more = [-n % self.model.multiple for n in (width, height)]
            if any(more):
                flat = F.pad(stack.flatten(1, 2), (0, more[0], 0, more[1]), mode="reflect")
                stack = flat.unflatten(1, stack.shape[1:3])
            return (self._unet(stack) + stack[:, stack.shape[1] // 2])[..., :height, :width]

    def _unet(self, stack: Tensor) -> Tensor:
        m = self.model
        one = self._level(m.encoder_level1, m.patch_embed(self._guide(stack)))
        two = self._level(m.encoder_level2, m.down1_2(one))
        three = self._level(m.encoder_level3, m.down2_3(two))
        x = m.up4_3(self._level(m.latent, m.down3_4(three)))
        x = self._level(m.decoder_level3, m.reduce_chan_level3(torch.cat([x, three], 1)))
        x = self._level(m.decoder_level2, m.reduce_chan_level2(torch.cat([m.up3_2(x), two], 1)))
        x = self._level(m.decoder_level1, torch.cat([m.up2_1(x), one], 1))
        made: Tensor = m.output(self._level(m.refinement, x))
        return made

    def _guide(self, stack: Tensor) -> Tensor:
        guide, (batch, count) = self.model.ca, stack.shape[:2]
        x = guide.proj_high(stack.flatten(0, 1)).permute(0, 2, 3, 1)  # (B M, H, W, E)
        q, k, v = guide.qkv(guide.norm(x)).permute(0, 3, 1, 2).chunk(3, 1)
        q = q.unflatten(0, (batch, count))[:, count // 2].repeat_interleave(count, 0)
        q = _windows(q, guide.window) + guide.pos_emb_q
        k, v = (_seen(t, guide.window, guide.seen) for t in (k, v))
        q, k, v = (t.unflatten(-1, (guide.heads, -1)).transpose(-3, -2) for t in (q, k + guide.pos_emb_k, v))
        y = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        y = _joined(y.transpose(-3, -2).flatten(-2), guide.window, x.shape[1:3]).permute(0, 2, 3, 1)
        made: Tensor = guide.proj_rgb((guide.proj_out(y) + x).permute(0, 3, 1, 2))
        return made.unflatten(0, (batch, count)).flatten(1, 2)

    def _level(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = self._block(block, x)
        return x

    def _block(self, block: Any, x: Tensor) -> Tensor:
        sa = x + self._spatial(block.spatial_attn, _norm(x, block.norm1))
        sa = sa + block.spatial_ffn(_norm(sa, block.norm2))
        ca = x + block.channel_attn(_norm(x, block.norm3))
        ca = ca + block.channel_ffn(_norm(ca, block.norm4))
        weight = block.fusion(torch.cat([sa, ca], 1))
        weight = (weight.mean(1, keepdim=True) if block.per_pixel else weight.mean((2, 3), keepdim=True)).sigmoid()
        return weight * sa + (1 - weight) * ca

    def _spatial(self, attention: Any, x: Tensor) -> Tensor:
        q, k, v = attention.qkv(x).chunk(3, 1)
        if attention.query_size:
            q = q - F.avg_pool2d(q, attention.query_size, 1, attention.query_size // 2)
        size, seen = attention.window, attention.seen
        parts = (_windows(q, size), _seen(k, size, seen), _seen(v, size, seen))
        q, k, v = (t.unflatten(-1, (attention.heads, -1)).transpose(-3, -2) for t in parts)
        q = q * attention.head_dim**-0.5  # (B, windows, heads, size^2, dim)
        logits = q @ k.transpose(-2, -1) + _relative(q, attention, size, seen)
        y = (logits.softmax(-1) @ v).transpose(-3, -2).flatten(-2)
        made: Tensor = attention.project_out(_joined(y, size, x.shape[-2:]))
        return made


def _norm(x: Tensor, norm: Any) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    mean, variance = flat.mean(-1, keepdim=True), flat.var(-1, keepdim=True, unbiased=False)
    flat = (flat - mean) / torch.sqrt(variance + EPSILON) * norm.weight + norm.bias
    return flat.transpose(1, 2).unflatten(2, x.shape[-2:])


def _windows(x: Tensor, size: int) -> Tensor:
    """(B, C, H, W) -> (B, windows, size^2, C)."""
    return F.unfold(x, size, stride=size).unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1)


def _seen(x: Tensor, size: int, seen: int) -> Tensor:
    """(B, C, H, W) -> (B, windows, seen^2, C), zeros beyond the picture."""
    columns = F.unfold(x, seen, stride=size, padding=(seen - size) // 2)
    return columns.unflatten(1, (x.shape[1], -1)).permute(0, 3, 2, 1)


def _joined(x: Tensor, size: int, sides: tuple[int, ...]) -> Tensor:
    """(B, windows, size^2, C) -> (B, C, H, W)."""
    return F.fold(x.permute(0, 3, 2, 1).flatten(1, 2), sides, size, stride=size)


def _relative(q: Tensor, attention: Any, size: int, seen: int) -> Tensor:
    """Logits of the two relative tables, padded and reshaped into place, then repeated over the other axis."""
    grid = q.unflatten(-2, (size, size))  # (..., y, x, dim)
    across = _placed(grid @ attention.rel_width.T, seen)  # (..., y, x, seen)
    down = _placed(grid.transpose(-3, -2) @ attention.rel_height.T, seen).transpose(-3, -2)
    both = down[..., :, None] + across[..., None, :]
    return both.flatten(-2).flatten(-3, -2)


def _placed(x: Tensor, seen: int) -> Tensor:
    """From relative to absolute columns: (..., rows, 2 seen - 1) -> (..., rows, seen)."""
    lead, (rows, columns) = x.shape[:-2], x.shape[-2:]
    flat = F.pad(x, (0, 1)).reshape(-1, rows * (columns + 1))
    flat = F.pad(flat, (0, columns - rows))
    return flat.reshape(-1, rows + 1, columns)[:, :rows, -seen:].reshape(*lead, rows, seen)


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The tiny network at every size, the published one up to 512 x 512, and the bank of 13 filters."""
    width, height = size
    light = torch.from_numpy(scene(height, width)).permute(2, 0, 1).float() / 255
    inside = functools.partial(peers.torch_threads, threads)
    psf = lens_psfs(1)[0]
    half, whole = psf2otf(psf, height, width), psf2otf(psf, height, width, half=False)
    capture = blur(light, half)
    yield Contest(
        "Wiener bank of 13 filters, RGB",
        Contender("the bank by saccade", _without_gradients(wiener_bank, capture, half), threads, inside),
        Contender("the bank by complex transforms", _without_gradients(naive_bank, capture, whole), threads, inside),
        _single_filters(capture, psf, threads),
        ("the peers of the bank make one picture, the bank makes 13",),
    )
    del whole
    names = ("acformer_tiny", "acformer") if width * height <= WHOLE else ("acformer_tiny",)
    for name in names:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model: Any = create(name, weights=None)
        stack = wiener_bank(capture, half, [10 ** (-2 - m / 4) for m in range(model.filters)])[None]
        plain = Plain(model)
        yield Contest(
            f"{name}, {model.filters} filters",
            Contender(f"{name} by saccade", _without_gradients(model, stack), threads, inside),
            Contender(f"{name} as published, PyTorch", functools.partial(plain, stack), threads, inside),
            notes=() if len(names) > 1 else (f"{name}: the published size takes minutes and over 24 GiB at this size",),
        )


def _without_gradients(call: Callable[..., Tensor], *given: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return call(*given)

    return run


def _single_filters(capture: Tensor, psf: Tensor, threads: int) -> tuple[Contender, ...]:
    """One deconvolution of each colour by scikit-image, where it is installed."""
    try:
        from skimage.restoration import richardson_lucy, wiener
    except ImportError as error:
        skipped("scikit-image", error)
        return ()
    colours, kernels = capture.numpy(), psf.permute(2, 0, 1).numpy()

    def by_wiener() -> Any:
        return [wiener(x, k, 0.01) for x, k in zip(colours, kernels, strict=True)]

    def by_richardson_lucy() -> Any:
        return [richardson_lucy(x, k, num_iter=10) for x, k in zip(colours, kernels, strict=True)]

    return (
        Contender("scikit-image wiener, one filter", by_wiener, 1),
        Contender("scikit-image richardson_lucy, 10 rounds", by_richardson_lucy, 1),
    )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The bank beside the time of its transforms alone, and a whole picture deblurred beside scikit-image."""
    made: list[Row] = []
    inside = functools.partial(peers.torch_threads, threads)
    command = f"saccade bench restoration --threads {threads} --rounds {rounds}"
    for width, height in ((512, 512), (1920, 1080)):
        facts = {"system": "metalens_former", "size": f"{width}x{height}", "command": command}
        picture = np.asarray(scene(height, width))
        light, psf = torch.from_numpy(picture).permute(2, 0, 1).float() / 255, lens_psfs(1)[0]
        otf = psf2otf(psf, height, width)
        spectrum, out = torch.fft.rfft2(light), torch.empty_like(light)
        ours = Contender("the bank by saccade", _without_gradients(wiener_bank, light, otf), threads, inside)
        floor = Contender("its transforms alone", functools.partial(_transforms, light, spectrum, out), threads, inside)
        timings = measure([ours, floor], rounds)
        made += compare(timings, ours.name, what="Wiener bank of 13 filters against its floor", **facts)

        worker = Deblurrer(psf.numpy(), noise_levels=0.01, linear=True)
        values = picture.astype(np.float32) / np.float32(255)
        whole = Contender("Deblurrer, one K", functools.partial(worker.array, values), threads, inside)
        others = _single_filters(light, psf, threads)
        timings = measure([whole, *others], rounds)
        made += compare(timings, whole.name, what="a picture deblurred by one PSF", **facts)
    return made, [
        "the floor of the bank is the time of its transforms alone: one forward, 13 inverse, of three colours"
    ]


def _transforms(light: Tensor, spectrum: Tensor, out: Tensor) -> None:
    with torch.inference_mode():
        torch.fft.rfft2(light)
        for _ in range(13):
            torch.fft.irfft2(spectrum, light.shape[-2:], out=out)
