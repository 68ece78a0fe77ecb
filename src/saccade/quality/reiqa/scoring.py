"""Scores of pictures and folders: read, check, encode at two sizes, regress.

file -- 8-bit RGB, upright -- long side at most `side` -- half by Pillow -- encoders -- features -- ridge -- score
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from torch import Tensor

from saccade.checkpoint import load, read_header, write_bytes
from saccade.errors import CheckpointError, InputError, SaccadeError, UsageError, first_line, naming
from saccade.io import find_pictures, read_picture
from saccade.io.pil import from_pil
from saccade.quality.reiqa.engine import Backend, Encode, encoders, pick_backend
from saccade.quality.reiqa.network import SMALLEST, ReIQA, layout_hash
from saccade.quality.reiqa.ridge import Ridge
from saccade.registry import create
from saccade.runtime.threads import check_threads

__all__ = ["SIDE", "Regressor", "Score", "Scorer", "score"]

#: pictures with a longer side are reduced to it
SIDE = 2048
#: what a file of a regressor calls itself in its header
KIND = "saccade_regressor"


@dataclass(frozen=True)
class Regressor:
    """A fitted ridge and the features that it was fitted on.

    Attributes:
        coefficients: (D,).
        intercept: a number.
        layout: as `ReIQA.describe_layout` tells it.
        model: registered name of the features' network.
        about: what else is worth keeping (figures, number of pictures).
    """

    coefficients: np.ndarray
    intercept: float
    layout: dict[str, Any]
    model: str = "reiqa_small"
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, ridge: Ridge, scorer: Scorer, **about: Any) -> Regressor:
        """From a fit on what ``scorer`` calls features."""
        told = {"alpha": ridge.alpha, "left_out_error": ridge.left_out_error, **about}
        return cls(ridge.coefficients, ridge.intercept, scorer.layout, scorer.name, told)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write as safetensors, with the layout and its hash in the header.

        Raises:
            InputError: the file exists and is not to be replaced, or cannot be written.
        """
        from safetensors.numpy import save

        path = Path(path)
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; choose another name or give --overwrite")
        told = {"layout": self.layout, "hash": layout_hash(self.layout), "model": self.model, "about": self.about}
        numbers = {"coefficients": np.asarray(self.coefficients, np.float64), "intercept": np.array(self.intercept)}
        write_bytes(path, save(numbers, metadata={KIND: json.dumps(told, sort_keys=True)}))

    @classmethod
    def load(cls, path: str | Path) -> Regressor:
        """Read what `save` wrote. Pickles are never opened.

        Raises:
            CheckpointError: missing, damaged, or no regressor; a pickle (published regressors are such files).
        """
        path = Path(path)
        if path.suffix.lower() in {".pkl", ".pickle", ".joblib", ".save"}:
            raise CheckpointError(
                f"{path} is a pickle, which could run code when opened: fit a regressor anew (saccade train iqa)"
            )
        header, _ = read_header(path)
        if KIND not in header:
            raise CheckpointError(f"{path} holds no regressor; saccade train iqa writes one")
        from safetensors.numpy import load_file

        try:
            told, numbers = json.loads(header[KIND]), load_file(path)
            coefficients, intercept = numbers["coefficients"].astype(np.float64), float(numbers["intercept"])
            layout, model, about = dict(told["layout"]), str(told["model"]), dict(told.get("about", {}))
            if told["hash"] != layout_hash(layout) or coefficients.shape != (layout["dimensions"],):
                raise ValueError("its layout does not match its numbers")
        except Exception as error:
            raise CheckpointError(f"{path} is a damaged regressor ({first_line(error)})") from error
        if not (np.isfinite(coefficients).all() and np.isfinite(intercept)):
            raise CheckpointError(f"{path} holds a regressor with numbers that are not finite")
        return cls(coefficients, intercept, layout, model, about)

    def check(self, layout: Mapping[str, Any], source: str = "the regressor") -> None:
        """Refuse features of another kind than those it was fitted on.

        Raises:
            CheckpointError: names what differs.
        """
        if layout_hash(dict(layout)) == layout_hash(self.layout):
            return
        told, own = (json.loads(json.dumps(x)) for x in (dict(layout), self.layout))
        differs = [f"{key} {own.get(key)} there, {told.get(key)} here" for key in told if told[key] != own.get(key)]
        raise CheckpointError(f"{source} was fitted on other features: {'; '.join(differs)}")


@dataclass(frozen=True)
class Score:
    """What came out for one picture.

    Attributes:
        path: as given.
        score: higher is better; None where the picture could not be used.
        width, height: of the file, in pixels; 0 where it could not be read.
        notices: what was converted, one sentence each.
        error: why there is no score.
    """

    path: str
    score: float | None
    width: int = 0
    height: int = 0
    notices: tuple[str, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


class Scorer:
    """Scores of pictures by one model and one regressor.

    Args:
        model: a registered name, a file of weights, or a model.
        regressor: a file or a `Regressor`; None for the model's own.
        budget: share of the full cost (see `ReIQA`); None leaves the model's setting.
        side: pictures with a longer side are reduced to it (bicubic); at least 256.
        backend: ``auto``, ``openvino`` or ``torch``.
        threads: of the processor; 0 for all cores.

    Raises:
        UsageError: unknown name or backend, a side below 256, negative threads, or no regressor where one is needed.
        CheckpointError: an unusable file; a regressor fitted on other features.
    """

    def __init__(
        self,
        model: str | Path | ReIQA = "reiqa_small",
        regressor: str | Path | Regressor | None = None,
        *,
        budget: float | None = None,
        side: int = SIDE,
        backend: Backend = "auto",
        threads: int = 0,
    ) -> None:
        if side < 256:
            raise UsageError(f"--side is at least 256 pixels, not {side}")
        check_threads(threads)
        self.model, self.side = _model(model), side
        self.name = str(getattr(self.model, "saccade_name", "reiqa"))
        if isinstance(regressor, str | Path):
            source, regressor = str(regressor), Regressor.load(regressor)
        else:
            source = "the regressor"
        if regressor is not None and budget is None:
            self._take_layout(regressor)
        elif budget is not None:
            self.model.budget = budget
        self.layout = self.model.describe_layout(side)
        if regressor is not None:
            regressor.check(self.layout, source)
        self.regressor = regressor
        self.backend = pick_backend(backend)
        self._encoders: dict[str, Encode] | None = None
        self._threads = threads

    def _take_layout(self, regressor: Regressor) -> None:
        """Turn the dial to where the regressor was fitted, if there is such a place."""
        wanted = [tuple(regressor.layout.get(key, ())) for key in ("branches", "sizes")]
        for setting in self.model.settings():
            layout = self.model.use(setting).layout
            if [layout.branches, layout.sizes] == wanted:
                return

    @property
    def smallest(self) -> int:
        """Pixels that each side is to have: 64, or 32 where the half size is not used."""
        return SMALLEST * (2 if 0.5 in self.model.layout.sizes else 1)

    def features(self, picture: str | Path | np.ndarray | Image.Image | Tensor) -> np.ndarray:
        """(D,) float32, in the order of the layout.

        Args:
            picture: a file, a Pillow image, an (H, W, 3) array (uint8, or float in [0, 1]) or a (3, H, W) tensor in
                [0, 1].

        Raises:
            InputError: unreadable, too small, or values that are no pixels.
        """
        pixels = read_pixels(picture)[0] if isinstance(picture, str | Path) else to_bytes(picture)
        return self.features_of_bytes(pixels)

    def features_of_bytes(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (D,) float32."""
        sizes, branches = self.model.layout.sizes, self.model.layout.branches
        pixels = capped(pixels, self.side, self.smallest)
        check_size(pixels, 0.5 in sizes)
        ready = self.prepare()
        given = {1.0: pixels, 0.5: half(pixels) if 0.5 in sizes else pixels}
        return np.concatenate([ready[branch](given[size]) for branch in branches for size in sizes])

    def _doubts(self, pixels: np.ndarray) -> list[str]:
        """Why the score of a picture says little, if so."""
        doubts = []
        height, width = capped_size(pixels, self.side, self.smallest)
        if min(height, width) < 2 * self.smallest:
            reduced = "" if (height, width) == pixels.shape[:2] else "once it is reduced, "
            doubts.append(f"has few pixels, {reduced}{width} x {height}: its score is rough")
        if (pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
            doubts.append("is of one colour throughout: its score says nothing")
        return doubts

    def prepare(self) -> dict[str, Encode]:
        """The encoders, made ready to run; the first picture does it otherwise."""
        if self._encoders is None:
            self._encoders = encoders(self.model, self.backend, self._threads)
        return self._encoders

    def regress(self, features: np.ndarray) -> float:
        """Score of one row of features.

        Raises:
            UsageError: neither a regressor was given nor does the model hold one.
        """
        if self.regressor is not None:
            return float(features @ self.regressor.coefficients + self.regressor.intercept)
        import torch

        with torch.inference_mode():
            return float(self.model.regress(torch.from_numpy(features)[None])[0])

    def score(self, picture: str | Path | np.ndarray | Image.Image | Tensor) -> float:
        """Score of one picture, as `features` takes it; higher is better."""
        return self.regress(self.features(picture))

    def scores(self, paths: Iterable[str | Path]) -> Iterator[Score]:
        """Scores of files, in their order; a file that cannot be used gets an error and the others go on.

        The next file is read while one is scored.

        Raises:
            UsageError: there is no regressor.
        """
        if self.regressor is None and not self.model.scores:
            self.regress(np.zeros(self.model.dimensions(), np.float32))  # raises what is to be said
        files = [Path(p) for p in paths]
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(read_pixels, f) for f in files[:1]]
            for i, path in enumerate(files):
                ahead += [reader.submit(read_pixels, f) for f in files[i + 1 : i + 2]]
                try:
                    pixels, notices, size = ahead.pop(0).result()
                    value = self.regress(self.features_of_bytes(pixels))
                    notices += [f"{path} {words}" for words in self._doubts(pixels)]
                    yield Score(str(path), value, *size, tuple(notices))
                except SaccadeError as error:
                    yield Score(str(path), None, error=naming(error, path))


def _model(given: str | Path | ReIQA) -> ReIQA:
    if isinstance(given, ReIQA):
        return given
    is_file = isinstance(given, Path) or os.sep in given or Path(given).suffix != ""
    made = load(given) if is_file else create(str(given))
    if not isinstance(made, ReIQA):
        raise UsageError(f"{given} is {getattr(made, 'saccade_name', type(made).__name__)}, which gives no scores")
    return made


def read_pixels(path: str | Path) -> tuple[np.ndarray, list[str], tuple[int, int]]:
    """(H, W, 3) uint8 of a file, what was converted, and its (width, height).

    Grey becomes three equal channels, 16 bits become 8, transparency is laid on white.

    Raises:
        InputError: unreadable.
    """
    pixels, alpha, reader = read_picture(path)
    notices = list(reader.notices)
    pixels, said = bytes_on_white(pixels, alpha)
    return pixels, [*notices, *(f"{path} {words}" for words in said)], (reader.width, reader.height)


def bytes_on_white(pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    """(h, w, 1 or 3) of uint8 or uint16 and alpha (h, w) as (h, w, 3) uint8, and what was converted."""
    said = []
    if pixels.dtype != np.uint8:
        said.append("has 16 bits a sample: scored at 8")
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        alpha = None if alpha is None else ((alpha.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.shape[2] == 1:
        said.append("is grey: scored as RGB with three equal channels")
        pixels = np.repeat(pixels, 3, 2)
    if alpha is not None and alpha.min() < 255:
        said.append("has transparency: scored on white")
        cover = alpha[..., None].astype(np.float32) / 255
        pixels = np.rint(255 + (pixels - np.float32(255)) * cover).astype(np.uint8)
    return pixels, said


def to_bytes(picture: np.ndarray | Image.Image | Tensor) -> np.ndarray:
    """(H, W, 3) uint8 of a picture in memory.

    Raises:
        InputError: another shape, or values outside [0, 1].
    """
    if isinstance(picture, Image.Image):
        return bytes_on_white(*from_pil(picture))[0]
    if isinstance(picture, Tensor):
        tensor = picture[0] if picture.ndim == 4 and len(picture) == 1 else picture
        array: np.ndarray = tensor.detach().cpu().numpy()
        picture = array.transpose(1, 2, 0) if array.ndim == 3 else array
    if picture.ndim != 3 or picture.shape[2] != 3:
        raise InputError(f"scoring takes RGB pictures (H, W, 3), not {picture.shape}")
    if picture.dtype == np.uint8:
        return picture
    if not np.issubdtype(picture.dtype, np.floating):
        raise InputError(f"scoring takes uint8 or float pictures, not {picture.dtype}")
    low, high = (float(picture.min()), float(picture.max())) if picture.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        hint = "it looks normalised" if low < 0 else "divide by 255" if high > 2 else "clamp it"
        raise InputError(f"scoring takes pictures in [0, 1]; this one lies in [{low:.3g}, {high:.3g}]: {hint}")
    return np.rint(picture * 255).astype(np.uint8)


def capped_size(pixels: np.ndarray, side: int, smallest: int = 1) -> tuple[int, int]:
    """(height, width) that `capped` reduces to."""
    longest, shortest = max(pixels.shape[:2]), min(pixels.shape[:2])
    share = min(1.0, side / longest)
    if shortest * share < smallest <= shortest and smallest * longest * (smallest / shortest) <= side**2:
        share = smallest / shortest
    height, width = (max(1, round(n * share)) for n in pixels.shape[:2])
    return height, width


def capped(pixels: np.ndarray, side: int, smallest: int = 1) -> np.ndarray:
    """Reduced so that the long side is at most ``side`` (Pillow's bicubic).

    Of a panorama the long side stays longer, where the short one would fall below ``smallest`` and all pixels together
    are no more than a square of ``side`` has.
    """
    if max(pixels.shape[:2]) <= side:
        return pixels
    height, width = capped_size(pixels, side, smallest)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def half(pixels: np.ndarray) -> np.ndarray:
    """Half size as the published features have it: Pillow's bicubic, antialiased, odd rows and columns rounded down."""
    return np.asarray(Image.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2)))


def check_size(pixels: np.ndarray, halved: bool) -> None:
    """Refuse pictures of which too little is left.

    Raises:
        InputError: a side below 64 pixels (32 where the half size is not used).
    """
    smallest, shortest = SMALLEST * (2 if halved else 1), min(pixels.shape[:2])
    if shortest < smallest:
        enough = f" ({SMALLEST} will do at a lower budget, without the half size)" if shortest >= SMALLEST else ""
        raise InputError(
            f"a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels is too small to score: each side is to have at "
            f"least {smallest}{enough}"
        )


def score(
    paths: str | Path | Iterable[str | Path],
    model: str | Path | ReIQA = "reiqa_small",
    regressor: str | Path | Regressor | None = None,
    **options: Any,
) -> list[Score]:
    """Scores of files, folders and globs; what cannot be read has its error in the row.

    Args:
        paths: one or several.
        model, regressor, options: as `Scorer` takes them.

    Raises:
        InputError: nothing of that name, or no picture there.
        UsageError, CheckpointError: as `Scorer` raises.
    """
    return list(Scorer(model, regressor, **options).scores(find_pictures(cast(Any, paths))))
