"""The network: blocks of two pathways, slow ones that make kernels and fast ones that use them.

    w = G()                          the global kernel (1, C, S, S), from coordinates alone
    c = w * x                        the hyper-kernel times the activations: the hidden, input-dependent kernel
    out = c @ fast, c @ m, c @ h     per channel a product of S x S matrices: rows meet columns
    concat of ten branches -- 1x1 -- grouped standardisation -- GELU -- + b

Nothing is pooled, strided or added to its input.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saccade.backbones.hyperzzw.slow_networks import ChannelKernel, GlobalKernel, LocalKernel
from saccade.errors import InputError, UsageError
from saccade.nn.backbone import Backbone

__all__ = ["GROUPS", "HyperChannel", "HyperInteraction", "HyperZZW", "RecurrentGate", "SlowFastBlock", "tiled"]

GROUPS = 12  # of the standardisation behind the concatenation
PENALTY = 5e-5  # of the norms in the published loss
EPS = 1e-5


def standardised(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Mean 0 and (biased) variance 1 over some axes, nothing learnt."""
    var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(var + EPS)


def instance_standardised(x: Tensor) -> Tensor:
    """Each map of each picture by itself: (B, C, H, W) -> the same."""
    return standardised(x, (2, 3))


def tiled(x: Tensor, channels: int) -> Tensor:
    """The whole block of channels again and again: (B, c, ...) -> (B, channels, ...), 0..c-1, 0..c-1, ...

    Raises:
        UsageError: c does not divide ``channels``.
    """
    times, rest = divmod(channels, x.shape[1])
    if rest or not times:
        raise UsageError(f"{x.shape[1]} channels cannot be repeated to {channels}")
    return x if times == 1 else torch.cat([x] * times, 1)


class BatchStandardise(nn.Module):
    """Standardisation by the statistics of the batch, in evaluation too, unless they are tracked.

    Args:
        channels: C.
        tracked: keep running means and variances (momentum 0.1), and use them in evaluation.

    Shape: (B, C, H, W) -> the same.
    """

    def __init__(self, channels: int, tracked: bool = False) -> None:
        super().__init__()
        self.tracked = tracked
        if tracked:
            self.register_buffer("running_mean", torch.zeros(channels))
            self.register_buffer("running_var", torch.ones(channels))
            self.running_mean: Tensor
            self.running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.tracked:
            return standardised(x, (0, 2, 3))
        if not self.training:
            mean, var = self.running_mean[:, None, None], self.running_var[:, None, None]
            return (x - mean) * torch.rsqrt(var + EPS)
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0, keepdim=True)
        with torch.no_grad():
            self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), 0.1)
            self.running_var.lerp_(var.flatten().to(self.running_var.dtype), 0.1)
        return (x - mean) * torch.rsqrt(var + EPS)


class GroupedStandardise(nn.Module):
    """Twelve groups of channels, by turns standardised over the batch and over each picture (G-IBS).

    Shape: (B, C, H, W) -> the same; C divides by 12.
    """

    def __init__(self, channels: int, tracked: bool = False) -> None:
        super().__init__()
        self.batch = BatchStandardise(channels // 2, tracked)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, (GROUPS // 2, 2, x.shape[1] // GROUPS))
        even, odd = pairs.unbind(2)  # (B, 6, C/12, H, W) each
        both = torch.stack([self.batch(even.flatten(1, 2)).view(even.shape), standardised(odd, (3, 4))], 2)
        return both.flatten(1, 3)


def _conv(inputs: int, outputs: int, *, normal: bool = False) -> nn.Conv2d:
    """1x1 with zero bias; Kaiming uniform of gain 1, or normal (gain of a ReLU)."""
    layer = nn.Conv2d(inputs, outputs, 1)
    if normal:
        nn.init.kaiming_normal_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class RecurrentGate(nn.Module):
    """Y (gelu(IS(K x * Q V x)) + p): a gated unit of four 1x1 convolutions and a learnt map (RGU)."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.k, self.v, self.q, self.y = (_conv(width, width) for _ in range(4))
        self.bias_map = nn.Parameter(torch.zeros(1, 1, side, side))

    def forward(self, x: Tensor) -> Tensor:
        mixed = F.gelu(instance_standardised(self.k(x) * self.q(self.v(x)))) + self.bias_map
        out: Tensor = self.y(mixed)
        return out


class HyperChannel(nn.Module):
    """x * sigmoid(hk * y * y) with y the means of the channels and hk from their numbers (HCI)."""

    def __init__(self, width: int, hidden: int, omega: float) -> None:
        super().__init__()
        self.slow_channel = ChannelKernel(width, hidden, 2, omega)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3))
        score = torch.sigmoid(self.slow_channel()[0] * y * y)
        return x * score[:, :, None, None]


class HyperInteraction(nn.Module):
    """x gated by products of a score for every channel and one for every place, both of y (HI)."""

    def __init__(self, width: int, side: int, hidden: int, spatial_hidden: int, omega: float) -> None:
        super().__init__()
        self.slow_channel = ChannelKernel(width, hidden, 2, omega)
        self.slow_spatial = GlobalKernel(side, 1, spatial_hidden, 2, omega)

    def forward(self, y: Tensor, x: Tensor | None = None) -> Tensor:
        channel = self.slow_channel()[0] * y.mean((2, 3)).square()  # (B, C)
        place = self.slow_spatial() * y.mean(1, keepdim=True).square()  # (B, 1, S, S)
        return (y if x is None else x) * torch.sigmoid(place * channel[:, :, None, None])


class LocalBranch(nn.Module):
    """Depthwise convolution by a generated kernel, 1x1, batch standardisation, GELU, + b.

    Shape: features that make the kernel, and those that it is used on, both (B, C, S, S) -> (B, C, S, S).
    """

    def __init__(
        self, width: int, side: int, kernel: int, hidden: int, depth: int, omega: float, tracked: bool
    ) -> None:
        super().__init__()
        self.slow = LocalKernel(kernel, side, width, hidden, depth, omega, tracked)
        self.mix = _conv(width, width, normal=True)
        self.norm = BatchStandardise(width, tracked)
        self.bias = nn.Parameter(torch.zeros(1))
        self.edge = kernel // 2

    def forward(self, source: Tensor, x: Tensor) -> Tensor:
        kernel = self.slow(source)
        convolved = F.conv2d(x, kernel, padding=self.edge, groups=x.shape[1])
        return F.gelu(self.norm(self.mix(convolved))) + self.bias


class SlowFastBlock(nn.Module):
    """One block (SFNE).

    Args:
        width: channels C of the input.
        out: channels of the output, a multiple of 12.
        earlier: how many earlier features join the concatenation.
        side: of the maps, S.
        depth, hidden: of the global slow network.
        local: sides of the four local kernels.
        local_hidden, channel_hidden, interaction_hidden, spatial_hidden: of the other slow networks.
        omega: frequency of all of them at the start.
        drop: dropout of channels.
        tracked: running statistics for evaluation.

    Shape: (B, C, S, S) and earlier features (B, c_i, S, S) with c_i dividing C -> (B, out, S, S).
    """

    def __init__(
        self,
        width: int,
        out: int,
        earlier: int,
        side: int,
        *,
        depth: int,
        hidden: int,
        local: Sequence[int],
        local_hidden: int,
        channel_hidden: int,
        interaction_hidden: int,
        spatial_hidden: int,
        omega: float,
        drop: float,
        tracked: bool,
    ) -> None:
        super().__init__()
        self.slow_global = GlobalKernel(side, width, hidden, depth, omega)
        self.rgu, self.rgu_hyper = RecurrentGate(width, side), RecurrentGate(width, side)
        self.mlp = _conv(width, width)
        self.hyper_channel = HyperChannel(width, channel_hidden, omega)
        self.interaction = HyperInteraction(width, side, interaction_hidden, spatial_hidden, omega)
        self.local = nn.ModuleList(LocalBranch(width, side, k, local_hidden, 2, omega, tracked) for k in local)
        self.bottleneck = _conv((10 + earlier) * width, out, normal=True)
        self.norm = GroupedStandardise(out, tracked)
        self.bias = nn.Parameter(torch.zeros(1))
        self.drop = nn.Dropout2d(drop)

    def forward(self, x: Tensor, *earlier: Tensor, kernel: Tensor | None = None) -> Tensor:
        product = x * (self.slow_global() if kernel is None else kernel)
        fast = instance_standardised(self.rgu_hyper(product) + self.rgu(x))
        mixed = instance_standardised(self.mlp(x))
        gated = instance_standardised(self.hyper_channel(x))
        out, out_x, out_h = product @ fast, product @ mixed, product @ gated  # rows by columns, channel by channel
        first, second, third, fourth = (
            branch(source, target)
            for branch, source, target in zip(self.local, (x, gated, mixed, x), (gated, x, x, mixed), strict=True)
        )
        before = [tiled(e, x.shape[1]) for e in earlier]
        parts = [out, second, *before[:1], fast, out_x, first, torch.sigmoid(out) * out, third, out_h, fourth]
        parts += [*before[1:], self.interaction(out, x)]
        joined = F.gelu(self.norm(self.bottleneck(torch.cat(parts, 1)))) + self.bias
        dropped: Tensor = self.drop(joined)
        return dropped


class HyperZZW(Backbone):
    """Slow-fast network with kernels as large as the picture ("Terminator").

    Every block sees the picture at full resolution. Block i > 1 also takes the output of block i - 2, from the fifth
    on that of i - 3 too.

    Args:
        widths: channels behind each block: multiples of 12, each a multiple of the one before, the first of
            ``in_chans``.
        depths: layers of the global slow networks, one a block.
        hidden: channels of the global slow networks.
        local: sides of the four local kernels, odd.
        local_hidden: of their generators.
        channel_hidden, interaction_hidden, spatial_hidden: of the generators that score channels, channels within the
            interaction, and places.
        omega: frequency of all generators at the start; the published configuration lacks it, 10 to 30 work at 32 px.
        drops: dropout of channels behind each block.
        img_size: side of the pictures, S; all maps are S x S.
        eval_stats: ``"batch"``: as published, evaluation too uses the statistics of the batch, so that a picture's
            logits depend on the pictures beside it. ``"running"``: means tracked in training; a picture's logits are
            its own.
        options: ``num_classes``, ``in_chans``, ``drop_rate``, ``global_pool`` (`Backbone`).

    Shape: (B, 3, S, S) -> (B, num_classes); maps at stride 1.

    Raises:
        UsageError: the numbers describe no network.
    """

    def __init__(
        self,
        widths: Sequence[int] = (12, 36, 72, 144, 288),
        depths: Sequence[int] = (3, 2, 2, 2, 2),
        hidden: int = 64,
        local: Sequence[int] = (3, 9, 5, 7),
        local_hidden: int = 32,
        channel_hidden: int = 32,
        interaction_hidden: int = 16,
        spatial_hidden: int = 64,
        omega: float = 10.0,
        drops: Sequence[float] = (0.0, 0.05, 0.05, 0.05, 0.05),
        img_size: int = 32,
        eval_stats: str = "batch",
        **options: Any,
    ) -> None:
        super().__init__(widths, [1] * len(widths), least=1, size=img_size, **options)
        inputs = (self.in_chans, *widths[:-1])
        _check(inputs, widths, depths, local, drops, img_size, eval_stats)
        self.eval_stats = eval_stats
        self.stages = nn.ModuleList(
            SlowFastBlock(
                inputs[i],
                widths[i],
                len(_sources(i)),
                img_size,
                depth=depths[i],
                hidden=hidden,
                local=local,
                local_hidden=local_hidden,
                channel_hidden=channel_hidden,
                interaction_hidden=interaction_hidden,
                spatial_hidden=spatial_hidden,
                omega=omega,
                drop=drops[i],
                tracked=eval_stats == "running",
            )
            for i in range(len(widths))
        )
        self.reset_classifier(self.num_classes)

    def check(self, x: Tensor) -> None:
        """As `Backbone.check`; statistics of a single number are refused, those of a single picture get a warning."""
        super().check(x)
        if torch.compiler.is_compiling():
            return
        if x.shape[0] * x.shape[2] * x.shape[3] == 1:
            raise InputError("one picture of one pixel has no statistics to standardise by")
        if x.shape[0] == 1 and not self.training and self.eval_stats == "batch":
            warnings.warn(
                "the statistics of the batch are those of one picture here: logits differ from those in a larger "
                "batch; eval_stats='running' keeps tracked ones",
                stacklevel=2,
            )

    def maps(self, x: Tensor) -> Iterator[Tensor]:
        """The map behind each block, (B, C, S, S)."""
        self.check(x)
        yield from self._maps(x, [None] * len(self.stages))

    def _maps(self, x: Tensor, kernels: Sequence[Tensor | None]) -> Iterator[Tensor]:
        found: list[Tensor] = []
        for i, (stage, kernel) in enumerate(zip(self.stages, kernels, strict=True)):
            earlier = [found[j] for j in _sources(i)]
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(stage, x, *earlier, kernel=kernel, use_reentrant=False)
            else:
                x = stage(x, *earlier, kernel=kernel)
            found.append(x)
            yield x

    def _blocks(self) -> list[SlowFastBlock]:
        return [stage for stage in self.stages if isinstance(stage, SlowFastBlock)]

    def kernels(self) -> list[Tensor]:
        """The global kernels of all blocks, (1, C_i, S, S); they depend on no input."""
        return [block.slow_global() for block in self._blocks()]

    def with_slow_neural_loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and `slow_neural_loss` of the kernels that made them: what a step of training wants."""
        self.check(x)
        kernels = self.kernels()
        for last in self._maps(x, kernels):
            found = last
        return self.forward_head(found), slow_neural_loss(kernels)

    def with_auxiliary_loss(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and what the published training adds to the cross entropy: what `saccade train classify` takes."""
        logits, slow = self.with_slow_neural_loss(x)
        return logits, slow + PENALTY * self.penalty()

    def penalty(self) -> Tensor:
        """Norms (not squared) of the mixing layers' parameters, plus 1e-6 of those of the slow networks' weights.

        The published training adds `PENALTY` times this to the loss.
        """
        layers = [m for b in self._blocks() for m in (b.mlp, b.bottleneck, *b.local)]
        fast = [p for m in layers for n, p in m.named_parameters() if not n.startswith("slow.")]
        planar = [m for m in self.modules() if isinstance(m, LocalKernel | GlobalKernel) and m.places.shape[1] == 2]
        slow = [p for m in planar for n, p in m.named_parameters() if n.endswith("weight")]
        return sum((p.norm() for p in fast), torch.zeros(())) + 1e-6 * sum((p.norm() for p in slow), torch.zeros(()))

    def make_head(self, num_classes: int) -> nn.Module:
        """The classifier, initialised as torch does: with `Backbone`'s small numbers it learns far more slowly.

        (Measured after 372 steps on CIFAR-10 at 16 px: 42.4 against 27.0 %.)
        """
        return nn.Linear(self.num_features, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """As `Backbone.group_matcher`: the blocks are the layers."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}


def slow_neural_loss(kernels: Sequence[Tensor], form: str = "tile") -> Tensor:
    """How far the global kernels of all pairs of blocks are from each other; keeps later blocks near earlier ones.

    Args:
        kernels: (1, C_i, S, S), each C_i dividing the next.
        form: ``"tile"``: mean squared difference of the kernel and the earlier one, repeated along the channels;
            ``"sum"``: of the sums over the channels.

    Raises:
        UsageError: another form.
    """
    if form not in ("tile", "sum"):
        raise UsageError(f"the slow-neural loss has the forms 'tile' and 'sum', not {form!r}")
    total = kernels[0].new_zeros(())
    for i, late in enumerate(kernels):
        for early in kernels[:i]:
            if form == "tile":
                total = total + F.mse_loss(tiled(early, late.shape[1]), late)
            else:
                total = total + F.mse_loss(early.sum(1), late.sum(1))
    return total


def _sources(i: int) -> list[int]:
    """Numbers of the blocks whose outputs join block i's concatenation, in its order."""
    return [i - 2, i - 3] if i >= 4 else [i - 2] if i >= 2 else []


def _check(
    inputs: Sequence[int],
    widths: Sequence[int],
    depths: Sequence[int],
    local: Sequence[int],
    drops: Sequence[float],
    img_size: int,
    eval_stats: str,
) -> None:
    if len(depths) != len(widths) or len(drops) != len(widths):
        raise UsageError(f"depths has {len(depths)} and drops {len(drops)} entries for {len(widths)} blocks")
    for i, (width, out) in enumerate(zip(inputs, widths, strict=True)):
        if out < 1 or out % GROUPS:
            raise UsageError(f"widths[{i}] is {out}, it must divide by {GROUPS}: that many groups are standardised")
        if out % width:
            raise UsageError(f"widths[{i}] is {out}, it must be a multiple of {width}: earlier features are repeated")
    if len(local) != 4 or any(k < 1 or k % 2 == 0 for k in local):
        raise UsageError(f"local has four odd sides of kernels, not {tuple(local)}")
    if img_size < 1:
        raise UsageError(f"img_size is {img_size} px, it must be at least 1")
    if eval_stats not in ("batch", "running"):
        raise UsageError(f"eval_stats is 'batch' or 'running', not {eval_stats!r}")
