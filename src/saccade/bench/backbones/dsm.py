"""DSM (a reconstruction; there is no official code) beside its definition run plainly, and the transform's forms."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.dsm import SpectrumMixer, cell_means
from saccade.bench.classify import backbone_contest, eager, exchanged
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.ops.dct import dct2

__all__ = ["Plain", "contests", "plain", "rows", "whole_dct", "whole_idct"]

NOTE = "DSM has no official code: its rows compare our network with the definition of our reconstruction, run plainly."


def whole_dct(x: Tensor) -> Tensor:
    """The transform along the last axis through a complex FFT of the reordered signal, as torch-dct has it."""
    length = x.shape[-1]
    ordered = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], -1)
    k = torch.arange(length, dtype=x.dtype, device=x.device)
    turn = torch.polar(torch.ones_like(k), -math.pi * k / (2 * length))
    out = (torch.fft.fft(ordered) * turn).real * math.sqrt(2 / length)
    return torch.cat([out[..., :1] / math.sqrt(2), out[..., 1:]], -1)


def whole_idct(c: Tensor) -> Tensor:
    """The inverse of `whole_dct`."""
    length = c.shape[-1]
    c = torch.cat([c[..., :1] * math.sqrt(2), c[..., 1:]], -1) * math.sqrt(length / 2)
    k = torch.arange(length, dtype=c.dtype, device=c.device)
    turn = torch.polar(torch.ones_like(k), math.pi * k / (2 * length))
    imaginary = -torch.cat([torch.zeros_like(c[..., :1]), c[..., 1:].flip(-1)], -1)
    ordered = torch.fft.ifft(torch.complex(c, imaginary) * turn).real
    out = torch.empty_like(c)
    out[..., ::2] = ordered[..., : (length + 1) // 2]
    out[..., 1::2] = ordered[..., (length + 1) // 2 :].flip(-1)
    return out


class Plain(nn.Module):
    """The mixer step by step: both transforms of all channels by FFTs, weights as a tensor, P2 on tokens."""

    def __init__(self, ours: SpectrumMixer) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        m = self.ours
        u = F.gelu(m.p1(x)).permute(0, 3, 1, 2)  # (B, E, H, W)
        f = whole_dct(whole_dct(u).transpose(-1, -2)).transpose(-1, -2)
        height, width = u.shape[2:]
        energies = f.square().unflatten(1, (m.groups, -1)).mean(2).flatten(2)  # (B, G, H W)
        means = energies @ cell_means(height, width, height, width, x.device).mT
        assert m.gen is not None
        described = torch.cat([torch.log(1 + (1e-6 + means).sqrt()).flatten(1), u.mean((2, 3))], 1)
        shares = m.gen(described).unflatten(1, (m.bases, -1)).softmax(1)  # (B, K, E)
        phi = m.spectra((height, width)).repeat_interleave(u.shape[1] // m.groups, 1)  # (K, E, H, W)
        y = f * (1 + torch.einsum("bke,kehw->behw", shares, phi))
        y = whole_idct(whole_idct(y).transpose(-1, -2)).transpose(-1, -2)
        out: Tensor = m.p2(y.permute(0, 2, 3, 1))
        return out


def plain(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network with `Plain` mixers; of the same weights."""
    return exchanged(copy.deepcopy(model), {SpectrumMixer: Plain})


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """DSM-T."""
    yield backbone_contest("dsm_t", plain, size, threads, notes=(NOTE,))


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The transform of 64 channels in its forms, and as torch-dct computes it; at 28 and 56 a side."""
    found: list[Row] = []
    for side in (28, 56):
        x = torch.randn(1, 64, side, side, generator=torch.Generator().manual_seed(0))
        contenders = [
            eager("dct2, matrix", dct2, x, threads),
            eager("dct2, Fourier", lambda x: dct2(x, form="fourier"), x, threads),
            eager("dct2, naive", lambda x: dct2(x, form="naive"), x, threads),
            eager(
                "complex FFTs (torch-dct's way)",
                lambda x: whole_dct(whole_dct(x).transpose(-1, -2)).transpose(-1, -2),
                x,
                threads,
            ),
        ]
        timings = measure(contenders, 5 * rounds, warmup=5)
        command, size = f"saccade bench backbones --system dsm --threads {threads}", f"64x{side}x{side}"
        found += compare(timings, contenders[0].name, system="dsm", what="the transform", size=size, command=command)
    return found, [NOTE]
