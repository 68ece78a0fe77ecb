"""What users give and get: paths, PIL images, arrays and tensors, around anything that works on integer pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.io.pil import from_pil, to_16_bits, to_pil

__all__ = ["Worker", "apply", "names_folder", "targets"]


class Worker(Protocol):
    """Makes a picture of a picture."""

    def array(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Colour (h, w, 1 or 3) of uint8 or uint16 and alpha (h, w) or None -> the same of the result."""
        ...

    def picture(self, source: Any, target: Any, *, overwrite: bool = False) -> Any:
        """One file to another; returns a report."""
        ...


def apply(worker: Worker, image: Any, output: str | Path | None = None, *, overwrite: bool = False) -> Any:
    """Run a worker on whatever kind of picture.

    Args:
        image: a path, a PIL image, a numpy array (h, w[, 1, 2, 3 or 4]) of uint8, uint16 or floats in [0, 1], or a
            float tensor ([B,] 1 or 3, h, w) in [0, 1].
        output: with a path as ``image``: the file to write.
        overwrite: replace an existing ``output``.

    Returns:
        What came in: PIL image for a path or PIL image, array for an array, tensor for a tensor (computed in 16 bits),
        or the worker's report with ``output``.

    Raises:
        UsageError: ``output`` without a path. InputError: no picture.
    """
    if isinstance(image, str | os.PathLike):
        if output is not None:
            return worker.picture(os.fspath(image), output, overwrite=overwrite)
        from saccade.io import read_picture

        colour, alpha, _ = read_picture(image)
        return to_pil(*worker.array(colour, alpha))
    if output is not None:
        raise UsageError("output goes with a path as input")
    if type(image).__module__.startswith("PIL."):
        return to_pil(*worker.array(*from_pil(image)))
    if isinstance(image, np.ndarray):
        return _array_like(image, worker)
    if hasattr(image, "detach"):
        return _tensor_like(image, worker)
    raise InputError(f"a picture is a path, a PIL image, a numpy array or a tensor, not {type(image).__name__}")


def _array_like(image: np.ndarray, worker: Worker) -> np.ndarray:
    """An array of the same rank and dtype."""
    given = image
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4):
        raise InputError(f"an array picture is (h, w) or (h, w, 1 to 4), got {given.shape}")
    floats = np.issubdtype(image.dtype, np.floating)
    if floats:
        image = to_16_bits(image)
    has_alpha = image.shape[2] in (2, 4)
    colour, alpha = (image[..., :-1], image[..., -1]) if has_alpha else (image, None)
    made, clear = worker.array(np.ascontiguousarray(colour), alpha)
    if clear is not None:
        made = np.concatenate((made, clear[:, :, None]), 2)
    if floats:
        made = (made / 65535).astype(given.dtype)
    return made[:, :, 0] if given.ndim == 2 else made


def _tensor_like(image: Any, worker: Worker) -> Any:
    import torch

    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or batch.shape[1] not in (1, 3) or not batch.numel() or not batch.is_floating_point():
        raise InputError(
            f"a tensor picture is float ([B,] 1 or 3, h, w) in [0, 1], got {tuple(image.shape)} {image.dtype}"
        )
    made = []
    for picture in batch.detach().float().cpu().permute(0, 2, 3, 1).numpy():
        pixels, _ = worker.array(to_16_bits(picture))
        made.append(torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1))
    out = torch.stack(made).to(image.device, image.dtype)
    return out if image.ndim == 4 else out[0]


def names_folder(out: str | Path) -> bool:
    """Whether an output is meant as a folder: it exists as one, ends with a slash, or has no suffix."""
    return str(out).endswith(("/", os.sep)) or Path(out).is_dir() or not Path(out).suffix


def targets(
    sources: Iterable[Path],
    out: str | Path | None,
    ending: str,
    format: str | None,  # noqa: A002
) -> Iterator[tuple[Path, Path]]:
    """Where each source goes: ``photo<ending>.jpg`` beside it, into the folder ``out``, or the file ``out`` itself.

    Raises:
        UsageError: several sources for one output file, or two sources for the same name.
    """
    from saccade.io import is_video

    sources = list(sources)
    one_file = out is not None and not names_folder(out)
    if one_file and len(sources) > 1:
        raise UsageError(f"{len(sources)} pictures cannot go into the one file {out}; give a folder")
    seen: dict[Path, Path] = {}
    for source in sources:
        if out is not None and one_file:
            target = Path(out)
        else:
            suffix = source.suffix if is_video(source) else _suffix(source, format)
            target = Path(out or source.parent) / f"{source.stem}{ending}{suffix}"
        if target in seen:
            raise UsageError(f"{source} and {seen[target]} would both be written to {target}")
        seen[target] = source
        yield source, target


def _suffix(source: Path, format: str | None) -> str:  # noqa: A002
    """The suffix of a result: that of the asked format, else the source's own where it can be written, else PNG."""
    if format is not None:
        return {"jpeg": ".jpg", "jpg": ".jpg", "tif": ".tiff"}.get(format.lower(), f".{format.lower()}")
    writable = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".avif")
    return source.suffix if source.suffix.lower() in writable else ".png"
