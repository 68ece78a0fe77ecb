"""Shrinking and enlarging with a network: files, arrays, any size, a tile at a time."""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor

from saccade import registry
from saccade.checkpoint import load
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.io import PictureReader, Saving, create_picture, open_picture
from saccade.io.files import check_target
from saccade.io.png import add_text, read_text
from saccade.restoration.iarn import IARN
from saccade.restoration.iarn.phases import Window, window
from saccade.restoration.rescale.note import KEYWORD, Note, parse_note
from saccade.restoration.rescale.tiles import (
    Advance,
    InMemory,
    Planes,
    around,
    beside,
    checksum,
    cut,
    inner_of,
    resized_alpha,
    rgb,
    scaled,
    stacked,
    to_bytes,
)
from saccade.runtime.stream import QUEUED, RESIDENT, give_blocks_back
from saccade.runtime.threads import check_threads, on_threads

__all__ = ["Enlarger", "Report", "Rescaler", "Shrinker", "fingerprint"]

LARGEST = 4.0  # factor up to which the network was trained
TILES = (512, 384, 256, 192, 128, 96, 64, 32)  # sides in small pixels, the largest that fits is taken


@dataclass
class Report:
    """What was done to one file."""

    source: str
    target: str
    size: tuple[int, int]
    made: tuple[int, int]
    model: str
    factor: tuple[float, float]
    bytes: int
    tiles: int
    seconds: float
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class Rescaler:
    """A network and how it is run: what shrinking and enlarging share.

    Args:
        model: a registered name, a file of weights, or the network itself.
        device: where it runs: auto, cpu, cuda, ...
        max_memory: bound on this process's memory in bytes, None for none; tiles are as large as fits.
        threads: of the processor; 0 for torch's own choice.
        tile: side of a tile in small pixels; None chooses by memory.

    Raises:
        UsageError: a model that does not rescale, a tile below 8, a negative number of threads, no such device.
        CheckpointError: a file that cannot be used.
    """

    def __init__(
        self,
        model: str | Path | IARN = "iarn",
        *,
        device: str = "auto",
        max_memory: int | None = None,
        threads: int = 0,
        tile: int | None = None,
    ) -> None:
        self.model = _network(model)
        self.name = str(getattr(self.model, "saccade_name", "iarn"))
        self.weights = fingerprint(self.model)
        if tile is not None and tile < 8:
            raise UsageError(f"a tile has at least 8 pixels a side, not {tile}")
        check_threads(threads)
        self.max_memory, self.threads, self.tile = max_memory, threads, tile
        try:
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self.device = torch.device(device)
            self.model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"no computing on {device!r}: {str(error).splitlines()[0]}") from None

    def _tile(self, large: tuple[int, int], small: tuple[int, int]) -> int:
        """The side of a tile in small pixels that keeps within ``max_memory``.

        Raises:
            UsageError: even the smallest does not fit.
        """
        give_blocks_back()
        if self.tile is not None:
            return self.tile
        if self.max_memory is None:
            return TILES[0]
        have = RESIDENT["torch"] + QUEUED
        for side in TILES:
            need = have + 3 * self._bytes(side, large, small) // 2  # half as much again: holes between blocks
            if need <= self.max_memory:
                return side
        raise UsageError(
            f"--max-memory {self.max_memory >> 20} MB is too little here: {math.ceil(need / 2**20)} MB are needed"
        )

    def _bytes(self, side: int, large: tuple[int, int], small: tuple[int, int]) -> int:
        """What a tile of ``side`` small pixels takes at most, with a band of rows that waits for the encoder."""
        area = math.prod(min(side + 2 * self.model.halo, n) for n in small)
        factor = (large[0] / small[0]) * (large[1] / small[1])
        widest = max(m.out_channels + m.in_channels for m in self.model.modules() if isinstance(m, torch.nn.Conv2d))
        network = 4 * area * 4 * widest + 4 * area * int(3 * 10 * max(1.0, factor))
        band = 8 * 2 * large[1] * math.ceil((side + 2 * self.model.halo) * large[0] / small[0])
        return network + band

    def _run(self, task: Callable[[Tensor, Window], Tensor], given: np.ndarray, where: Window) -> np.ndarray:
        """One tile: (h, w, 3) in [0, 1] -> the same of the other size."""
        x = torch.from_numpy(np.ascontiguousarray(given.transpose(2, 0, 1)))[None].to(self.device)
        with on_threads(self.threads or torch.get_num_threads()), torch.inference_mode():
            made = task(x, where)[0].clamp(0, 1)
        found: np.ndarray = made.permute(1, 2, 0).cpu().numpy()
        return found

    def _report(
        self,
        source: str | Path,
        target: str | Path,
        size: tuple[int, int],
        made: tuple[int, int],
        tiles: int,
        began: float,
        notices: list[str],
    ) -> Report:
        """What was done to one file, from the moment ``began`` to now."""
        wide, high = (max(pair) / min(pair) for pair in zip(size, made, strict=True))
        told = (str(source), str(target), size, made, self.name, (wide, high), Path(target).stat().st_size, tiles)
        return Report(*told, time.perf_counter() - began, notices)


def _check_size(size: Any) -> None:
    """Refuse what is no (width, height) in whole pixels; None is none."""
    if size is not None and (len(size) != 2 or not all(isinstance(n, int | np.integer) and n >= 1 for n in size)):
        raise UsageError(f"a size is a width and a height of at least 1 pixel, not {size}")


class Shrinker(Rescaler):
    """Makes small pictures. One of ``size`` and ``scale`` is needed.

    Args:
        size: (width, height) of the small picture, or None.
        scale: by how much to shrink, one number or (columns, rows), or None.
        others: as `Rescaler`.

    Raises:
        UsageError: neither or both, a scale not above 1, a size below 1; and as `Rescaler`.
    """

    def __init__(
        self,
        model: str | Path | IARN = "iarn",
        *,
        size: tuple[int, int] | None = None,
        scale: float | tuple[float, float] | None = None,
        **others: Any,
    ) -> None:
        if (size is None) == (scale is None):
            raise UsageError("say how large the small picture shall be (--size) or how much to shrink (--scale)")
        if scale is not None:
            pair = scale if isinstance(scale, tuple) else (scale, scale)
            if len(pair) != 2 or not all(
                isinstance(s, int | float | np.number) and math.isfinite(s) and s > 1 for s in pair
            ):
                raise UsageError(f"shrinking goes by a scale above 1, not {scale}")
        _check_size(size)
        self.size, self.scale = size, scale
        super().__init__(model, **others)

    def small_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the small picture of a picture of this size.

        Raises:
            InputError: it would not be smaller.
        """
        if self.size is not None:
            made = self.size
        else:
            assert self.scale is not None
            pair = self.scale if isinstance(self.scale, tuple) else (self.scale, self.scale)
            made = (max(1, round(width / pair[0])), max(1, round(height / pair[1])))
        if made[0] > width or made[1] > height or made == (width, height):
            raise InputError(f"{made[0]} x {made[1]} px is not smaller than the picture's {width} x {height} px")
        return made

    def array(self, colour: np.ndarray, alpha: np.ndarray | None = None) -> Planes:
        """Colour (H, W, 1 or 3) and alpha (H, W) of uint8 or uint16 -> (h, w, 3) uint8 and alpha (h, w)."""
        height, width = colour.shape[:2]
        bands = list(self.bands(InMemory(colour, alpha), self.small_size(width, height)))
        return stacked(bands)

    def bands(self, source: Any, small: tuple[int, int], advance: Advance | None = None) -> Iterator[Planes]:
        """Rows of tiles of the small picture from top to bottom: (h, w, 3) uint8 and alpha (h, w) or None."""
        large, small = (source.height, source.width), (small[1], small[0])
        side = self._tile(large, small)
        for top in range(0, small[0], side):
            rows = (top, min(top + side, small[0]))
            tiles = []
            for left in range(0, small[1], side):
                columns = (left, min(left + side, small[1]))
                where, inner = around(large, small, rows, columns, self.model.halo_of_shrinking)
                (a, b), (c, d) = where.large
                colour, alpha = source.read_region(c, a, d - c, b - a)
                x = rgb(colour)
                y = self._run(lambda t, w: self.model.shrink(t, where=w), x, where)
                clear = None if alpha is None else to_bytes(resized_alpha(alpha, where, shrink=True))
                tiles.append(cut(np.rint(y * 255).astype(np.uint8), clear, inner))
                if advance is not None:
                    advance(float((rows[1] - rows[0]) * (columns[1] - columns[0])))
            yield beside(tiles)

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Advance | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Shrink one file into a PNG with its note.

        Raises:
            UsageError: another format than PNG, or a quality: what is hidden does not live through lossy compression.
            InputError: the source cannot be read or is not larger; the target exists or cannot be written.
        """
        began, target = time.perf_counter(), Path(target)
        overwrite = how.get("overwrite", False)
        if target.suffix.lower() != ".png" or how.get("format") not in (None, "png") or how.get("quality") is not None:
            raise UsageError(
                f"{target.name}: small pictures are kept as PNG; lossy formats destroy the hidden detail, and other "
                "lossless ones have no place for the note that enlarge reads"
            )
        check_target(target, overwrite)
        with open_picture(source) as reader:
            size = self.small_size(reader.width, reader.height)
            factor = (reader.width / size[0], reader.height / size[1])
            notices = [*reader.notices, *self._notices(reader, factor)]
            check, tiles = 0, 0
            with create_picture(
                target,
                *size,
                bands=3,
                has_alpha=reader.has_alpha,
                like=reader,
                format="png",
                overwrite=overwrite,
                compression=9,
            ) as writer:
                for colour, alpha in self.bands(reader, size, scaled(advance, reader, size)):
                    check, tiles = zlib.crc32(np.ascontiguousarray(colour).data, check), tiles + 1
                    writer.write_rows(colour, alpha)
        bits = 16 if reader.dtype == "uint16" else 8
        note = Note(self.name, self.weights, (reader.width, reader.height), reader.bands == 1, bits, check)
        try:
            add_text(target, {KEYWORD: note.text()})
        except BaseException:
            target.unlink(missing_ok=True)  # without its note it is no result
            raise
        return self._report(source, target, (reader.width, reader.height), size, tiles, began, notices)

    @staticmethod
    def _notices(reader: PictureReader, factor: tuple[float, float]) -> Iterator[str]:
        if max(factor) > LARGEST:
            yield f"{reader.path}: factor {max(factor):.2f}; the network was trained up to {LARGEST:g}"
        if reader.bands == 1:
            yield f"{reader.path} is grey: its small picture has colours, where detail hides; enlarge makes it grey"
        if reader.dtype == "uint16":
            yield f"{reader.path} has 16 bits: the small picture has 8, what enlarge makes of it 16 again"


class Enlarger(Rescaler):
    """Makes large pictures of small ones.

    Args:
        size: (width, height) to enlarge to; None for what the small picture's note says.
        others: as `Rescaler`.

    Raises:
        UsageError: a size below 1; and as `Rescaler`.
    """

    def __init__(
        self, model: str | Path | IARN = "iarn", *, size: tuple[int, int] | None = None, **others: Any
    ) -> None:
        _check_size(size)
        self.size = size
        super().__init__(model, **others)

    def array(
        self, colour: np.ndarray, alpha: np.ndarray | None = None, *, grey: bool = False, bits: int = 8
    ) -> Planes:
        """Small colour (h, w, 3) uint8 and alpha (h, w) -> large ones of ``bits`` bits, (H, W, 1 or 3) and (H, W)."""
        if self.size is None:
            raise UsageError("an array has no note: say how large the picture was (size)")
        if bits not in (8, 16):
            raise UsageError(f"large pictures have 8 or 16 bits, not {bits}")
        return stacked(list(self.bands(InMemory(colour, alpha), self.size, grey, bits)))

    def bands(
        self, source: Any, large: tuple[int, int], grey: bool, bits: int, advance: Advance | None = None
    ) -> Iterator[Planes]:
        """Rows of tiles of the large picture, from top to bottom."""
        large, small = (large[1], large[0]), (source.height, source.width)
        if large[0] < small[0] or large[1] < small[1]:
            raise InputError(f"{large[1]} x {large[0]} px is smaller than the picture's {small[1]} x {small[0]} px")
        side = self._tile(large, small)
        full, kind = ((1 << bits) - 1, np.uint16 if bits == 16 else np.uint8)
        for top in range(0, small[0], side):
            rows = (top, min(top + side, small[0]))
            tiles = []
            for left in range(0, small[1], side):
                columns = (left, min(left + side, small[1]))
                where, _ = around(large, small, rows, columns, self.model.halo)
                inner = inner_of(window(large, small, rows, columns), where)
                (a, b), (c, d) = where.small
                colour, alpha = source.read_region(c, a, d - c, b - a)
                x = self._run(lambda t, w: self.model.enlarge(t, where=w), rgb(colour), where)
                if grey:
                    x = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
                clear = None
                if alpha is not None:
                    clear = np.rint(resized_alpha(alpha, where, shrink=False) * full).astype(kind)
                tiles.append(cut(np.rint(x * full).astype(kind), clear, inner))
                if advance is not None:
                    advance(float((rows[1] - rows[0]) * (columns[1] - columns[0])))
            yield beside(tiles)

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Advance | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Enlarge one file to the size that its note, or ``size``, says.

        Raises:
            InputError: no or a damaged note and no size; a size below the picture's; a file that cannot be read or
                written.
            CheckpointError: the note names another model, or other weights, than those in use.
        """
        began = time.perf_counter()
        text = read_text(source).get(KEYWORD)
        with open_picture(source) as reader:
            note, notices = self._note(text, reader)
            notices = [*reader.notices, *notices]
            size = self.size or note.size if note is not None else self.size
            assert size is not None
            if size[0] < reader.width or size[1] < reader.height:
                raise InputError(
                    f"{source} has {reader.width} x {reader.height} px, more than the {size[0]} x {size[1]} asked for"
                )
            grey, bits = (note.grey, note.bits) if note is not None else (reader.bands == 1, 8)
            check, tiles = None if note is None else note.pixels, 0
            if check is not None and check != checksum(reader):
                notices.append(
                    f"{source} is not as shrink wrote it (edited, or its colours converted): hidden detail may be lost"
                )
            with create_picture(
                target,
                *size,
                bands=1 if grey else 3,
                has_alpha=reader.has_alpha,
                dtype=f"uint{bits}",
                like=reader,
                **how,
            ) as writer:
                for colour, alpha in self.bands(reader, size, grey, bits, scaled(advance, reader, None)):
                    tiles += 1
                    writer.write_rows(colour, alpha)
            notices += writer.notices
        return self._report(source, target, (reader.width, reader.height), size, tiles, began, notices)

    def _note(self, text: str | None, reader: PictureReader) -> tuple[Note | None, list[str]]:
        """The note of a picture, if it can be used, and what is to be said."""
        source, said = reader.path, []
        if reader.format not in ("png", "tiff"):
            said.append(f"{source} is {reader.format.upper()}: if that was lossy, what shrink had hidden is gone")
        if reader.dtype == "uint16":
            said.append(f"{source} has 16 bits, small pictures have 8: shrink did not make it so")
        if text is None:
            if self.size is None:
                raise InputError(
                    f"{source} has no note of saccade shrink; say with --size WxH how large the picture was"
                )
            return None, [*said, f"{source} has no note of saccade shrink: foreign pictures are not improved by IARN"]
        try:
            note = parse_note(text)
        except InputError as error:
            if self.size is None:
                raise InputError(f"{source}: {error}") from None
            return None, [*said, f"{source}: {error}"]
        if (note.model, note.weights) != (self.name, self.weights):
            raise CheckpointError(
                f"{source} was shrunk by {note.model} with weights {note.weights}, these are {self.name} with "
                f"{self.weights}; give that file of weights (--model)"
            )
        if self.size is not None and self.size != note.size:
            said.append(
                f"{source} was {note.size[0]} x {note.size[1]} px; at another size its detail is not found again"
            )
        return note, said


def _network(model: str | Path | IARN) -> IARN:
    if isinstance(model, IARN):
        return model.eval()
    name = str(model)
    is_file = isinstance(model, Path) or "/" in name or name.endswith((".safetensors", ".pth", ".pt"))
    made = load(name) if is_file else registry.create(name)
    if not isinstance(made, IARN):
        raise UsageError(f"{name} does not rescale by arbitrary factors; `iarn` does")
    return made


def fingerprint(model: torch.nn.Module) -> str:
    """The first 12 digits of the SHA-256 of a network's parameters: names, shapes and float32 bytes."""
    told = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        told.update(f"{name}{tuple(value.shape)}".encode())
        told.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return told.hexdigest()[:12]
