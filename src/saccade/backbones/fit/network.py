"""The encoder and the denoiser: local layers inside groups, global layers on a few latents a group, in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.backbones.fit.layers import (
    EPS,
    Cross,
    FeedForward,
    Layer,
    block_causal,
    layer_pattern,
    sin_cos,
    sin_cos_2d,
    sin_cos_table,
)
from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.registry import register

__all__ = ["FIT", "FITDenoiser", "Interleaved", "TimeEmbedding"]


def table(kind: str, rows: int, columns: int, width: int) -> Tensor:
    """Positions of ``rows`` x ``columns`` places, (rows * columns, width): a parameter, or a fixed table.

    Raises:
        UsageError: an unknown kind, or a grid that has no such table.
    """
    if kind == "learned":
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(rows * columns, width), std=0.02))
    if kind == "sin_cos":
        if rows > 1 and columns > 1:
            return sin_cos_2d(rows, columns, width).flatten(0, 1)
        return sin_cos_table(rows * columns, width)
    if kind == "sin_cos2d":
        side = math.isqrt(rows * columns)
        if side * side != rows * columns:
            raise UsageError(f"sin_cos2d wants tokens that make a square, not {rows * columns}")
        return sin_cos_2d(side, side, width).flatten(0, 1)
    raise UsageError(f"position tables are 'learned', 'sin_cos' or 'sin_cos2d', not {kind!r}")


def stack(network: nn.ModuleList, i: int) -> nn.ModuleList:
    """The layers of block ``i``."""
    found = network[i]
    assert isinstance(found, nn.ModuleList)
    return found


class Interleaved(nn.Module):
    """What encoder, denoiser and decoder share: the blocks, the latents, both tables, the dial.

    The dial: ``budget`` b uses the first ceil(b m) latents of each group; global layers cost in proportion, their
    attention with the square. A network that is to be turned down is best trained with the dial at several settings.

    Args:
        layers: e.g. ``"(4)24(4)"``, see `layer_pattern`.
        x_size: tokens of a sequence, L; a multiple of ``num_groups``.
        num_groups: t.
        latents_per_group: m.
        x_dim, latent_dim: widths of tokens and latents.
        x_num_heads, latent_num_heads: heads of the local and the global layers.
        mlp_ratio: inner over outer width of feed-forwards.
        drop_path: chance of a branch to be left out in training.
        x_pos_encoding: ``"learned"``, ``"sin_cos"`` or, of a square of tokens, ``"sin_cos2d"``.
        latent_pos_encoding: ``"learned"`` or ``"sin_cos"``.
        local_attention: False leaves local layers their feed-forward alone.
        cross_ratio: of feed-forwards after the attentions between tokens and latents; 0 for none.
        normalise_source: a layer norm on what these attend.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        layers: str,
        x_size: int,
        num_groups: int,
        latents_per_group: int,
        x_dim: int,
        latent_dim: int,
        x_num_heads: int,
        latent_num_heads: int,
        mlp_ratio: float = 4,
        drop_path: float = 0.0,
        x_pos_encoding: str = "learned",
        latent_pos_encoding: str = "learned",
        local_attention: bool = True,
        cross_ratio: float = 0.0,
        normalise_source: bool = True,
    ) -> None:
        super().__init__()
        self.pattern = layer_pattern(layers)
        if min(x_dim, latent_dim, x_num_heads, latent_num_heads) < 1 or int(min(x_dim, latent_dim) * mlp_ratio) < 1:
            raise UsageError(
                f"widths {x_dim} and {latent_dim}, heads {x_num_heads} and {latent_num_heads} and an mlp_ratio of "
                f"{mlp_ratio} leave a layer without channels"
            )
        if not 0 <= drop_path < 1:
            raise UsageError(f"drop_path lies in [0, 1), not {drop_path}")
        if min(x_size, num_groups, latents_per_group) < 1 or x_size % num_groups:
            raise UsageError(
                f"x_size={x_size} tokens, num_groups={num_groups} and {latents_per_group} latents do not go together"
            )
        self.num_groups, self.latents, self.per_group = num_groups, latents_per_group, x_size // num_groups
        self.x_dim, self.latent_dim = x_dim, latent_dim
        self.latent_num_heads, self.mlp_ratio, self.normalise_source = latent_num_heads, mlp_ratio, normalise_source
        self.grad_checkpointing = False
        self._budget = 1.0
        for name, found in (
            ("x_table", table(x_pos_encoding, self.per_group, 1, x_dim)),
            ("latent_table", table(latent_pos_encoding, num_groups, latents_per_group, latent_dim)),
        ):
            if isinstance(found, nn.Parameter):
                self.register_parameter(name, found)
            else:
                self.register_buffer(name, found, persistent=False)
        heads, inner = min(x_num_heads, latent_num_heads), min(x_dim, latent_dim)

        def layers_of(count: int, width: int, of: int, attends: bool = True) -> nn.ModuleList:
            return nn.ModuleList(Layer(width, of, mlp_ratio, attends, drop_path) for _ in range(count))

        def cross(width: int, source: int) -> Cross:
            return Cross(width, source, heads, inner, cross_ratio, normalise_source)

        self.x_network = nn.ModuleList(layers_of(a, x_dim, x_num_heads, local_attention) for a, _ in self.pattern)
        self.l_network = nn.ModuleList(layers_of(b, latent_dim, latent_num_heads) for _, b in self.pattern if b)
        self.l2x = nn.ModuleList(cross(latent_dim, x_dim) for _, b in self.pattern if b)
        self.x2l = nn.ModuleList(cross(x_dim, latent_dim) for _ in self.pattern[1:])

    x_table: Tensor
    latent_table: Tensor

    @property
    def budget(self) -> float:
        """The share of the latents that is used."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)

    def budgets(self) -> Sequence[float]:
        """One setting for each number of latents a group."""
        return [k / self.latents for k in range(1, self.latents + 1)]

    @property
    def used(self) -> int:
        """Latents a group at the present budget."""
        return math.ceil(self._budget * self.latents - 1e-9)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute what is inside each layer again on the way back instead of keeping it."""
        self.grad_checkpointing = enable

    def run(self, layer: nn.Module, *given: Tensor | None, causal: bool = False) -> Tensor:
        """A layer's result; in training with checkpoints nothing inside it is kept."""
        told: dict[str, Any] = {"causal": True} if causal else {}
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            kept: Tensor = checkpoint(layer, *given, use_reentrant=False, **told)
            return kept
        out: Tensor = layer(*given, **told)
        return out

    def start(self, batch: int) -> Tensor:
        """The latents before the first block: (B, t, k, latent_dim)."""
        grid = self.latent_table.unflatten(0, (self.num_groups, self.latents))[:, : self.used]
        return grid.expand(batch, -1, -1, -1)

    def check_tokens(self, x: Tensor, width: int) -> None:
        """Refuse what is no sequence for this network; nothing is looked at during compilation and export.

        Raises:
            InputError: another shape or dtype.
        """
        wanted = (self.num_groups, self.per_group, width)
        if not torch.compiler.is_compiling() and (
            x.ndim != 4 or tuple(x.shape[1:]) != wanted or not x.is_floating_point()
        ):
            told = f"float (B, {wanted[0]} groups, {wanted[1]} tokens, {wanted[2]})"
            raise InputError(f"{type(self).__name__} takes {told}, not {x.dtype} {tuple(x.shape)}")

    def condition(self, i: int, z: Tensor, told: Any) -> Tensor:
        """What block ``i`` does to the latents (B, t k, d) before its global layers; nothing here."""
        return z

    def mask(self, device: torch.device) -> Tensor | None:
        """Of the global layers, True where a latent may look; None for everywhere."""
        return None

    def interleave(self, x: Tensor, z: Tensor, told: Any = None) -> tuple[Tensor, Tensor]:
        """All blocks: tokens (B, t, n, x_dim), latents (B, t, k, latent_dim) -> the same shapes."""
        batch, groups = x.shape[:2]
        mask = self.mask(x.device)
        x, z = x.flatten(0, 1), z.flatten(0, 1)  # groups become batch
        for i, (_, count) in enumerate(self.pattern):
            for layer in stack(self.x_network, i):
                x = self.run(layer, x)
            if count:
                z = self.run(self.l2x[i], z, x).unflatten(0, (batch, groups)).flatten(1, 2)  # (B, t k, d)
                z = self.condition(i, z, told)
                for layer in stack(self.l_network, i):
                    z = self.run(layer, z, mask)
                z = z.unflatten(1, (groups, -1)).flatten(0, 1)
                if i < len(self.pattern) - 1:
                    x = self.run(self.x2l[i], x, z)
        return x.unflatten(0, (batch, groups)), z.unflatten(0, (batch, groups))


class _Masked(Interleaved):
    """With ``mask="causal"`` the latents of a group see those of groups up to its own."""

    def __init__(self, *args: Any, mask: str = "none", **options: Any) -> None:
        super().__init__(*args, **options)
        if mask not in ("none", "causal"):
            raise UsageError(f"the mask is 'none' or 'causal', not {mask!r}")
        self.causal = mask == "causal"

    def mask(self, device: torch.device) -> Tensor | None:
        """Of the global layers."""
        return block_causal(self.num_groups, self.used).to(device) if self.causal else None


class FIT(_Masked):
    """The encoder (section 3): tokens in groups -> a feature for each token, and latents for each group.

    Args:
        args, options: as `Interleaved`, and ``mask`` (``"none"`` or ``"causal"``).
        in_dim: numbers of a token, e.g. 16 * 16 * 3 for a patch.
        extra_dim: numbers of extra tokens ``y``, e.g. a one-hot number of the sub-image; 0 for none.

    Shape: (B, t, n, in_dim) -> (B, t, n, x_dim) and (B, t, m, latent_dim), both normalised; with extra tokens
    (B, t, n', extra_dim) these come first: (B, t, n' + n, x_dim).
    """

    def __init__(self, *args: Any, in_dim: int, extra_dim: int = 0, **options: Any) -> None:
        super().__init__(*args, **options)
        if in_dim < 1 or extra_dim < 0:
            raise UsageError(f"a token has at least 1 number and extra ones 0 or more, not {in_dim} and {extra_dim}")
        self.in_dim, self.extra_dim = in_dim, extra_dim
        self.stem, self.stem_ln = nn.Linear(in_dim, self.x_dim), nn.LayerNorm(self.x_dim, EPS)
        if extra_dim:
            self.stem_y, self.stem_y_ln = nn.Linear(extra_dim, self.x_dim), nn.LayerNorm(self.x_dim, EPS)
        self.x_output_ln, self.l_output_ln = nn.LayerNorm(self.x_dim, EPS), nn.LayerNorm(self.latent_dim, EPS)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        self.check_tokens(x, self.in_dim)
        tokens = self.stem_ln(self.stem(x)) + self.x_table
        if (y is None) != (self.extra_dim == 0):
            raise InputError(f"this network takes extra tokens of {self.extra_dim} numbers (0: none)")
        if y is not None:
            self.check_extra(y, len(x))
            tokens = torch.cat([self.stem_y_ln(self.stem_y(y)), tokens], 2)
        tokens, z = self.interleave(tokens, self.start(len(x)))
        return self.x_output_ln(tokens), self.l_output_ln(z)

    def check_extra(self, y: Tensor, batch: int) -> None:
        """Refuse extra tokens that do not stand beside the groups; nothing is looked at during compilation and export.

        Raises:
            InputError: another shape.
        """
        wanted = (batch, self.num_groups, self.extra_dim)
        if not torch.compiler.is_compiling() and (y.ndim != 4 or (*y.shape[:2], y.shape[3]) != wanted):
            told = f"({wanted[0]}, {wanted[1]} groups, n, {wanted[2]})"
            raise InputError(f"this network takes extra tokens {told}, not {tuple(y.shape)}")


class TimeEmbedding(nn.Module):
    """A number, and perhaps more, as a vector: sines of 1000 t, standardised, Linear, SiLU, (more), Linear.

    Args:
        width: of the result; a quarter of it are sines and cosines.
        extra: how many further numbers come after the SiLU.

    Shape: (B,) or (B, 1 + extra) -> (B, width).
    """

    def __init__(self, width: int, extra: int = 0) -> None:
        super().__init__()
        if width % 8:
            raise UsageError(f"the time is told in a width that divides by 8, not {width}")
        self.width, self.extra = width, extra
        self.dense0, self.dense1 = nn.Linear(width // 4, width), nn.Linear(width + extra, width)

    def forward(self, time: Tensor) -> Tensor:
        if time.ndim not in (1, 2) or (1 if time.ndim == 1 else time.shape[1]) != 1 + self.extra:
            raise InputError(f"the time is (B, {1 + self.extra}), or (B,) where nothing comes with it")
        first, more = (time, None) if time.ndim == 1 else (time[:, 0], time[:, 1:])
        waves = sin_cos(first.to(torch.promote_types(first.dtype, torch.float32)) * 1000.0, self.width // 4)
        waves = waves - waves.mean(-1, keepdim=True)
        waves = waves / waves.square().mean(-1, keepdim=True).sqrt()
        x = F.silu(self.dense0(waves.to(self.dense0.weight.dtype)))
        out: Tensor = self.dense1(x if more is None else torch.cat([x, more.to(x.dtype)], -1))
        return out


class FITDenoiser(_Masked):
    """The denoiser of a diffusion (appendix; as in RIN): latents also attend the time and a condition.

    Args:
        args, options: as `Interleaved`, and ``mask`` (``"none"`` or ``"causal"``).
        out_dim: numbers of a token of the result, and of one that comes in.
        cond_dim: numbers of a condition.
        cond_proj: project it; else it must be of ``latent_dim``.
        self_cond: ``"latent"`` starts from what the latents were in the step before, else ``"none"``.
        time_extra: numbers that come with the time.

    Shape: (B, t, n, out_dim), time (B,) in [0, 1], condition (B, cond_dim) or (B, s, cond_dim)
    -> (B, t, n, out_dim), and latents (B, t, m, latent_dim) for the next step.
    """

    def __init__(
        self,
        *args: Any,
        out_dim: int,
        cond_dim: int,
        in_dim: int | None = None,
        cond_proj: bool = True,
        self_cond: str = "none",
        time_extra: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        if self_cond not in ("none", "latent"):
            raise UsageError(f"self_cond is 'none' or 'latent', not {self_cond!r}")
        width, latent = self.x_dim, self.latent_dim
        if min(out_dim, cond_dim, 1 if in_dim is None else in_dim) < 1 or time_extra < 0:
            raise UsageError(f"tokens and conditions have at least 1 number, not {out_dim}, {in_dim} and {cond_dim}")
        if not cond_proj and cond_dim != latent:
            raise UsageError(f"without a projection the condition has {latent} numbers, not {cond_dim}")
        self.in_dim, self.cond_dim = out_dim if in_dim is None else in_dim, cond_dim
        self.stem, self.stem_ln = nn.Linear(self.in_dim, width), nn.LayerNorm(width, EPS)
        self.time_emb = TimeEmbedding(latent, time_extra)
        self.cond_proj = nn.Linear(cond_dim, latent) if cond_proj else nn.Identity()
        self.l2c = nn.ModuleList(
            Cross(latent, latent, self.latent_num_heads, latent, normalise_source=self.normalise_source)
            for _, b in self.pattern
            if b
        )
        self.self_cond = self_cond == "latent"
        if self.self_cond:
            self.latent_prev_proj, self.latent_prev_ln = FeedForward(latent, self.mlp_ratio), nn.LayerNorm(latent, EPS)
            nn.init.zeros_(self.latent_prev_ln.weight)
        self.x_output_ln, self.x_output_linear = nn.LayerNorm(width, EPS), nn.Linear(width, out_dim)

    def condition(self, i: int, z: Tensor, told: Any) -> Tensor:
        """Attend the time and the condition."""
        return self.run(self.l2c[i], z, told)

    def forward(
        self, x: Tensor, time: Tensor, cond: Tensor, latents_prev: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.check_tokens(x, self.in_dim)
        self.check_told(len(x), time, cond, latents_prev)
        z = self.start(len(x))
        if self.self_cond:  # without latents from before, zeros go through: their biases act, as published
            before = torch.zeros_like(z) if latents_prev is None else latents_prev[:, :, : self.used]
            z = z + self.latent_prev_ln(before + self.latent_prev_proj(before))
        projected = self.cond_proj(cond if cond.ndim == 3 else cond[:, None])
        told = torch.cat([self.time_emb(time)[:, None], projected], 1)
        tokens, z = self.interleave(self.stem_ln(self.stem(x)) + self.x_table, z, told)
        return self.x_output_linear(self.x_output_ln(tokens)), z

    def check_told(self, batch: int, time: Tensor, cond: Tensor, before: Tensor | None) -> None:
        """Refuse what does not go with ``batch`` sequences; nothing is looked at during compilation and export.

        Raises:
            InputError: another shape of the condition, the time or the latents from before, or latents for a network
                that does not take them.
        """
        if torch.compiler.is_compiling():
            return
        if cond.ndim not in (2, 3) or cond.shape[-1] != self.cond_dim or len(cond) != batch:
            told = f"({batch}, {self.cond_dim}) or ({batch}, s, {self.cond_dim})"
            raise InputError(f"the condition is {told}, not {tuple(cond.shape)}")
        if time.ndim not in (1, 2) or len(time) != batch:
            raise InputError(f"the time is ({batch},), or more numbers for each, not {tuple(time.shape)}")
        if before is None:
            return
        if not self.self_cond:
            raise InputError("this network takes no latents from before: build it with self_cond='latent'")
        wanted = (batch, self.num_groups, self.latent_dim)
        if before.ndim != 4 or (*before.shape[:2], before.shape[3]) != wanted or before.shape[2] < self.used:
            told = f"({wanted[0]}, {wanted[1]} groups, at least {self.used}, {wanted[2]})"
            raise InputError(f"latents from before are {told}, not {tuple(before.shape)}")


@register("fit", system="fit", task="token encoding")
def fit(**options: Any) -> nn.Module:
    """FIT's encoder of long sequences; options as `FIT`. No network of the paper has published weights or a name."""
    return FIT(**options)


@register("fit_denoiser", system="fit", task="token denoising")
def fit_denoiser(**options: Any) -> nn.Module:
    """FIT's denoiser for diffusion; options as `FITDenoiser`."""
    return FITDenoiser(**options)
