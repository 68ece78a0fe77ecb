"""The stages of the learnt pipeline: each a dictionary of sensible settings, of which a picture gets a convex mix.

Section 3 of the paper ("Model-Based Image Signal Processors via Learnable Dictionaries"). A stage has

    mix(weights (B,N)) -> setting            a convex combination of atoms
    render(x, setting) -> x                  RAW towards RGB
    undo(x, setting) -> x                    RGB towards RAW

Since white balance, colour matrices and monotone curves are convex sets, every mix of good atoms is a good setting.
Pixels are (B, 3, H, W); all stages work on each pixel for itself, so that any selection of pixels will do.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.restoration.model_isp.operators import (
    BLUE,
    DIGITAL,
    RED,
    apply_gains,
    channel_gains,
    mixed_matrix,
    safe_invert_gains,
)

__all__ = ["ColourMatrix", "LensShading", "Tone", "WhiteBalance", "curve", "inverse_curve", "pixel_grid"]

LEAST_STEP = 1e-3  # of a tone curve between two knots, before normalising: keeps it invertible


def pixel_grid(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Places of pixels in their picture, (1, len(rows), len(columns), 2): across and down, each in (-1, 1).

    Args:
        rows, columns: indices of pixels.
        height, width: of the whole picture.
    """
    v, u = (rows + 0.5) * (2 / height) - 1, (columns + 0.5) * (2 / width) - 1
    v, u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack((u, v), -1)[None]


class LensShading(nn.Module):
    """Gain maps, at least 1 everywhere: four Gaussians dug out of a constant, and an 8x8 map, bilinear (sizes ours).

        L(u, v) = max(1, 1 + sum_k a_k (1 - exp(-|C_k^T (p - m_k)|^2 / 2)) + residual(u, v)),   p = (u, v) in (-1, 1)^2

    Args:
        atoms: N.
        gaussians: K.
        residual: side of the map.

    Attributes:
        dictionary: (N, K, 6): mean (u, v), logarithms of C's diagonal, C's lower corner, amplitude a.
    """

    def __init__(self, atoms: int = 4, gaussians: int = 4, residual: int = 8) -> None:
        super().__init__()
        start = torch.zeros(atoms, gaussians, 6)
        start[..., :2] = 0.15 * torch.randn(atoms, gaussians, 2)  # centred and not quite
        start[..., 2:4] = 0.3 * torch.randn(atoms, gaussians, 1)  # about as wide as the picture
        self.dictionary = nn.Parameter(start)  # amplitudes are zero: no shading to begin with
        self.residual = nn.Parameter(torch.zeros(atoms, residual, residual))

    def maps(self, grid: Tensor) -> Tensor:
        """The atoms' gain maps at places (b, H, W, 2): (b, N, H, W)."""
        mean, diagonal, corner, amplitude = self.dictionary.split((2, 2, 1, 1), -1)
        d = grid[:, None, None] - mean[None, :, :, None, None]  # (b, N, K, H, W, 2)
        scale = diagonal.exp()[None, :, :, None, None]
        u = d[..., 0] * scale[..., 0] + d[..., 1] * corner[None, ..., None]
        v = d[..., 1] * scale[..., 1]
        dug = amplitude[None, ..., None] * -torch.expm1(-0.5 * (u * u + v * v))
        residual = self.residual[None].expand(len(grid), -1, -1, -1)
        coarse = F.grid_sample(residual, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return (1 + dug.sum(2) + coarse).clamp_min(1)

    def strip(self, top: int, rows: int, height: int, width: int) -> Tensor:
        """The atoms' maps (N, rows, width) of some rows of a picture: as `maps`, a sixth of its memory.

        On a grid the second term of a Gaussian's exponent depends on the row alone, and bilinear weights separate.
        """
        grid = pixel_grid(torch.arange(top, top + rows).float(), torch.arange(width).float(), height, width)
        across, down = grid[0, 0, :, 0], grid[0, :, 0, 1]
        count, side = len(self.residual), self.residual.shape[-1]
        knots = torch.arange(side).float()
        hats = [(1 - ((p + 1) * ((side - 1) / 2) - knots[:, None]).abs()).clamp_min(0) for p in (down, across)]
        made = (hats[0].T @ self.residual @ hats[1]).add_(1)
        for n in range(count):
            for mean_u, mean_v, log_u, log_v, corner, amplitude in self.dictionary[n]:
                u = ((across - mean_u) * log_u.exp())[None] + ((down - mean_v) * corner)[:, None]
                v = ((down - mean_v) * log_v.exp()).square_()[:, None]
                made[n].sub_(u.square_().add_(v).mul_(-0.5).expm1_().mul_(amplitude))
        return made.clamp_min_(1)

    def mix(self, weights: Tensor) -> Tensor:
        """The weights themselves: maps are mixed where they are needed."""
        return weights

    def gain(self, setting: Tensor, grid: Tensor) -> Tensor:
        """The gain map (B, 1, H, W) of a mix at places (1 or B, H, W, 2)."""
        return torch.einsum("bn,bnhw->bhw", setting, self.maps(grid).expand(len(setting), -1, -1, -1))[:, None]

    def render(self, x: Tensor, setting: Tensor, grid: Tensor) -> Tensor:
        return x * self.gain(setting, grid)

    def undo(self, x: Tensor, setting: Tensor, grid: Tensor) -> Tensor:
        return x / self.gain(setting, grid)


class WhiteBalance(nn.Module):
    """White balance and digital gain.

    Attributes:
        dictionary: (N, 3): logarithms of digital gain, red and blue; starts in the ranges of Brooks et al.
    """

    def __init__(self, atoms: int = 8) -> None:
        super().__init__()
        digital = 1 / (DIGITAL[0] + DIGITAL[1] * torch.randn(atoms)).clamp(0.4, 1.2)
        red, blue = (low + (high - low) * torch.rand(atoms) for low, high in (RED, BLUE))
        self.dictionary = nn.Parameter(torch.stack((digital, red, blue), -1).log())

    def mix(self, weights: Tensor) -> Tensor:
        """Gains of the channels (B, 3)."""
        return channel_gains(*(weights @ self.dictionary.exp()).unbind(-1))

    def render(self, x: Tensor, setting: Tensor) -> Tensor:
        return apply_gains(x, setting)

    def undo(self, x: Tensor, setting: Tensor) -> Tensor:
        return safe_invert_gains(x, setting).clamp(0, 1)


class ColourMatrix(nn.Module):
    """Camera colours to linear sRGB.

    Attributes:
        dictionary: (N, 3, 3); an atom's rows are shifted to sum 1 (`atoms`), which keeps white white.
    """

    def __init__(self, atoms: int = 8) -> None:
        super().__init__()
        weights = torch.rand(atoms, 4) + 1e-8
        self.dictionary = nn.Parameter(torch.linalg.inv(mixed_matrix(weights / weights.sum(-1, keepdim=True))))

    def atoms(self) -> Tensor:
        """The matrices (N, 3, 3). Shifted, not divided: a row that learns to sum to zero would be divided by that."""
        return self.dictionary + (1 - self.dictionary.sum(-1, keepdim=True)) / 3

    def mix(self, weights: Tensor) -> Tensor:
        """Matrices (B, 3, 3), rows sum to 1."""
        return torch.einsum("bn,nij->bij", weights, self.atoms())

    def render(self, x: Tensor, setting: Tensor) -> Tensor:
        return (setting @ x.flatten(2)).view_as(x).clamp(0, 1)

    def undo(self, x: Tensor, setting: Tensor) -> Tensor:
        exact = setting if setting.dtype == torch.float64 else setting.float()  # nothing is inverted in half precision
        return (torch.linalg.inv(exact).to(setting) @ x.flatten(2)).view_as(x).clamp(0, 1)


class Tone(nn.Module):
    """A monotone curve for each channel: straight between knots at equal distances.

    Attributes:
        dictionary: (N, 3, T-1): what softplus makes the step between two knots of, normalised to sum 1.
    """

    def __init__(self, atoms: int = 8, knots: int = 16) -> None:
        super().__init__()
        x = torch.linspace(0, 1, knots)
        bend = torch.linspace(-0.5, 1, atoms)[:, None]  # atoms from a softened to a full smoothstep
        steps = (x + bend * (x * x * (3 - 2 * x) - x)).diff()  # (N, T-1), positive
        wanted = steps * (knots - 1) + 1e-2
        start = torch.log(torch.expm1(wanted))[:, None].expand(-1, 3, -1)
        self.dictionary = nn.Parameter(start + 0.02 * torch.randn_like(start))

    def mix(self, weights: Tensor) -> Tensor:
        """Curves (B, 3, T): values at the knots, from 0 to 1, rising."""
        steps = F.softplus(self.dictionary) + LEAST_STEP
        steps = torch.einsum("bn,nct->bct", weights, steps / steps.sum(-1, keepdim=True))
        return F.pad(steps.cumsum(-1), (1, 0))

    def render(self, x: Tensor, setting: Tensor) -> Tensor:
        return curve(x, setting)

    def undo(self, x: Tensor, setting: Tensor) -> Tensor:
        return inverse_curve(x, setting)


def curve(x: Tensor, knots: Tensor) -> Tensor:
    """Evaluate curves: x (B, 3, H, W), clamped to [0, 1]; knots (B, 3, T), values at 0, 1/(T-1), ..., 1."""
    flat, last = x.flatten(2).clamp(0, 1) * (knots.shape[-1] - 1), knots.shape[-1] - 2
    i = flat.detach().long().clamp_max(last)
    low, high = knots.gather(2, i), knots.gather(2, i + 1)
    return (low + (high - low) * (flat - i)).view_as(x)


def inverse_curve(y: Tensor, knots: Tensor) -> Tensor:
    """The x in [0, 1] with curve(x, knots) = y: the same line with its axes swapped. Shapes as in `curve`."""
    first, last = knots[..., :1], knots[..., -1:]
    flat = torch.minimum(torch.maximum(y.flatten(2), first), last)
    i = torch.searchsorted(knots.detach().contiguous(), flat.detach().contiguous(), right=True) - 1
    i = i.clamp(0, knots.shape[-1] - 2)
    low, high = knots.gather(2, i), knots.gather(2, i + 1)
    return ((i + (flat - low) / (high - low)) / (knots.shape[-1] - 1)).view_as(y)


def regularity(ccm: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Penalties of training: condition numbers of matrices (B, 3, 3) above 10, and lack of entropy of the weights.

    The second is the mean over stages of 1 - H(mean weights) / log N: zero when all atoms are used alike.
    """
    condition = torch.linalg.svdvals(ccm)
    excess = (condition[:, 0] / condition[:, -1].clamp_min(1e-4) - 10).clamp_min(0).mean()
    lacks: list[Any] = []
    for w in weights.values():
        mean = w.mean(0)
        entropy = -(mean * mean.clamp_min(1e-9).log()).sum()
        lacks.append(1 - entropy / torch.log(mean.new_tensor(float(len(mean)))))
    return excess, torch.stack(lacks).mean()
