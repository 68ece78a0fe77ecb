"""Picture files as an eye might see them that rests on a point: what ``saccade foveate`` does to each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saccade.backbones.foveated.stages import stage
from saccade.backbones.foveated.transform import FoveatedTexture, fitting_block
from saccade.backbones.foveated.windows import Windows
from saccade.errors import UsageError
from saccade.io import Saving, create_picture, open_picture
from saccade.io.files import check_target
from saccade.runtime.devices import chosen_device
from saccade.runtime.stream import RESIDENT, check_array
from saccade.runtime.threads import check_threads, on_threads

__all__ = ["KINDS", "Foveator", "Point", "Report", "parse_point"]

KINDS = ("texture", "blur", "uniform")
#: deviation over distance at the most: as much as all there is, and wider ones take for ever
WIDEST = 2.0
#: bytes that each kind takes for a sample of the picture at the most, with the picture itself
BYTES = {"texture": 80, "blur": 34, "uniform": 30}


@dataclass(frozen=True)
class Point:
    """A place in pictures: parts of width and height, or pixels from the corner at the top left.

    Args:
        x, y: across and down.
        pixels: the unit; False for parts, from 0 to 1.
    """

    x: float = 0.5
    y: float = 0.5
    pixels: bool = False

    def within(self, width: int, height: int) -> tuple[float, float]:
        """(x, y) as parts of a picture of this size.

        Raises:
            UsageError: it lies outside.
        """
        x, y = (self.x / width, self.y / height) if self.pixels else (self.x, self.y)
        if not (0 <= x <= 1 and 0 <= y <= 1):
            unit = " px" if self.pixels else " (parts of width and height)"
            raise UsageError(
                f"the point {self.x:g}, {self.y:g}{unit} lies outside the picture of {width} x {height} px"
            )
        return x, y


def parse_point(text: str) -> Point:
    """``0.3,0.6`` or ``640px,480px`` as a point.

    Raises:
        UsageError: anything else, or parts outside [0, 1].
    """
    found = [part.strip().lower() for part in text.split(",")]
    pixels = all(part.endswith("px") for part in found)
    try:
        x, y = (float(part.removesuffix("px") if pixels else part) for part in found)
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError
    except ValueError:
        raise UsageError(f"--at takes a point such as 0.3,0.6 or 640px,480px, not {text!r}") from None
    if not pixels and not (0 <= x <= 1 and 0 <= y <= 1):
        raise UsageError(
            f"--at takes parts of width and height from 0 to 1, or pixels as {x:g}px,{y:g}px; not {text!r}"
        )
    return Point(x, y, pixels)


@dataclass
class Report:
    """What was done to one file.

    Attributes:
        source, target: file names.
        size: width and height in pixels.
        kind, scale: what the periphery became, and how fast it grows.
        at: (x, y) of the fixation in pixels.
        regions: of which two numbers a feature are left, the fovea counted; 0 for blurs.
        device: what ran.
        seconds: wall time, reading and writing included.
        notices: what was converted or left out, one sentence each.
    """

    source: str
    target: str
    size: tuple[int, int]
    kind: str
    scale: float
    at: tuple[float, float]
    regions: int
    device: str
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class Foveator:
    """Foveates pictures of any size, whole.

    Sides that are no multiples of the features' stride are filled up by the border's pixels and cut again.

    Args:
        at: where the eye rests.
        scale: growth of the pooling regions, diameter over eccentricity.
        kind: one of `KINDS`.
        strength: of the blurs, as `stage`.
        seed: of the texture's noise.
        device: auto, cpu, cuda, ...
        max_memory: bound on the memory of the process, in bytes.
        threads: of the processor; 0 for torch's own choice.

    Raises:
        UsageError: a kind, scale, strength or device that there is not.
    """

    def __init__(
        self,
        at: Point | None = None,
        scale: float = 0.4,
        kind: str = "texture",
        *,
        strength: float | None = None,
        seed: int = 0,
        device: str = "auto",
        max_memory: int = 4 << 30,
        threads: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"the periphery becomes {', '.join(KINDS)}, not {kind!r}")
        check_threads(threads)
        self.at, self.scale, self.kind, self.strength, self.seed = at or Point(), scale, kind, strength, seed
        if kind == "texture" and strength is not None:
            raise UsageError("only blurs have a strength, a texture has none")
        Windows((64, 64), scale)  # refuses a scale that there is not, before a picture is read
        if kind != "texture":
            stage(kind, (64, 64), scale, strength=strength)
        if kind == "blur" and strength is not None and strength > WIDEST:
            raise UsageError(f"--strength of a blur is {WIDEST:g} at the most, not {strength:g}")
        self.device, self.max_memory, self.threads = chosen_device(device, "torch"), max_memory, threads
        self._made: tuple[tuple[Any, ...], nn.Module] | None = None

    def _stage(self, size: tuple[int, int], fixation: tuple[float, float], block: int, channels: int) -> nn.Module:
        """The stage for pictures of this size; that of the last picture is kept."""
        key = (size, fixation, channels)
        if self._made is None or self._made[0] != key:
            texture = {"block": block, "channels": channels, "seed": self.seed} if self.kind == "texture" else {}
            made = stage(self.kind, size, self.scale, fixation, strength=self.strength, exact=False, **texture)
            self._made = (key, made.to(self.device))
        return self._made[1]

    def _check_size(self, width: int, height: int, channels: int) -> None:
        if self.kind == "uniform" and self.strength is not None and self.strength > max(width, height):
            raise UsageError(f"a blur of {self.strength:g} px is wider than the picture of {width} x {height} px")
        need = RESIDENT["torch"] + BYTES[self.kind] * width * height * channels
        if need > self.max_memory:
            raise UsageError(
                f"pictures are foveated whole: {width} x {height} px take {math.ceil(need / 2**20):,} MB, more than "
                f"--max-memory {self.max_memory >> 20:,} MB"
            )

    def array(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour (h, w, 1 or 3) and alpha (h, w) of uint8 or uint16 -> the same; alpha stays.

        Raises:
            InputError: another shape or dtype, or an empty picture.
            UsageError: the point lies outside, the picture is too small, or too large for ``max_memory``.
        """
        check_array(colour, alpha)
        height, width, channels = colour.shape
        self._check_size(width, height, channels)
        x, y = self.at.within(width, height)
        most = float(np.iinfo(colour.dtype).max)
        block = fitting_block((height, width)) if self.kind == "texture" else 1
        pixels = torch.from_numpy(colour.astype(np.float32) / np.float32(most)).permute(2, 0, 1)[None].to(self.device)
        filled = F.pad(pixels, (0, -width % block, 0, -height % block), mode="replicate")
        rows, columns = filled.shape[2:]
        made = self._stage((rows, columns), (x * width / columns, y * height / rows), block, channels)
        with on_threads(self.threads or torch.get_num_threads()), torch.inference_mode():
            out = made(filled)[0, :, :height, :width].clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        return np.rint(out * np.float32(most)).astype(colour.dtype), alpha

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Callable[[float], Any] | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Foveate one file into another, with its profile, EXIF and alpha.

        ``how`` the result is written is as of `io.create_picture`.

        Raises:
            InputError: the source cannot be read; the target exists or cannot be written.
            UsageError: as `array`.
        """
        began = time.perf_counter()
        check_target(Path(target), how.get("overwrite", False))
        with open_picture(source) as reader:
            width, height = reader.width, reader.height
            self._check_size(width, height, reader.bands)
            x, y = self.at.within(width, height)
            colour, alpha = self.array(*reader.read_rows(0, height))
            with create_picture(
                target,
                width,
                height,
                bands=reader.bands,
                has_alpha=reader.has_alpha,
                dtype=reader.dtype,
                like=reader,
                **how,
            ) as writer:
                writer.write_rows(colour, alpha)
            notices = [*reader.notices, *writer.notices]
        if advance is not None:
            advance(float(width * height))
        made = self._made[1] if self._made is not None else None
        regions = len(made.sizes) if isinstance(made, FoveatedTexture) else 0
        told = (str(source), str(target), (width, height), self.kind, self.scale, (x * width, y * height), regions)
        return Report(*told, self.device, time.perf_counter() - began, notices)
