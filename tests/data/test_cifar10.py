"""Contact sheets: every tile in its place, standardised, of its class; what is no sheet is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.data.cifar10 import MEAN, STD, read_sheet, tiles
from saccade.errors import InputError


def write(path: Path, rows: int, columns: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 256, (rows * columns, 32, 32, 3), np.uint8)
    sheet = drawn.reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(32 * rows, 32 * columns, 3)
    Image.fromarray(sheet).save(path)
    return drawn


def test_tiles_stand_from_left_to_right_and_row_by_row(tmp_path: Path) -> None:
    drawn = torch.from_numpy(write(tmp_path / "sheet.png", 3, 7)).permute(0, 3, 1, 2)
    assert torch.equal(tiles(tmp_path / "sheet.png"), drawn / 255)
    grey = tiles(tmp_path / "sheet.png", "L")
    assert grey.shape == (21, 1, 32, 32)
    luma = (drawn * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True) / 255
    torch.testing.assert_close(grey, luma, rtol=0, atol=1.1 / 255)


def test_pictures_are_standardised_and_classes_come_in_turn(tmp_path: Path) -> None:
    drawn = torch.from_numpy(write(tmp_path / "sheet.png", 3, 7)).permute(0, 3, 1, 2)
    pictures, classes = read_sheet(tmp_path / "sheet.png")
    for channel, (mean, deviation) in enumerate(zip(MEAN, STD, strict=True)):
        want = (drawn[:, channel] / 255 - mean) / deviation
        torch.testing.assert_close(pictures[:, channel], want)
    assert classes.tolist() == [i % 10 for i in range(21)]


def test_what_is_no_sheet_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        tiles(tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(InputError, match="damaged"):
        tiles(tmp_path / "broken.png")
    Image.new("RGB", (64, 33)).save(tmp_path / "odd.png")
    with pytest.raises(InputError, match="64 x 33 px"):
        tiles(tmp_path / "odd.png")
