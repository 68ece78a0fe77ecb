"""RAW files to pictures, a strip of rows at a time; `restoration.unprocess` is the way back.

    photo.dng -- LibRaw -- black, white -- demosaic -- white balance, matrix, tone --> photo.jpg

The fixed operators of `restoration.model_isp.operators` do it, or a learnt ISP from a file of weights. The sensor's
plane (2 bytes a pixel) is in memory, and pictures that must be turned; all else comes in strips.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from saccade.errors import CheckpointError, UsageError
from saccade.io.raw import RawPicture, read_raw
from saccade.runtime.threads import check_threads

if TYPE_CHECKING:
    import torch

    from saccade.io import Saving
    from saccade.restoration.model_isp.network import ModelISP, Settings

__all__ = ["TONES", "Developer", "Report", "develop", "learnt_isp", "set_threads"]

TONES = ("smooth", "srgb", "linear")
STRIP = 1 << 20  # pixels
CLIPPED = 0.95  # of white: brighter cells do not tell the colour of the light

Advance = Callable[[float], None]


@dataclass
class Report:
    """What was made of one file.

    Attributes:
        source, target: file names.
        size: width and height of the result in pixels.
        isp: ``fixed``, or the learnt model's name.
        white_balance: ``camera``, ``daylight``, ``auto``, ``given``, ``average``, ``random`` or ``learnt``.
        gains: factors of red, green and blue.
        tone: of the fixed pipeline.
        bits: of a sample in the result.
        seconds: wall time.
        notices: what was left out or taken instead, one sentence each.
    """

    source: str
    target: str
    size: tuple[int, int]
    isp: str
    white_balance: str
    gains: tuple[float, ...]
    tone: str
    bits: int
    seconds: float = 0.0
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for ``--json``."""
        return asdict(self)


def parse_white_balance(text: str) -> str | tuple[float, float, float]:
    """``camera``, ``auto``, or three positive factors ``R,G,B``.

    Raises:
        UsageError: anything else.
    """
    if text in ("camera", "auto"):
        return text
    return white_balance_factors(text.split(","), text)


def white_balance_factors(factors: Iterable[Any], told: Any) -> tuple[float, float, float]:
    """Three positive factors, of numbers or their text.

    Args:
        told: what the user gave, for the error.

    Raises:
        UsageError: they are something else.
    """
    try:
        red, green, blue = (float(factor) for factor in factors)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(0 < v < 1000 for v in (red, green, blue)):
        raise UsageError(f"a white balance is camera, auto, or three positive factors R,G,B, not {told!r}")
    return red, green, blue


def learnt_isp(model: str | Path | ModelISP | None, budget: float | None) -> ModelISP | None:
    """The learnt ISP of a file.

    Raises:
        CheckpointError: a file of something else. UsageError: a budget without a model.
    """
    from saccade.restoration.model_isp.network import ModelISP

    if model is None:
        if budget is not None:
            raise UsageError("a budget goes with a learnt ISP: give its file of weights (--model)")
        return None
    if not isinstance(model, ModelISP):
        from saccade.checkpoint import load

        found = load(model)
        if not isinstance(found, ModelISP):
            name = getattr(found, "saccade_name", type(found).__name__)
            raise CheckpointError(f"{model} holds {name}, no learnt ISP (saccade list 'model_isp*')")
        model = found
    if budget is not None:
        model.budget = budget
    return model.eval()


class Developer:
    """Makes pictures of RAW files.

    Args:
        white_balance: ``"camera"`` (what it noted), ``"auto"`` (grey world), or factors of red, green and blue; None is
            ``"camera"``, or with a model what that predicts.
        model: file of a learnt ISP, or the network; None for the fixed pipeline.
        tone: ``"smooth"`` (gamma 2.2 and a smoothstep, the default), ``"srgb"`` (its transfer curve alone) or
            ``"linear"``; a model has its own.
        bits: 8 or 16.
        exposure: stops to brighten by.
        method: of demosaicking, ``"malvar"`` or ``"bilinear"``.
        budget: of the learnt ISP.
        threads: CPU threads; 0 leaves them as they are.

    Raises:
        UsageError: a value that is none of these, or one that does not go with a model.
        CheckpointError: a file that holds no learnt ISP.
    """

    def __init__(
        self,
        white_balance: str | tuple[float, float, float] | None = None,
        model: str | Path | ModelISP | None = None,
        *,
        tone: str | None = None,
        bits: int = 8,
        exposure: float = 0.0,
        method: str = "malvar",
        budget: float | None = None,
        threads: int = 0,
    ) -> None:
        if tone is not None and tone not in TONES:
            raise UsageError(f"no tone named {tone!r}; there are {', '.join(TONES)}")
        if bits not in (8, 16):
            raise UsageError(f"a sample has 8 or 16 bits, not {bits}")
        if not -10 <= exposure <= 10:
            raise UsageError(f"the exposure is changed by -10 to 10 stops, not {exposure}")
        if method not in ("malvar", "bilinear"):
            raise UsageError(f"no demosaicking by {method!r}; there are malvar and bilinear")
        self.white_balance = white_balance
        if isinstance(white_balance, str):
            self.white_balance = parse_white_balance(white_balance)
        elif white_balance is not None:
            self.white_balance = white_balance_factors(white_balance, white_balance)
        self.isp = learnt_isp(model, budget)
        if self.isp is not None and (tone is not None or isinstance(self.white_balance, str)):
            raise UsageError("a learnt ISP has its own tone and white balance; only factors R,G,B can be given")
        self.tone, self.bits, self.exposure, self.method = tone or "smooth", bits, exposure, method
        set_threads(threads)

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Advance | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Develop a RAW file; ``how`` the picture is written is as of `io.create_picture`.

        Raises:
            InputError: an unreadable file, or a target that cannot be written; nothing is left behind.
            UnavailableError: the extra ``raw`` is not installed.
        """
        from saccade.io import create_picture

        began = time.perf_counter()
        raw = read_raw(source)
        height, width = raw.plane.shape
        turned = raw.flip in (5, 6)
        size = (height, width) if turned else (width, height)
        gains, chosen, notices = self._gains(raw)
        rows, used = self._rows(raw, gains)
        isp = "fixed" if self.isp is None else str(getattr(self.isp, "saccade_name", "model_isp"))
        report = Report(str(source), str(target), size, isp, chosen, used, self.tone, self.bits)
        with create_picture(target, *size, dtype=f"uint{self.bits}", like=_Tags(raw), **how) as writer:
            strips = (_integers(strip, self.bits) for strip in rows)
            for strip in strips if not raw.flip else [_turned(np.concatenate(list(strips)), raw.flip)]:
                writer.write_rows(strip)
                if advance:
                    advance(strip.shape[0] * strip.shape[1])
        report.tone = "learnt" if self.isp is not None else self.tone
        report.notices = [*raw.notices, *notices, *writer.notices]
        report.seconds = time.perf_counter() - began
        return report

    def array(self, raw: RawPicture) -> np.ndarray:
        """A RAW picture that was read, developed: (H, W, 3) uint8 or uint16, upright."""
        rows, _ = self._rows(raw, self._gains(raw)[0])
        return _turned(np.concatenate([_integers(strip, self.bits) for strip in rows]), raw.flip)

    # -- inside

    def _gains(self, raw: RawPicture) -> tuple[tuple[float, float, float] | None, str, list[str]]:
        """Factors with green 1 (None: the model predicts them), where they come from, and what to say of it."""
        asked = self.white_balance
        if isinstance(asked, tuple):
            return (asked[0] / asked[1], 1.0, asked[2] / asked[1]), "given", []
        if self.isp is not None:
            return None, "learnt", []
        if asked in (None, "camera"):
            if raw.gains is not None:
                return raw.gains, "camera", []
            if raw.daylight is not None:
                return raw.daylight, "daylight", [f"{raw.path} notes no white balance: daylight is taken"]
            return grey_world(raw), "auto", [f"{raw.path} notes no white balance: it is estimated from the picture"]
        return grey_world(raw), "auto", []

    def _rows(
        self, raw: RawPicture, gains: tuple[float, float, float] | None
    ) -> tuple[Iterator[torch.Tensor], tuple[float, ...]]:
        """Strips (3, h, W) of the picture in [0, 1], not turned, and the gains that they are made with."""
        import torch

        if self.isp is None:
            assert gains is not None
            lowest = min(gains)  # the smallest factor is 1: what saturates the sensor stays white
            factors = tuple(v / lowest * 2.0**self.exposure for v in gains)
            return self._fixed(raw, factors), factors
        with torch.inference_mode():
            settings = _look_at(self.isp, raw)
        if settings.gains is not None:
            if gains is not None:
                settings = replace(settings, gains=torch.tensor([gains]) * settings.gains[:, 1:2])
            settings = replace(settings, gains=settings.gains * 2.0**self.exposure).check()
        used = () if settings.gains is None else tuple(settings.gains[0].tolist())
        return self._learnt(raw, settings), used

    def _fixed(self, raw: RawPicture, gains: tuple[float, ...]) -> Iterator[torch.Tensor]:
        import torch

        from saccade.restoration.model_isp.folded import render, table_over_root

        factors = torch.tensor(gains)
        matrix = torch.eye(3) if raw.camera_to_rgb is None else torch.from_numpy(raw.camera_to_rgb).float()
        table = None if self.tone == "linear" else table_over_root(_curve(self.tone))
        for _, strip in self._strips(raw):
            with torch.inference_mode():
                yield render(strip.flatten(1), factors, matrix, table).view_as(strip)

    def _learnt(self, raw: RawPicture, settings: Settings) -> Iterator[torch.Tensor]:
        import torch

        from saccade.restoration.model_isp.folded import fold_forward

        assert self.isp is not None
        for top, strip in self._strips(raw):
            with torch.inference_mode():
                yield fold_forward(self.isp, strip[None], settings, top, raw.plane.shape[0])[0]

    def _strips(self, raw: RawPicture) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and demosaicked rows (3, h, W); a cell above and below is seen, and cut off again."""
        import torch

        from saccade.ops.demosaic import demosaic

        cells = raw.plane.shape[0] // 2
        step = max(1, STRIP // (2 * raw.plane.shape[1]))
        for top in range(0, cells, step):
            low, high = max(0, top - 1), min(cells, top + step + 1)
            packed = torch.from_numpy(raw.packed(low, high - low))[None]
            with torch.inference_mode():
                whole = demosaic(packed, raw.pattern, self.method)[0]  # type: ignore[arg-type]
            yield 2 * top, whole[:, 2 * (top - low) : 2 * (min(cells, top + step) - low)].contiguous()


def grey_world(raw: RawPicture) -> tuple[float, float, float]:
    """Factors that make the mean of the picture grey, clipped cells left out."""
    height, width = (n // 2 for n in raw.plane.shape)
    rows = []
    for top in range(0, height, max(1, height // 64)):
        cells = raw.packed(top, 1)[:, 0, :: max(1, width // 64)]
        rows.append(cells[:, (cells < CLIPPED).all(0)])
    unclipped = np.concatenate(rows, 1)
    if not unclipped.size:
        return 1.0, 1.0, 1.0
    red, green, blue = _cell_colours(unclipped, raw.pattern).mean(1)
    if min(red, green, blue) <= 1e-4:
        return 1.0, 1.0, 1.0  # black, or one colour only: there is no telling
    return float(green / red), 1.0, float(green / blue)


def _cell_colours(cells: np.ndarray, pattern: str) -> np.ndarray:
    """Cells (4, ...) as colours (3, ...): the mean of the two greens."""
    return np.stack([cells[[i for i, c in enumerate(pattern) if c == colour]].mean(0) for colour in "rgb"])


def _look_at(isp: ModelISP, raw: RawPicture) -> Settings:
    """What the learnt ISP sets for a RAW, from evenly spread cells of it."""
    import torch

    from saccade.restoration.model_isp.network import spread
    from saccade.restoration.model_isp.stages import pixel_grid

    height, width = (n // 2 for n in raw.plane.shape)
    rows, columns = (spread(n, torch.device("cpu")) for n in (height, width))
    cells = np.concatenate([raw.packed(int(top), 1)[:, :, columns.numpy()] for top in rows], 1)
    look = torch.from_numpy(_cell_colours(cells, raw.pattern))[None]
    return isp.mix(isp.weights(look, pixel_grid(rows.float(), columns.float(), height, width), "forward"))


def _curve(tone: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Linear light to samples."""
    import torch

    from saccade.restoration.model_isp.operators import gamma_compression, smoothstep

    def srgb(x: torch.Tensor) -> torch.Tensor:  # IEC 61966-2-1
        return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)

    return srgb if tone == "srgb" else lambda x: smoothstep(gamma_compression(x))


def _integers(strip: torch.Tensor, bits: int) -> np.ndarray:
    """(3, h, W) in [0, 1] as (h, W, 3) integers."""
    full = 255 if bits == 8 else 65535
    pixels = strip.clamp(0, 1).mul(full).add_(0.5).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels.astype(np.uint8 if bits == 8 else np.uint16))


def _turned(pixels: np.ndarray, flip: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(pixels, {0: 0, 3: 2, 5: 1, 6: 3}[flip]))


class _Tags:
    """A RAW's exposure as the writer of pictures takes tags from a reader."""

    resolution = (1.0, 1.0)

    def __init__(self, raw: RawPicture) -> None:
        import pyvips

        kind = pyvips.GValue.gstr_type
        self.tags: list[tuple[str, int, Any]] = [
            (name, kind, f"{value} ({value}, ASCII, 1 components, 1 bytes)") for name, value in raw.tags.items()
        ]


def set_threads(threads: int) -> None:
    """Let torch use so many; 0 leaves it alone. Raises UsageError for fewer."""
    check_threads(threads)
    if threads:
        import torch

        torch.set_num_threads(threads)


def develop(source: str | Path, output: str | Path | None = None, *, overwrite: bool = False, **options: Any) -> Any:
    """Develop a RAW file: a PIL picture (8 bits), or with ``output`` a file and its `Report`.

    ``options`` are those of `Developer`; errors too.
    """
    developer = Developer(**options)
    if output is not None:
        return developer.picture(source, output, overwrite=overwrite)
    from PIL import Image

    if developer.bits != 8:
        raise UsageError("a PIL picture has 8 bits; give an output file for 16")
    return Image.fromarray(developer.array(read_raw(os.fspath(source))))
