"""Pictures with classes from folders, shards and Hugging Face data sets: the same ones, and clear errors."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.data.labelled import Labelled, labelled
from saccade.errors import InputError

CLASSES = ("cat", "dog", "owl")


def picture(i: int) -> Image.Image:
    return Image.fromarray(np.full((20 + i, 30, 3), 10 * i, np.uint8))


def as_folder(root: Path) -> str:
    for i in range(6):
        folder = root / CLASSES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"{i}.png")
    return str(root)


def as_shards(root: Path) -> str:
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"part-{shard}.tar", "w") as tar:
            for i in range(3 * shard, 3 * shard + 3):
                stream = io.BytesIO()
                picture(i).save(stream, "png")
                for name, data in ((f"{i:04}.png", stream.getvalue()), (f"{i:04}.cls", str(i % 3).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return str(root)


def as_data_set(root: Path) -> str:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [picture(i) for i in range(6)], "label": [i % 3 for i in range(6)]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(root))
    return str(root)


def told(found: Labelled) -> set[tuple[int, tuple[int, int], int]]:
    """Class, size and colour of every picture."""
    made = set()
    for i, label in enumerate(found.labels):
        image = found.read(i)
        made.add((label, image.size, image.getpixel((0, 0))[0]))
    return made


@pytest.mark.parametrize("make", [as_folder, as_shards, as_data_set])
def test_all_three_give_the_same_pictures(tmp_path: Path, make: Callable[[Path], str]) -> None:
    found = labelled(make(tmp_path / "set"))
    assert len(found.classes) == 3
    assert told(found) == {(i % 3, (30, 20 + i), 10 * i) for i in range(6)}


def test_a_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.zeros((800, 800, 3), np.uint8)).save(tmp_path / "a" / "x.jpg")
    assert labelled(str(tmp_path)).read(0, 100).size == (100, 100)
    assert labelled(str(tmp_path)).read(0).size == (800, 800)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_other_kinds_of_pictures_become_rgb(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a").mkdir()
    picture(1).convert(mode).save(tmp_path / "a" / "x.tif")
    assert labelled(str(tmp_path)).read(0).mode == "RGB"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    for place, says in ((tmp_path / "none", "no folder"), (tmp_path, "one folder a class")):
        with pytest.raises(InputError, match=says):
            labelled(str(place))
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        labelled(str(tmp_path))
    (tmp_path / "a" / "x.jpg").write_bytes(b"text")
    with pytest.raises(InputError, match=r"x\.jpg"):
        labelled(str(tmp_path)).read(0)
    with pytest.raises(InputError, match="data set"):
        labelled(f"hf:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("names", "says"), [(["1.png"], "no class"), (["1.cls"], "no picture"), ([], "no pictures"), (None, "cannot read")]
)
def test_damaged_shards_are_refused(tmp_path: Path, names: list[str] | None, says: str) -> None:
    path = tmp_path / "x.tar"
    if names is None:
        path.write_bytes(b"no tar" * 200)
    else:
        with tarfile.open(path, "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"1"))
    with pytest.raises(InputError, match=says):
        labelled(str(path))
