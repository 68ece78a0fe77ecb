"""Pictures with a class each: from a folder, from tar shards, or from a Hugging Face data set.

    folder     DIR/<class>/.../picture.jpg               the classes are the names of the folders, sorted
    shards     DIR/*.tar or one .tar (webdataset)        members KEY.jpg and KEY.cls, the number of the class as text
    data set   hf:NAME or hf:NAME@SPLIT, or a folder written by ``save_to_disk``      extra ``datasets``

All three are random access: sample ``i`` is always the same picture, so that a training that was killed goes on with
what it would have seen. Shards are indexed once by their headers; nothing is unpacked.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from saccade.errors import InputError, UnavailableError, first_line

__all__ = ["FolderPictures", "HFPictures", "Labelled", "ShardPictures", "labelled"]

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
LARGEST = 200_000_000  # pixels of one picture


class Labelled(Protocol):
    """Pictures with a class each."""

    classes: tuple[str, ...]
    labels: Sequence[int]

    def read(self, i: int, side: int = 0) -> Image.Image:
        """Picture ``i`` as RGB; JPEGs at a fraction of their size where that leaves at least ``side`` pixels."""
        ...


def _opened(source: Any, name: str, side: int) -> Image.Image:
    """An RGB picture of a file or of bytes.

    Raises:
        InputError: no picture, damaged, or too large.
    """
    try:
        with warnings.catch_warnings(), Image.open(source) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > LARGEST:
                raise InputError(f"cannot read {name}: it declares {image.width} x {image.height} px")
            if side:
                image.draft("RGB", (side, side))  # a JPEG decodes at 1/2, 1/4 or 1/8 at a fraction of the cost
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {name}: {first_line(error)}") from error


class FolderPictures:
    """A folder of folders, one a class.

    Raises:
        InputError: no such folder, no folders in it, or one without pictures.
    """

    def __init__(self, folder: Path) -> None:
        kinds = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not kinds:
            raise InputError(f"{folder} holds no folders; pictures belong into one folder a class")
        self.classes = tuple(p.name for p in kinds)
        self.files: list[Path] = []
        self.labels: Sequence[int] = ()
        labels: list[int] = []
        for label, kind in enumerate(kinds):
            found = sorted(p for p in kind.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not found:
                raise InputError(f"no pictures in {kind}")
            self.files += found
            labels += [label] * len(found)
        self.labels = labels

    def read(self, i: int, side: int = 0) -> Image.Image:
        """Picture ``i``; see `Labelled`."""
        return _opened(self.files[i], str(self.files[i]), side)


class ShardPictures:
    """webdataset tar files; members are read where they lie.

    Raises:
        InputError: a damaged shard, a picture without a class or a class without a picture.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.places: list[tuple[Path, int, int]] = []
        found = [label for shard in shards for label in self._index(shard)]
        if not found:
            raise InputError(f"no pictures in {shards[0]}" if shards else "no shards")
        self.labels: Sequence[int] = found
        self.classes = tuple(str(i) for i in range(max(self.labels) + 1))

    def _index(self, shard: Path) -> list[int]:
        """Remember where a shard's pictures lie; their classes."""
        pictures: dict[str, tuple[Path, int, int]] = {}
        labels: dict[str, int] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    key, _, ending = member.name.partition(".")
                    if not member.isfile():
                        continue
                    if f".{ending.lower()}" in ENDINGS:
                        pictures[key] = (shard, member.offset_data, member.size)
                    elif ending == "cls":
                        stream = tar.extractfile(member)
                        labels[key] = int(stream.read(20)) if stream else -1
        except (tarfile.TarError, OSError, ValueError) as error:
            raise InputError(f"cannot read the shard {shard}: {first_line(error)}") from error
        alone = sorted(pictures.keys() ^ labels.keys())
        if alone or any(label < 0 for label in labels.values()):
            raise InputError(f"{shard}: {(alone or ['a negative class'])[0]} has no picture or no class")
        self.places += pictures.values()
        return [labels[key] for key in pictures]

    def read(self, i: int, side: int = 0) -> Image.Image:
        """Picture ``i``; see `Labelled`."""
        shard, start, size = self.places[i]
        try:
            with shard.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise InputError(f"cannot read {shard}: {error.strerror}") from error
        return _opened(io.BytesIO(data), f"picture {i} of {shard}", side)


class HFPictures:
    """A Hugging Face data set with a picture and a class in each row.

    Args:
        name: of the hub or of a folder that `datasets` reads, or a folder written by ``save_to_disk``.
        split: which part.

    Raises:
        UnavailableError: the ``datasets`` extra is not installed.
        InputError: no such data set, or no column of pictures or of classes.
    """

    def __init__(self, name: str, split: str = "train") -> None:
        try:
            import datasets
        except ImportError as error:
            raise UnavailableError.extra("reading Hugging Face data sets", "datasets") from error
        try:
            if Path(name, "dataset_info.json").is_file() or Path(name, "dataset_dict.json").is_file():
                found: Any = datasets.load_from_disk(name)
                found = found[split] if isinstance(found, dict) else found
            else:
                found = datasets.load_dataset(name, split=split)
        except Exception as error:  # the library raises errors of many kinds for what is not there
            raise InputError(f"cannot read the data set {name} ({split}): {first_line(error)}") from error
        kinds = {key: type(feature).__name__ for key, feature in found.features.items()}
        pictures = [key for key, kind in kinds.items() if kind == "Image"]
        labels = [key for key, kind in kinds.items() if kind == "ClassLabel"]
        if not pictures or not labels:
            raise InputError(
                f"the data set {name} has the columns {kinds}: one of Image and one of ClassLabel is needed"
            )
        self.classes = tuple(found.features[labels[0]].names)
        self.labels: Sequence[int] = list(found[labels[0]])
        self._column = pictures[0]
        self._rows = found.cast_column(self._column, datasets.Image(decode=False))

    def read(self, i: int, side: int = 0) -> Image.Image:
        """Picture ``i``; see `Labelled`."""
        told = self._rows[i][self._column]
        return _opened(io.BytesIO(told["bytes"]) if told["bytes"] is not None else told["path"], f"picture {i}", side)


def labelled(place: str) -> Labelled:
    """Pictures with classes of what a path or a name says; see the module.

    Raises:
        InputError: nothing there.
        UnavailableError: a missing extra.
    """
    if place.startswith("hf:"):
        name, _, split = place.removeprefix("hf:").partition("@")
        return HFPictures(name, split or "train")
    path = Path(place)
    if path.is_file() and path.suffix == ".tar":
        return ShardPictures([path])
    if not path.is_dir():
        raise InputError(f"no folder and no shard of pictures at {path}")
    if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return HFPictures(place)
    if shards := sorted(path.glob("*.tar")):
        return ShardPictures(shards)
    return FolderPictures(path)
