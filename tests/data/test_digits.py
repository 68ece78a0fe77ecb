"""Digits: files in each packing, layouts on the grid and off it, and damaged files refused."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
import torch

from saccade.data.digits import Digits, layouts, read_digits
from saccade.errors import InputError


def idx(magic: int, shape: tuple[int, ...], body: bytes) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in (magic, *shape)) + body


def write(folder: Path, packing: str) -> torch.Tensor:
    pixels = torch.randint(256, (3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[packing]
    images, labels = idx(0x803, (3, 28, 28), pixels.numpy().tobytes()), idx(0x801, (3,), bytes([7, 0, 4]))
    (folder / f"train-images-idx3-ubyte{packing}").write_bytes(packed(images))
    (folder / f"train-labels-idx1-ubyte{packing}").write_bytes(packed(labels))
    return pixels


@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_files_are_read_and_halved(tmp_path: Path, packing: str) -> None:
    pixels = write(tmp_path, packing)
    digits = read_digits(tmp_path)
    assert digits.labels.tolist() == [7, 0, 4]
    torch.testing.assert_close(digits.images[1, 3, 5], pixels[1, 6:8, 10:12].float().mean() / 255)
    with pytest.raises(InputError, match="no t10k-labels"):
        read_digits(tmp_path, "t10k")


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\x08\x01\0\0\0\x03\x07", idx(0x802, (3,), b"abc"), idx(0x801, (9,), b"abc")]
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    write(tmp_path, "")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(data)
    with pytest.raises(InputError, match="truncated"):
        read_digits(tmp_path)


def test_a_damaged_packing_is_refused(tmp_path: Path) -> None:
    write(tmp_path, ".xz")
    (tmp_path / "train-labels-idx1-ubyte.xz").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="damaged"):
        read_digits(tmp_path)


def test_the_digit_in_the_middle_is_the_label() -> None:
    digits = Digits(torch.arange(10.0)[:, None, None].expand(-1, 14, 14) / 10, torch.arange(10))
    pictures, labels = layouts(digits, 6, torch.Generator().manual_seed(0))
    assert pictures.shape == (6, 1, 42, 42)
    assert torch.equal((pictures[:, 0, 21, 21] * 10).round().long(), labels)
    assert len(pictures[0].unique()) > 1
    moved, labels = layouts(digits, 50, torch.Generator().manual_seed(0), moved=True)
    assert moved.shape == (50, 1, 56, 56)
    assert len({tuple(torch.nonzero(m[0])[0].tolist()) for m in moved}) > 10
    again, _ = layouts(digits, 50, torch.Generator().manual_seed(0), moved=True)
    assert torch.equal(moved, again)
