"""What the page can do with a file, without the page: upscale, restore, rescale, score.

uploaded file -- checked against the limits -- job -- result file, two previews of one size, a line about the cost
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.errors import InputError, UsageError
from saccade.runtime.threads import check_threads

if TYPE_CHECKING:
    import numpy as np

__all__ = ["JOBS", "TASKS", "Limits", "Outcome", "offered", "run"]

#: job: (what its dial turns, smallest, largest, start)
JOBS = {
    "upscale": ("Budget: share of the full cost", 0.05, 1.0, 0.15),
    "restore": ("Budget: share of the full cost", 0.05, 1.0, 0.3),
    "rescale": ("Scale of the small picture's sides: larger pictures are kept better", 0.25, 0.95, 0.5),
    "score": ("Budget: share of the full cost", 0.05, 1.0, 1.0),
}
TASKS = ("auto", "denoise", "jpeg", "weather")
SCORER = "reiqa_small"
PREVIEW = 1600  # pixels of a preview's longer side


def offered() -> list[str]:
    """The jobs that can be done: a score needs weights, which do not ship yet."""
    from saccade import registry

    return [job for job in JOBS if job != "score" or registry.default_weights(SCORER) is not None]


@dataclass(frozen=True)
class Limits:
    """What the page takes.

    Attributes:
        megabytes: of a file.
        megapixels: of a picture.
        frames: of a clip.
        max_memory: bytes that a job may hold.
        threads: of the processor; 0 for all.

    Raises:
        UsageError: a limit that lets nothing pass, or a negative number of threads.
    """

    megabytes: float = 64.0
    megapixels: float = 40.0
    frames: int = 900
    max_memory: int = 2 << 30
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("megabytes", "megapixels", "frames", "max_memory"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"the page's limit of {name} must be a positive number, not {value:g}")
        check_threads(self.threads)


@dataclass
class Outcome:
    """What a job made.

    Attributes:
        before, after: previews of one size (PNG), or None for a score.
        made: the result to download, or None.
        told: what was done and what it cost, one Markdown line each.
    """

    before: Path | None = None
    after: Path | None = None
    made: Path | None = None
    told: list[str] = field(default_factory=list)


def run(
    job: str,
    source: str | Path,
    folder: Path,
    *,
    dial: float | None = None,
    scale: int = 2,
    task: str = "auto",
    limits: Limits = Limits(),
    advance: Any = None,
) -> Outcome:
    """Do a job on one file.

    Args:
        job: a name of `JOBS`.
        source: picture or clip.
        folder: where results go; it exists.
        dial: within the job's range; None for its start.
        scale: of upscaling: 2, 3 or 4.
        task: of restoring, a name of `TASKS`.
        limits: what is taken.
        advance: called with the fraction that is done, 0 to 1.

    Raises:
        UsageError: no such job, a dial outside its range.
        InputError: no picture, or one beyond the limits.
    """
    if job not in JOBS:
        raise UsageError(f"no job named {job!r}; there are {', '.join(JOBS)}")
    _, low, high, start = JOBS[job]
    dial = start if dial is None else float(dial)
    if not low <= dial <= high:
        raise UsageError(f"the dial of {job} lies between {low:g} and {high:g}, not {dial:g}")
    path = Path(source)
    pixels, most, clip = _checked(path, limits)
    progress = _Progress(advance, pixels, most, f"{path.name} has more than the {limits.frames} frames of this page")
    if job == "score":
        return _score(path, clip, dial, limits)
    if job == "rescale":
        return _rescale(path, clip, folder, dial, limits, progress)
    return _streamed(job, path, clip, folder, (dial, scale, task), limits, progress)


class _Progress:
    """Pixels done as a fraction; ends a clip that goes on beyond what its header told."""

    def __init__(self, advance: Any, total: float, most: float, too_many: str) -> None:
        self.advance, self.total, self.most, self.too_many = advance, max(1.0, total), most, too_many
        self.done = 0.0

    def __call__(self, pixels: float) -> None:
        self.done += pixels
        if self.done > self.most:
            raise InputError(self.too_many)
        if self.advance is not None:
            self.advance(min(1.0, self.done / self.total))


def _checked(path: Path, limits: Limits) -> tuple[float, float, bool]:
    """Pixels of all frames as the header tells them, pixels that are too many, and whether it is a clip.

    Raises:
        InputError: no picture, or one beyond the limits.
    """
    from saccade.io import is_video, open_picture
    from saccade.io.files import first_bytes

    first_bytes(path, 1)
    size = path.stat().st_size / (1 << 20)
    if size > limits.megabytes:
        raise InputError(f"{path.name} has {size:.0f} MB; this page takes {limits.megabytes:g} MB")
    if is_video(path):
        from saccade.io import open_video

        clip = open_video(path)
        if clip.frames and clip.frames > limits.frames:
            raise InputError(f"{path.name} has {clip.frames} frames; this page takes {limits.frames}")
        width, height, frames = clip.width, clip.height, clip.frames or limits.frames
    else:
        with open_picture(path) as picture:
            width, height, frames = picture.width, picture.height, 1
    if width * height > limits.megapixels * 1e6:
        raise InputError(
            f"{path.name} has {width * height / 1e6:.0f} megapixels; this page takes {limits.megapixels:g}"
        )
    most = width * height * limits.frames if is_video(path) else math.inf
    return float(width * height * frames), most, is_video(path)


# -- jobs


def _streamed(
    job: str, path: Path, clip: bool, folder: Path, chosen: tuple[float, int, str], limits: Limits, progress: _Progress
) -> Outcome:
    dial, scale, task = chosen
    notes = []
    if job == "restore" and dial < 1:
        from saccade.restoration.restore import TASKS as NETWORKS

        if len(NETWORKS[task]) == 1:
            dial = 1.0
            notes.append(f"one network ships for {task}: the dial turns nothing there")
    worker = _worker(job, dial, scale if job == "upscale" else 1, task, limits.max_memory, limits.threads)
    ending = f"_x{scale}" if job == "upscale" else "_restored"
    made = folder / f"{path.stem}{ending}{path.suffix if clip else '.png'}"
    report = (worker.video if clip else worker.picture)(path, made, overwrite=True, advance=progress)
    before, after = _previews(path, made, folder, clip)
    return Outcome(before, after, made, [_cost(report, made), *(f"Note: {n}" for n in (*notes, *report.notices))])


@functools.lru_cache(maxsize=8)
def _worker(job: str, dial: float, scale: int, task: str, max_memory: int, threads: int) -> Any:
    """A job's worker with its engines, kept: starting one takes longer than most pictures."""
    if job == "upscale":
        from saccade.restoration.upscale import Upscaler

        return Upscaler(scale=scale, budget=dial, max_memory=max_memory, threads=threads)
    from saccade.restoration.restore import Restorer

    return Restorer(task, budget=dial, max_memory=max_memory, threads=threads)


def _rescale(path: Path, clip: bool, folder: Path, dial: float, limits: Limits, progress: _Progress) -> Outcome:
    if clip:
        raise InputError(f"{path.name} is a clip; only pictures are rescaled")
    from saccade.restoration.rescale import Enlarger, Shrinker

    options: dict[str, Any] = {"max_memory": limits.max_memory, "threads": limits.threads}
    small, back = folder / f"{path.stem}_small.png", folder / f"{path.stem}_back.png"
    first = Shrinker(scale=1 / dial, **options).picture(path, small, overwrite=True, advance=progress)
    second = Enlarger(**options).picture(small, back, overwrite=True)
    before, after = _previews(path, back, folder, False)
    sizes = " → ".join(f"{w} × {h}" for w, h in (first.size, first.made, second.made))
    told = [
        f"**{sizes}** px · {first.model} · {first.seconds + second.seconds:.2f} s · the small picture, {_size(small)}, "
        "holds what *saccade enlarge* needs: download it"
    ]
    return Outcome(before, after, small, [*told, *(f"Note: {n}" for n in (*first.notices, *second.notices))])


def _score(path: Path, clip: bool, dial: float, limits: Limits) -> Outcome:
    if clip:
        raise InputError(f"{path.name} is a clip; only pictures are scored")
    began = time.perf_counter()
    scorer = _scorer(dial, limits.threads)
    found = scorer.score(path)
    seconds = time.perf_counter() - began
    return Outcome(told=[f"**{path.name}: quality {float(found):.1f} of 100** · {scorer.name} · {seconds:.2f} s"])


@functools.lru_cache(maxsize=2)
def _scorer(dial: float, threads: int) -> Any:
    from saccade.quality.reiqa.scoring import Scorer

    return Scorer(budget=None if dial >= 1 else dial, threads=threads)


# -- what is shown


def _cost(report: Any, made: Path) -> str:
    size = f"{report.size[0]} × {report.size[1]}"
    to = f" → {report.made[0]} × {report.made[1]}" if report.made != report.size else ""
    parts = [f"**{size}{to}** px", report.model, report.backend]
    if report.frames > 1:
        parts.append(f"{report.frames} frames")
    if report.macs:
        parts.append(f"{report.macs / 1e9:,.1f} GMACs")
    if report.budget:
        parts.append(f"{report.budget['macs_fraction']:.0%} of the full cost")
    return " · ".join([*parts, f"{report.seconds:.2f} s", _size(made)])


def _size(path: Path) -> str:
    size = path.stat().st_size
    return f"{size / 1024:.0f} KB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MB"


def _previews(source: Path, made: Path, folder: Path, clip: bool) -> tuple[Path, Path]:
    """Source and result at one size, at most `PREVIEW` pixels: of clips, the first frame."""
    from PIL import Image

    pictures = [_first_frame(p) if clip else _picture(p) for p in (source, made)]
    width, height = pictures[1].size
    share = min(1.0, PREVIEW / max(width, height))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    paths = (folder / "before.png", folder / "after.png")
    for picture, path in zip(pictures, paths, strict=True):
        picture.resize(size, Image.Resampling.BICUBIC).save(path, compress_level=1)
    return paths


def _picture(path: Path) -> Any:
    """A PIL image in RGB, its longer side below twice `PREVIEW`, transparency on white; read a few rows at a time."""
    import numpy as np
    from PIL import Image

    from saccade.io import open_picture

    with open_picture(path) as reader:
        step = max(1, max(reader.width, reader.height) // PREVIEW)
        across, down = min(step, reader.width), min(step, reader.height)
        strips = [_means(*pixels, down, across) for pixels in reader.strips(down * max(1, 64 // down))]
    return Image.fromarray(np.concatenate([strip for strip in strips if len(strip)]))


def _means(colour: np.ndarray, alpha: np.ndarray | None, down: int, across: int) -> np.ndarray:
    """(h, w, 1 or 3) on white, the mean of every ``down`` x ``across`` pixels: uint8 (h // down, w // across, 3)."""
    import numpy as np

    full = float(np.iinfo(colour.dtype).max)
    pixels = colour / np.float32(full)
    if alpha is not None:
        pixels = 1 + (pixels - 1) * (alpha[:, :, None] / np.float32(full))
    height, width = (n // m for n, m in zip(colour.shape, (down, across), strict=False))
    blocks = pixels[: height * down, : width * across].reshape(height, down, width, across, -1)
    made: np.ndarray = np.rint(blocks.mean((1, 3)) * 255).astype(np.uint8)
    return np.repeat(made, 3, 2) if made.shape[2] == 1 else made


def _first_frame(path: Path) -> Any:
    from PIL import Image

    from saccade.io import open_video

    return Image.fromarray(next(iter(open_video(path))))
