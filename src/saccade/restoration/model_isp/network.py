"""The learnt ISP: encoders choose settings for a picture, stages apply them, in both directions.

    RAW (B,3,H,W) -- lsc -- wb -- ccm -- gamma -- tone --> RGB (B,3,H,W)          forward
    RGB -- tone^-1 -- gamma^-1 -- ccm^-1 -- wb^-1 -- lsc^-1 --> RAW               inverse

    a stage's input -- 32x32 of its pixels -- 4 strided convolutions -- mean -- head -- softmax --> weights (B,N)

The directions have encoders of their own and share the dictionaries, which ties them. All stages work pixel by pixel,
so taking 32x32 of a stage's input, and running the stages on 32x32 pixels of the first input, are the same thing:
settings cost as much for a thumbnail as for a 100 megapixel photograph, and they are known before the first pixel of
it is made. What follows is one matrix and one table for the picture (`folded`). The paper leaves open at what size
encoders look; these 32x32 are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.budget import check_budget
from saccade.errors import InputError, UsageError
from saccade.nn.pictures import check_picture
from saccade.ops.demosaic import Method, check_packed, demosaic, mosaic
from saccade.registry import register
from saccade.restoration.model_isp.folded import fold_forward, fold_inverse
from saccade.restoration.model_isp.operators import gamma_compression, gamma_expansion
from saccade.restoration.model_isp.stages import ColourMatrix, LensShading, Tone, WhiteBalance, pixel_grid

__all__ = ["STAGES", "Encoder", "ModelISP", "Settings", "check_raw", "spread", "whole_grid"]

Direction = Literal["forward", "inverse"]

#: all stages, RAW to RGB; gamma has nothing to learn
STAGES = ("lsc", "wb", "ccm", "gamma", "tone")
LEARNT = ("lsc", "wb", "ccm", "tone")
#: which stages the dial gives up first: those that differ least from picture to picture
IMPORTANCE = ("wb", "ccm", "tone", "lsc")
LOOK = 32  # pixels a side that encoders see
SINGULAR = 0.1  # smallest determinant of a colour matrix
#: of settings, beside their batch; None for what the network decides
SHAPES: dict[str, tuple[int | None, ...]] = {"lsc": (None,), "gains": (3,), "ccm": (3, 3), "tone": (3, None)}


@dataclass(frozen=True)
class Settings:
    """What the pipeline does to a batch of pictures; readable, and editable with `dataclasses.replace`.

    Attributes:
        lsc: (B, N) weights of the gain maps, or None.
        gains: (B, 3) factors of red, green and blue, digital gain included, or None.
        ccm: (B, 3, 3) camera to linear sRGB, or None.
        gamma: whether 1/2.2 is applied.
        tone: (B, 3, T) rising values of the tone curve at equally spaced knots, from 0 to 1, or None.
    """

    lsc: Tensor | None = None
    gains: Tensor | None = None
    ccm: Tensor | None = None
    gamma: bool = True
    tone: Tensor | None = None

    def check(self) -> Settings:
        """Itself, if every setting can be applied and undone.

        Raises:
            UsageError: another shape, gains that are not positive, a singular matrix, a curve that does not rise from 0
                to 1.
        """
        for name, wanted in SHAPES.items():
            value = getattr(self, name)
            if value is None:
                continue
            same = value.ndim == 1 + len(wanted) and len(value)
            if not same or any(w not in (None, n) for n, w in zip(value.shape[1:], wanted, strict=True)):
                told = ", ".join("any" if w is None else str(w) for w in wanted)
                raise UsageError(f"settings hold {name} as (B, {told}), not {tuple(value.shape)}")
        if self.gains is not None and not bool((self.gains > 0).all() & self.gains.isfinite().all()):
            raise UsageError(f"gains must be positive numbers, not {_few(self.gains)}")
        if self.ccm is not None:
            determinant = torch.linalg.det(self.ccm.float())
            if not bool((determinant.abs() > SINGULAR).all()):
                raise UsageError(
                    f"a colour matrix with determinant {_few(determinant)} cannot be undone; keep it above {SINGULAR}"
                )
        if self.tone is not None:
            ends = bool((self.tone[..., 0].abs() < 1e-4).all() & ((self.tone[..., -1] - 1).abs() < 1e-4).all())
            if not ends or not bool((self.tone.diff(dim=-1) > 0).all()):
                raise UsageError("a tone curve must rise from 0 to 1, at every knot above the last")
        if self.lsc is not None and not bool((self.lsc >= 0).all() & ((self.lsc.sum(-1) - 1).abs() < 1e-3).all()):
            raise UsageError("weights of gain maps must not be negative, and sum to 1")
        return self

    def pictures(self, part: slice) -> Settings:
        """Those of some pictures of the batch."""
        cut: dict[str, Any] = {f.name: v[part] for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        return replace(self, **cut)


def _few(values: Tensor) -> str:
    return ", ".join(f"{v:.3g}" for v in values.flatten()[:3].tolist())


class Encoder(nn.Module):
    """Weights of atoms from a stage's input: a trunk that all stages share, a head for each.

    Args:
        atoms: N of each learnt stage.
        widths: channels of the four convolutions.
        temperature: what logits are divided by before the softmax.
    """

    def __init__(self, atoms: dict[str, int], widths: Sequence[int] = (32, 64, 96, 128), temperature: float = 1.0):
        super().__init__()
        self.temperature = temperature
        channels = (3, *widths)
        self.trunk = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, widths, strict=False))
        last = widths[-1]
        self.heads = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(last, last), nn.GELU(), nn.Linear(last, n)) for name, n in atoms.items()}
        )
        for convolution in self.trunk:
            nn.init.kaiming_normal_(convolution.weight)  # type: ignore[arg-type]
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        self.averages = nn.Module()  # what a trained encoder says on average: settings at no cost
        for name, n in atoms.items():
            self.averages.register_buffer(name, torch.full((n,), 1 / n))

    def forward(self, x: Tensor, stage: str) -> Tensor:
        """(B, 3, h, w) -> convex weights (B, N)."""
        for convolution in self.trunk:
            x = F.gelu(convolution(x))
        x = x.mean((2, 3))
        logits = self.heads[stage](F.layer_norm(x, x.shape[1:]))  # a RAW is dark: its features are small
        return torch.softmax(logits / self.temperature, -1)

    def average(self, stage: str) -> Tensor:
        """(N,), the weights that stand in for predicted ones."""
        made: Tensor = getattr(self.averages, stage)
        return made


class ModelISP(nn.Module):
    """Image signal processor with learnable dictionaries, RAW to RGB and back (section 3).

    Args:
        atoms: N of the white balance, matrix and curve dictionaries; the gain maps have half as many, at least 3.
        knots: T of the tone curves.
        widths: channels of the encoders' convolutions.
        temperature: of the softmax over atoms.
        pattern: the camera's Bayer pattern, for packed RAW.
        disabled: stages that are left out, of ``lsc``, ``wb``, ``ccm``, ``gamma``, ``tone``.

    Shape: linear RAW colours (B, 3, H, W), black level subtracted, over white level -> RGB (B, 3, H, W) in [0, 1].

    The dial: ``budget`` is the share of the encoders' runs that are spent. At 1 every stage's weights are predicted
    for each picture; below, stages take the average weights of training instead, lens shading first, white balance
    last; below 1/4 all do and only the pixels themselves cost anything.

    Raises:
        UsageError: an unknown stage or pattern, or fewer than two atoms or knots.
        InputError: in evaluation mode, what is no RAW (or no picture); see `forward`.
    """

    halo = 0
    in_channels = 3

    def __init__(
        self,
        atoms: int = 8,
        knots: int = 16,
        widths: Sequence[int] = (32, 64, 96, 128),
        temperature: float = 1.0,
        pattern: str = "rggb",
        disabled: Sequence[str] = (),
    ) -> None:
        super().__init__()
        from saccade.ops.demosaic import check_pattern

        check_pattern(pattern)
        if atoms < 2 or knots < 2:
            raise UsageError(f"dictionaries need at least 2 atoms and curves 2 knots, not {atoms} and {knots}")
        if not temperature > 0:
            raise UsageError(f"a temperature is positive, not {temperature}")
        self.pattern = pattern
        counts = {"lsc": max(3, atoms // 2), "wb": atoms, "ccm": atoms, "tone": atoms}
        made = {"lsc": LensShading, "wb": WhiteBalance, "ccm": ColourMatrix}
        self.stages = nn.ModuleDict({name: kind(counts[name]) for name, kind in made.items()})
        self.stages["tone"] = Tone(atoms, knots)
        self.encoder_fwd = Encoder(counts, widths, temperature)
        self.encoder_inv = Encoder(counts, widths, temperature)
        self.disabled = tuple(disabled)
        self._budget = 1.0

    # -- the dial

    @property
    def disabled(self) -> tuple[str, ...]:
        """Stages that are left out, in both directions."""
        return self._disabled

    @disabled.setter
    def disabled(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in STAGES:
                raise UsageError(f"no stage named {str(name)!r}; there are {', '.join(STAGES)}")
        self._disabled = tuple(names)

    @property
    def budget(self) -> float:
        """Share of the encoders' runs that are spent, in (0, 1]."""
        return self._budget

    @budget.setter
    def budget(self, value: float) -> None:
        self._budget = check_budget(value)

    def budgets(self) -> list[float]:
        """Every click of the dial; at the lowest all settings are averages."""
        return [0.05, 0.25, 0.5, 0.75, 1.0]

    def predicted(self) -> tuple[str, ...]:
        """The stages whose weights are predicted at the present budget."""
        return IMPORTANCE[: int(self._budget * len(IMPORTANCE) + 1e-9)]

    # -- settings

    def mix(self, weights: dict[str, Tensor]) -> Settings:
        """Settings from convex weights (B, N) of every enabled stage."""
        made = {n: self._stage(n).mix(weights[n]) for n in LEARNT if n not in self._disabled}
        gamma = "gamma" not in self._disabled
        return Settings(made.get("lsc"), made.get("wb"), made.get("ccm"), gamma, made.get("tone"))

    def weights(self, look: Tensor, grid: Tensor, direction: Direction) -> dict[str, Tensor]:
        """Weights (B, N) of every enabled stage, for a look at a RAW or a picture.

        Args:
            look: (B, 3, h, w) pixels of it.
            grid: (1, h, w, 2), their places (`pixel_grid`).
            direction: ``forward`` if they are RAW, ``inverse`` if they are RGB.

        Raises:
            UsageError: towards RAW, in evaluation mode, a learnt colour matrix that cannot be undone.
        """
        encoder = self.encoder_fwd if direction == "forward" else self.encoder_inv
        predicted, chosen = [n for n in self.predicted() if n not in self._disabled], dict[str, Tensor]()
        x = look
        for name in STAGES if direction == "forward" else reversed(STAGES):
            if name in self._disabled:
                continue
            setting: Any = True
            if name in LEARNT:
                average = encoder.average(name).expand(len(look), -1)
                chosen[name] = encoder(x, name) if name in predicted else average
                setting = self._stage(name).mix(chosen[name])
            if name == "ccm" and direction == "inverse" and not (self.training or torch.compiler.is_compiling()):
                Settings(ccm=setting).check()  # a dictionary may have learnt what cannot be undone
            if set(predicted) - set(chosen):  # nobody looks at what comes after the last predicted stage
                x = self._act(name, x, setting, grid, direction)
        return chosen

    def predict(self, x: Tensor, direction: Direction = "forward") -> Settings:
        """Settings for RAW pictures (``forward``) or RGB pictures (``inverse``) (B, 3, H, W), from 32x32 pixels."""
        return self.mix(self.choose(x, direction))

    def choose(self, x: Tensor, direction: Direction) -> dict[str, Tensor]:
        """Weights of atoms (B, N) of every enabled stage for whole pictures (B, 3, H, W)."""
        rows, columns = (spread(n, x.device) for n in x.shape[2:])
        look = x[:, :, rows][:, :, :, columns]
        grid = pixel_grid(rows.to(x.dtype), columns.to(x.dtype), x.shape[2], x.shape[3])
        return self.weights(look, grid, direction)

    # -- the pipeline

    def forward(self, raw: Tensor, settings: Settings | None = None) -> Tensor:
        """Develop linear RAW colours.

        Args:
            raw: (B, 3, H, W), demosaicked; black level subtracted, divided by white level; negative values are black.
            settings: None to have them chosen for each picture; a batch of one serves all.

        Returns:
            RGB (B, 3, H, W) in [0, 1].

        Raises:
            InputError: four channels, integers, or values above 1: no normalised RAW.
            UsageError: settings that cannot be.
        """
        if not self.training:
            check_raw(raw)
        settings = self._settled(raw, settings, "forward")
        if _plain(raw, settings):
            return self.trace(raw, settings, whole_grid(raw), "forward")[-1]
        return fold_forward(self, raw, settings)

    def inverse(self, rgb: Tensor, settings: Settings | None = None) -> Tensor:
        """Undo the development: what RAW would have given this picture?

        Where all pixels are white there is no telling: a warning says so.

        Args:
            rgb: (B, 3, H, W) in [0, 1].
            settings: None to have them chosen for each picture; those of `forward` undo it.

        Returns:
            Linear RAW colours (B, 3, H, W) in [0, 1].

        Raises:
            InputError: no RGB picture in [0, 1].
            UsageError: settings that cannot be.
        """
        check_picture(rgb, 3, "the inverse ISP")
        _warn_saturated(rgb)
        settings = self._settled(rgb, settings, "inverse")
        if _plain(rgb, settings):
            return self.trace(rgb, settings, whole_grid(rgb), "inverse")[-1]
        return fold_inverse(self, rgb, settings)

    def _settled(self, x: Tensor, given: Settings | None, direction: Direction) -> Settings:
        """The settings that were given, checked, or those predicted for ``x``."""
        if given is None:
            return self.predict(x, direction)
        if not torch.compiler.is_compiling():
            self._fit(given.check(), len(x))
        return given

    def _fit(self, given: Settings, count: int) -> None:
        """Refuse settings of another number of pictures, or of another dictionary.

        Raises:
            UsageError: says which.
        """
        for name in SHAPES:
            value = getattr(given, name)
            if value is not None and len(value) not in (1, count):
                raise UsageError(f"settings for {len(value)} pictures ({name}) do not go with {count}")
        atoms = len(self._stage("lsc").residual)
        if given.lsc is not None and given.lsc.shape[1] != atoms:
            raise UsageError(f"this network has {atoms} gain maps, not {given.lsc.shape[1]}")

    def forward_packed(self, packed: Tensor, settings: Settings | None = None, method: Method = "malvar") -> Tensor:
        """Demosaic and develop: packed RAW (B, 4, H/2, W/2) -> RGB (B, 3, H, W).

        Raises:
            InputError: no packed RAW, or values above 1.
        """
        check_packed(packed)
        check_raw(packed, channels=4)
        return self.forward(demosaic(packed, self.pattern, method), settings)

    def inverse_packed(self, rgb: Tensor, settings: Settings | None = None) -> Tensor:
        """Undo the development and sample the mosaic: RGB (B, 3, H, W), even sides -> packed (B, 4, H/2, W/2).

        Raises:
            InputError: an odd side, or no picture.
        """
        return mosaic(self.inverse(rgb, settings), self.pattern)

    def trace(self, x: Tensor, settings: Settings, grid: Tensor, direction: Direction) -> list[Tensor]:
        """Stage by stage, the slow truth: the input and what each enabled stage makes of it.

        Args:
            x: (B, 3, H, W), RAW or RGB.
            grid: (1 or B, H, W, 2), places of its pixels.
        """
        values: dict[str, Any] = {
            "lsc": settings.lsc,
            "wb": settings.gains,
            "ccm": settings.ccm,
            "gamma": settings.gamma or None,
            "tone": settings.tone,
        }
        made = [x]
        for name in STAGES if direction == "forward" else reversed(STAGES):
            if values[name] is not None:
                made.append(self._act(name, made[-1], values[name], grid, direction))
        return made

    def _stage(self, name: str) -> Any:
        return self.stages[name]

    def _act(self, name: str, x: Tensor, setting: Any, grid: Tensor, direction: Direction) -> Tensor:
        if name == "gamma":
            return gamma_compression(x) if direction == "forward" else gamma_expansion(x)
        stage = self._stage(name)
        act: Callable[..., Tensor] = stage.render if direction == "forward" else stage.undo
        return act(x, setting, grid) if name == "lsc" else act(x, setting)


def whole_grid(x: Tensor) -> Tensor:
    """Places of all pixels of (B, 3, H, W)."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(n, dtype=x.dtype, device=x.device) for n in (height, width))
    return pixel_grid(rows, columns, height, width)


def spread(size: int, device: torch.device) -> Tensor:
    """Up to `LOOK` indices, evenly spread over a side."""
    count = min(size, LOOK)
    return ((torch.arange(count, device=device) * 2 + 1) * size).div(2 * count, rounding_mode="floor")


def _plain(x: Tensor, settings: Settings) -> bool:
    """Whether gradients, a graph or a compiler need the stages one by one."""
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or x.device.type != "cpu":
        return True
    given = [x, *(v for f in fields(settings) if isinstance(v := getattr(settings, f.name), Tensor))]
    return (torch.is_grad_enabled() and any(v.requires_grad for v in given)) or x.dtype != torch.float32


def check_raw(raw: Tensor, channels: int = 3, limit: float | None = None) -> None:
    """Refuse what is no normalised RAW.

    Args:
        limit: the highest value that passes; by default 1 for packed RAW, and what demosaicking overshoots for colours.

    Raises:
        InputError: another rank or number of channels, integers, or values above 1.
    """
    if torch.compiler.is_compiling():
        return
    takes = f"the ISP takes RAW as float (B, {channels}, H, W)"
    if not raw.is_floating_point():
        raise InputError(f"{takes}, not {raw.dtype}: subtract the black level and divide by the white level first")
    if raw.ndim != 4 or raw.numel() == 0:
        raise InputError(f"{takes}, not {tuple(raw.shape)}")
    if raw.shape[1] != channels:
        hint = "; packed RAW goes to forward_packed, or through ops.demosaic" if raw.shape[1] == 4 else ""
        raise InputError(f"{takes}, not {raw.shape[1]} channels{hint}")
    if raw.device.type == "cpu":
        low, high = (float(v) for v in torch.aminmax(raw.detach()))
        limit = limit or (1.001 if channels == 4 else 1.5)  # demosaicking overshoots at edges
        if not (high <= limit and low >= -1):
            raise InputError(
                f"{takes} of at most 1, these lie in [{low:.3g}, {high:.3g}]: subtract the black level and divide by "
                "the white level first"
            )


def _warn_saturated(rgb: Tensor) -> None:
    if torch.compiler.is_compiling() or rgb.device.type != "cpu":
        return
    if float(rgb.detach()[:, :, ::8, ::8].amax(1).mean()) > 0.99:
        warnings.warn("the picture is saturated nearly everywhere: its RAW is undetermined", stacklevel=3)


@register("model_isp", system="model_isp", task="raw image processing")
def model_isp(
    atoms: int = 8,
    knots: int = 16,
    widths: Sequence[int] = (32, 64, 96, 128),
    temperature: float = 1.0,
    pattern: str = "rggb",
    disabled: Sequence[str] = (),
) -> ModelISP:
    """The learnt ISP; about half a million parameters, nearly all in the encoders."""
    return ModelISP(atoms, knots, widths, temperature, pattern, disabled)


@register("model_isp_tiny", system="model_isp", task="raw image processing")
def model_isp_tiny(pattern: str = "rggb", disabled: Sequence[str] = ()) -> ModelISP:
    """Encoders a quarter as wide, half the atoms: for a single camera and a handful of pairs."""
    return ModelISP(4, 16, (8, 16, 24, 32), 1.0, pattern, disabled)
