"""The network of PCSR: one encoder, two upsamplers, a classifier, and the dials that decide between them."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.restoration.pcsr import routing
from saccade.restoration.pcsr.export import OneSampler
from saccade.restoration.pcsr.grid import Fast, FreeGrid, PhaseGrid, queries
from saccade.restoration.pcsr.sampler import Sampler
from saccade.restoration.pcsr.training import loss

__all__ = ["PCSR", "Report"]

STRIP = 1 << 16  # input pixels that are encoded or interpolated at once on a CPU


@dataclass(frozen=True)
class Report:
    """What the last run did.

    Attributes:
        pixels: output pixels, of the whole batch.
        heavy: those that the heavy sampler predicted; the light one predicted the others.
        macs: multiply-accumulates executed by encoder, classifier and samplers.
        full_macs: what the same pictures cost with every pixel heavy and no classifier.
        threshold: margin (logit_heavy - logit_light) above which a pixel was heavy.
        floored: the budget was below what all-light costs, so every pixel was light.
    """

    pixels: int
    heavy: int
    macs: int
    full_macs: int
    threshold: float
    floored: bool = False

    @property
    def heavy_share(self) -> float:
        """Share of pixels that went to the heavy sampler, in [0, 1]."""
        return self.heavy / self.pixels

    @property
    def light_share(self) -> float:
        """Share of pixels that went to the light sampler, in [0, 1]."""
        return 1 - self.heavy_share

    @property
    def fraction(self) -> float:
        """Executed over full cost."""
        return self.macs / self.full_macs


class PCSR(nn.Module):
    """Pixel-level classification for single-image super-resolution (figure 2).

    The last dial that was set decides how many pixels the heavy sampler gets:

    - ``k`` (default 0, the trained balance): the paper's knob. Higher is lighter; -25 is all heavy.
    - ``budget``: fraction of the all-heavy cost, in multiply-accumulates. The pixels with the largest
      p_heavy - p_light are heavy, as many as the budget pays for.
    - ``adaptive = True``: two clusters of p_heavy, one clustering for the whole batch.
    - ``threshold``: the margin itself; set by `calibrate`, which makes tiles of one picture agree on it.

    ``last_report`` tells what the last run did. In training mode `forward` is the soft
    mixture of both samplers, which has gradients; in evaluation mode pixels are routed, under ``no_grad``. Routing has
    sizes that depend on the data: `torch.compile` breaks the graph there, and `torch.export` and ONNX cannot hold it;
    export `one_sampler` instead. On meta tensors every pixel counts as heavy.

    Args:
        encoder: network with ``width`` and ``halo`` (`pcsr.encoders`).
        heavy, light, classifier: hidden widths of the three samplers.
        scale: enlargement above 1, not necessarily whole. The weights do not depend on it.
        mean: per-channel mean that the encoder's input is freed of, as the CARN weights expect; None for none.

    Shape: (B, 3, h, w) in [0, 1] -> (B, 3, round(h*scale), round(w*scale)), clamped to [0, 1] in evaluation mode.

    Raises:
        UsageError: a scale of 1 or below, or sampler widths below 1.
    """

    colour = "rgb"
    in_channels = 3

    def __init__(
        self,
        encoder: nn.Module,
        heavy: Sequence[int],
        light: Sequence[int],
        classifier: Sequence[int],
        scale: float = 4,
        mean: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale > 1):
            raise UsageError(f"PCSR enlarges by more than 1, not by {scale:g}")
        self.scale: int | float = round(scale) if math.isclose(scale, round(scale)) else scale
        self.encoder = encoder
        # counted here, once: counting runs the encoder, which must not happen inside another count
        self._encoder_macs = routing.macs_per_pixel(encoder)
        self._encoder_flops = routing.flops_per_pixel(encoder)
        width: int = encoder.width  # type: ignore[assignment]
        self.heavy = Sampler(width, heavy, 3)
        self.light = Sampler(width, light, 3)
        self.classifier = Sampler(width, classifier, 2)
        self.register_buffer("mean", torch.tensor(mean or [0.0, 0.0, 0.0]).view(1, 3, 1, 1), persistent=False)
        #: whether light pixels beside heavy ones are smoothed; a blur at x2, so on from x4 only
        self.refine = scale >= 4
        self.last_report: Report | None = None
        self._dial: tuple[str, float] = ("k", 0.0)
        self._pixel_batch_size = 1 << 15

    # ---- dials

    @property
    def k(self) -> float | None:
        """The paper's knob; None while another dial rules. Setting a value that is not finite is a UsageError."""
        return self._dial[1] if self._dial[0] == "k" else None

    @k.setter
    def k(self, value: float) -> None:
        if not math.isfinite(value):
            raise UsageError(f"k must be finite, not {value}; -25 sends every pixel to the heavy sampler")
        self._dial = ("k", float(value))

    @property
    def budget(self) -> float:
        """Fraction of the all-heavy cost: what is asked for, or, under another dial, what the last run took.

        A budget below the cost of all-light pixels is met as far as it can be, with a warning. Setting one outside
        (0, 1] is a UsageError.
        """
        if self._dial[0] == "budget":
            return self._dial[1]
        return self.last_report.fraction if self.last_report else 1.0

    @budget.setter
    def budget(self, value: float) -> None:
        self._dial = ("budget", check_budget(value))

    @property
    def adaptive(self) -> bool:
        """Whether clusters of p_heavy decide; switching it off returns to k = 0."""
        return self._dial[0] == "adaptive"

    @adaptive.setter
    def adaptive(self, value: bool) -> None:
        if value:
            self._dial = ("adaptive", 0.0)
        elif self.adaptive:
            self.k = 0.0

    @property
    def threshold(self) -> float | None:
        """Margin logit_heavy - logit_light above which a pixel is heavy; None while another dial rules."""
        return self._dial[1] if self._dial[0] == "threshold" else None

    @threshold.setter
    def threshold(self, value: float) -> None:
        if math.isnan(value):
            raise UsageError("the threshold of PCSR must be a number")
        self._dial = ("threshold", float(value))

    @property
    def pixel_batch_size(self) -> int:
        """Output pixels whose activations are held at once; below 1 is a UsageError."""
        return self._pixel_batch_size

    @pixel_batch_size.setter
    def pixel_batch_size(self, value: int) -> None:
        if value < 1:
            raise UsageError(f"pixel_batch_size must be at least 1, not {value}")
        self._pixel_batch_size = int(value)

    def budgets(self) -> tuple[float, ...]:
        """Some budgets from the cheapest possible to 1. The dial is continuous: anything between works as well."""
        floor = self.cost(64, 64, 0.0) / self.cost(64, 64, 1.0)
        low = math.ceil(100 * floor) / 100
        return tuple(round(low + (1 - low) * i / 4, 3) for i in range(5)) if low < 1 else (1.0,)

    # ---- cost

    @property
    def halo(self) -> int:
        """Input pixels that an output pixel sees beyond its own place."""
        own: int = self.encoder.halo  # type: ignore[assignment]
        return own + 1 if self.refine else max(1, own)

    def flops(self, h: int, w: int, *parts: Literal["heavy", "light", "classifier"]) -> int:
        """FLOPs of the encoder and of ``parts``, each run on all output pixels, for an (h, w) input.

        Counted as the official code does and the published figures are: 2 for a multiply-accumulate, every output
        pixel with the whole first layer. `cost` counts what this implementation executes.
        """
        outputs = round(h * self.scale) * round(w * self.scale)
        return self._encoder_flops * h * w + 2 * outputs * sum(getattr(self, part).macs for part in parts)

    def _encoder_cost(self, h: int, w: int) -> int:
        """Multiply-accumulates of the encoder for an (h, w) input, the overlap of its strips included."""
        return self._encoder_macs * w * sum(b - a for a, b, _, _ in self._strips(h, w))

    def _prices(self, h: int, w: int, outputs: int) -> tuple[int, int, int]:
        """Multiply-accumulates: all heavy; all light, classified; entering the heavy sampler's first layer."""
        inputs, encoder, classifier = h * w, self._encoder_cost(h, w), self.classifier.difference()
        full = encoder + self.heavy.first_macs * inputs + self.heavy.tail_macs * outputs
        floor = encoder + (self.light.first_macs + classifier.first_macs) * inputs
        floor += (self.light.tail_macs + classifier.tail_macs) * outputs
        return full, floor, self.heavy.first_macs * inputs

    def cost(self, h: int, w: int, share: float, size: tuple[int, int] | None = None) -> int:
        """Multiply-accumulates, at most, for an (h, w) input with a ``share`` of its pixels heavy.

        First layers are evaluated once per input pixel, and the light sampler on all pixels (`routing.run` may skip
        it). A share of 1 is the full cost, which needs neither classifier nor light sampler. For scales that are not
        whole blocks overlap by an input row, which is not counted here but in `last_report`.
        """
        size = size or (round(h * self.scale), round(w * self.scale))
        outputs = size[0] * size[1]
        full, floor, entry = self._prices(h, w, outputs)
        many = math.floor(share * outputs + 1e-9)
        return full if share >= 1 else floor + (entry + many * self.heavy.tail_macs if many else 0)

    def _affordable(self, h: int, w: int, outputs: int, budget: float) -> float:
        """The share of heavy pixels that a budget pays for; negative when it does not pay for light ones."""
        full, floor, entry = self._prices(h, w, outputs)
        if budget * full < floor:
            return -1.0
        many = (budget * full - floor - entry) / max(1, self.heavy.tail_macs)
        return min(max(many, 0.0) / outputs, 1.0)

    @functools.cached_property
    def _ratios(self) -> dict[float, Tensor]:
        return {}

    def cost_ratio(self, scale: float | None = None) -> Tensor:
        """(2,) float32: cost of light and heavy, each with the encoder's, over their sum (equation 5).

        Counted as the official code does, for a 16x16 input and the scale to one decimal.
        """
        scale = round(self.scale if scale is None else scale, 1)
        if scale not in self._ratios:
            outputs = round(16 * scale) ** 2
            costs = [self._encoder_flops * 256 + 2 * outputs * part.macs for part in (self.light, self.heavy)]
            ratio = torch.tensor(costs, dtype=torch.float32)
            self._ratios[scale] = ratio / ratio.sum()
        return self._ratios[scale]

    # ---- running

    def _checked(self, lr: Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
        if lr.ndim != 4 or lr.shape[1] != 3 or not lr.is_floating_point():
            raise InputError(f"PCSR takes float pictures (B, 3, h, w), not {lr.dtype} {tuple(lr.shape)}")
        if lr.numel() == 0:
            raise InputError(f"PCSR got an empty picture {tuple(lr.shape)}")
        h, w = lr.shape[-2:]
        size = size or (round(h * self.scale), round(w * self.scale))
        if len(size) != 2 or size[0] < h or size[1] < w:
            raise UsageError(f"PCSR enlarges: it cannot make {'x'.join(map(str, size))} from {h}x{w}")
        return int(size[0]), int(size[1])

    def _strips(self, h: int, w: int) -> Iterator[tuple[int, int, int, int]]:
        """Rows that the encoder takes at once, as first and last + 1, with the halo and without.

        On a CPU strips that stay near the cache are twice as fast as the whole. They overlap by twice the halo, so
        they are at least twenty times as high.
        """
        halo: int = self.encoder.halo  # type: ignore[assignment]
        mean: Tensor = self.mean  # type: ignore[assignment]
        rows = max(20 * halo, STRIP // w)
        if mean.device.type != "cpu" or h < rows + 2 * halo:
            rows = h
        for top in range(0, h, rows):
            end = min(top + rows, h)
            yield max(0, top - halo), min(h, end + halo), top, end

    def _encode(self, lr: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, D, h, w), channels last."""
        mean: Tensor = self.mean  # type: ignore[assignment]
        lr = (lr - mean).contiguous(memory_format=torch.channels_last)
        h, w = lr.shape[-2:]
        strips = list(self._strips(h, w))
        if len(strips) == 1:
            features: Tensor = self.encoder(lr)
            return features.contiguous(memory_format=torch.channels_last)
        width: int = self.encoder.width  # type: ignore[assignment]
        features = torch.empty((len(lr), width, h, w), dtype=lr.dtype, memory_format=torch.channels_last)
        for a, b, top, end in strips:
            features[:, :, top:end] = self.encoder(lr[:, :, a:b])[:, :, top - a : end - a]
        return features

    @staticmethod
    def _bilinear(lr: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(lr, size=size, mode="bilinear", align_corners=False)

    def _grid(self, lr: Tensor, size: tuple[int, int]) -> PhaseGrid | FreeGrid:
        features, (h, w) = self._encode(lr), lr.shape[-2:]
        s = size[0] // h
        if (h * s, w * s) == size:
            return PhaseGrid(lr, features, s, self.pixel_batch_size)
        return FreeGrid(lr, features, size, self.pixel_batch_size)

    def _margins(self, grid: PhaseGrid | FreeGrid, size: tuple[int, int]) -> tuple[Tensor, int]:
        """(B, 1, H, W) of logit_heavy - logit_light, and the multiply-accumulates that it took."""
        classifier = Fast(self.classifier.difference(), grid)
        margins = grid.features.new_empty((len(grid.features), 1, *size))
        for block in grid.blocks():
            view = grid.view(margins, block)
            view.copy_(classifier.answer(block).view(view.shape))
        return margins, classifier.macs

    def _decide(self, margins: Tensor, h: int, w: int, size: tuple[int, int]) -> tuple[float, bool]:
        """The threshold that the dial asks for, and whether the budget was out of reach."""
        dial, value = self._dial
        if dial == "threshold":
            return value, False
        if dial == "adaptive":
            return routing.cluster_threshold(margins), False
        if dial == "k":
            return routing.k_threshold(value, self.cost_ratio(math.sqrt(size[0] * size[1] / (h * w)))), False
        share = self._affordable(h, w, size[0] * size[1], value)
        if share < 0:
            least = self.cost(h, w, 0.0, size) / self.cost(h, w, 1.0, size)
            warnings.warn(
                f"budget {value:g} is below {least:.3f}, the cost of all-light pixels: using that", stacklevel=4
            )
        return routing.share_threshold(margins, max(share, 0.0)), share < 0

    @torch.no_grad()
    def margins(self, lr: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, 1, H, W): logit_heavy - logit_light of every output pixel; p_heavy is its sigmoid."""
        size = self._checked(lr, size)
        return self._margins(self._grid(lr, size), size)[0]

    @torch.no_grad()
    def calibrate(self, pictures: Iterable[Tensor], budget: float, sample: int = 1 << 16, seed: int = 0) -> float:
        """Fix the `threshold` that meets a budget over several pictures, or over the tiles of one.

        A budget picks the best pixels of each call; tiles that are to agree with each other, or pictures that are to
        share one budget, need one threshold. It is the quantile over ``sample`` random pixels of each picture.

        Args:
            pictures: each (B, 3, h, w).
            budget: in (0, 1].

        Returns:
            The threshold, which is now the model's dial.
        """
        self.budget = budget
        drawn: list[Tensor] = []
        spent = pixels = 0.0
        generator = torch.Generator().manual_seed(seed)
        for picture in pictures:
            flat = self.margins(picture).flatten().cpu()
            share = self._affordable(picture.shape[2], picture.shape[3], flat.numel() // len(picture), budget)
            spent, pixels = spent + max(share, 0.0) * flat.numel(), pixels + flat.numel()
            few = flat.numel() > sample
            drawn.append(flat[torch.randint(flat.numel(), (sample,), generator=generator)] if few else flat)
        if not drawn:
            raise InputError("there are no pictures to calibrate PCSR on")
        self.threshold = -math.inf if budget == 1 else routing.share_threshold(torch.cat(drawn), spent / pixels)
        return self.threshold  # type: ignore[return-value]

    @torch.no_grad()
    def route(self, lr: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """The routed prediction, not clamped, and which pixels were heavy; fills ``last_report``.

        Args:
            lr: (B, 3, h, w) in [0, 1]. The pictures of a batch share one clustering and one budget.
            size: (H, W) of the output, at least (h, w); default `scale` times the input.

        Returns:
            (B, 3, H, W), and (B, 1, H, W) bool.

        Raises:
            InputError: not a float picture with three channels, or an empty one.
            UsageError: an output smaller than the input.
        """
        size = self._checked(lr, size)
        grid = self._grid(lr, size)
        batch, (h, w) = lr.shape[0], lr.shape[-2:]
        macs, threshold, floored = batch * self._encoder_cost(h, w), -math.inf, False
        everywhere = lr.is_meta or self._dial == ("budget", 1.0)
        if everywhere:
            flags = torch.ones((batch, 1, *size), dtype=torch.bool, device=lr.device)
        else:
            margins, spent = self._margins(grid, size)
            threshold, floored = self._decide(margins, h, w, size)
            flags, macs = margins > threshold, macs + spent
            del margins
        heavy, light = Fast(self.heavy, grid), Fast(self.light, grid)
        picture, many = lr.new_empty((batch, 3, *size)), 0
        for block in grid.blocks():
            view = grid.view(picture, block)
            if everywhere:
                count, answer = block.outputs, heavy.answer(block)
            else:
                count, answer = routing.run(block, grid.view(flags, block).flatten(), heavy, light)
            view.copy_(answer.add_(grid.bilinear(block)).view(view.shape))
            many += count
        if self.refine and many:
            routing.refine(picture, flags)
        pixels, full = batch * size[0] * size[1], batch * self.cost(h, w, 1.0, size)
        self.last_report = Report(pixels, many, macs + heavy.macs + light.macs, full, threshold, floored)
        return picture, flags

    def _everywhere(self, lr: Tensor, size: tuple[int, int] | None, *samplers: Sampler) -> list[Tensor]:
        """Answers (B, outputs, H, W) of samplers on all pixels, with gradients, whatever memory it takes."""
        size = self._checked(lr, size)
        mean: Tensor = self.mean  # type: ignore[assignment]
        features, (h, w), s = self.encoder(lr - mean), lr.shape[-2:], size[0] // lr.shape[-2]
        if (h * s, w * s) != size:
            asked = queries(features, *size)
            return [sampler(asked).transpose(1, 2).unflatten(2, size) for sampler in samplers]
        columns = features.transpose(0, 1).flatten(1)
        answers = [sampler.dense(columns, s).view(-1, s, s, len(lr), h, w) for sampler in samplers]
        return [a.permute(3, 0, 4, 1, 5, 2).reshape(len(lr), -1, *size) for a in answers]

    def forward_heavy(self, lr: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """The heavy sampler everywhere, with gradients, not clamped: (B, 3, H, W)."""
        (answer,) = self._everywhere(lr, size, self.heavy)
        return answer + self._bilinear(lr, (answer.shape[2], answer.shape[3]))

    def forward_mixture(self, lr: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Both samplers everywhere, mixed by their probabilities (equation 4), with gradients: (B, 3, H, W)."""
        logits, light, heavy = self._everywhere(lr, size, self.classifier, self.light, self.heavy)
        share = logits.softmax(1)
        mixed = share[:, :1] * light + share[:, 1:] * heavy
        return mixed + self._bilinear(lr, (mixed.shape[2], mixed.shape[3]))

    def forward(self, lr: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return self.forward_mixture(lr, size) if self.training else self.route(lr, size)[0].clamp_(0, 1)

    def one_sampler(self, which: Literal["heavy", "light"] = "heavy") -> OneSampler:
        """A plain convolutional network, equal to sending every pixel to one sampler: for export and other engines.

        Raises:
            UsageError: the scale is not whole.
        """
        if not isinstance(self.scale, int):
            raise UsageError(f"only a whole scale is a plain network, not {self.scale:g}")
        return OneSampler(self, which).eval()

    # ---- training

    def phase_parameters(self, phase: int) -> list[nn.Parameter]:
        """What phase 0 (encoder, heavy sampler) or phase 1 (light sampler, classifier) trains.

        Raises:
            UsageError: another phase.
        """
        parts = {0: (self.encoder, self.heavy), 1: (self.light, self.classifier)}
        if phase not in parts:
            raise UsageError(f"PCSR trains in phases 0 and 1, there is no phase {phase}")
        return [p for part in parts[phase] for p in part.parameters()]

    def training_loss(self, lr: Tensor, hr: Tensor, phase: int) -> Tensor:
        """Loss of one training step on every pixel of the crops (`pcsr.training`); whole scales only.

        Args:
            lr: (B, 3, h, w) in [0, 1].
            hr: (B, 3, h*scale, w*scale) in [0, 1].
            phase: 0 or 1.

        Raises:
            UsageError: a scale that is not whole, another phase, or sizes that do not belong together.
        """
        return loss(self, lr, hr, phase)
