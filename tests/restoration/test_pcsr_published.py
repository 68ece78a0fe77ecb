"""The published x4 checkpoints of PCSR: recognised alone, and their measured figures met on Set5 and Kodak.

Protocol: input by MATLAB-like bicubic, not rounded; refinement on; output rounded to 8 bit, luma of it rounded to
8 bit again (for the adaptive rows not), 4 pixels shaved from each border; mean over pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from saccade.checkpoint import load
from saccade.ops.resize import resize
from saccade.restoration.pcsr import PCSR

SHARED = Path(__file__).parents[2].parent / "shared"
CHECKPOINTS = Path(os.environ.get("SACCADE_CHECKPOINTS", SHARED / "checkpoints"))
DATA = Path(os.environ.get("SACCADE_DATA", SHARED / "data"))


def published(name: str) -> PCSR:
    path = CHECKPOINTS / f"pcsr_{name}_x4.pth"
    if not path.is_file():
        pytest.skip(f"no published checkpoint at {path}; set SACCADE_CHECKPOINTS")
    model = load(path)
    assert isinstance(model, PCSR)
    return model


def pictures(folder: str) -> Iterator[Tensor]:
    paths = sorted((DATA / folder).glob("*.png"))
    if not paths:
        pytest.skip(f"no pictures in {DATA / folder}; set SACCADE_DATA")
    for path in paths:
        yield torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].double()


def luma(rgb: Tensor) -> Tensor:
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=rgb.dtype) / 255
    return 16 + (rgb * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def psnr(a: Tensor, b: Tensor) -> float:
    error = (a - b)[..., 4:-4, 4:-4].square().mean()
    return float(10 * torch.log10(255**2 / error))


def figures(model: PCSR, folder: str, *, round_luma: bool = True) -> tuple[float, float, float]:
    """Mean PSNR of RGB and luma in dB, and the mean share of heavy pixels in per cent."""
    rows = []
    for hr in pictures(folder):
        lr = resize(hr / 255, 0.25).float()
        out = (model(lr).double() * 255).round()
        y, wanted = luma(out), luma(hr)
        if round_luma:
            y, wanted = y.round(), wanted.round()
        assert model.last_report is not None
        rows.append((psnr(out, hr), psnr(y, wanted), 100 * model.last_report.heavy_share))
    return tuple(float(v) for v in np.mean(rows, 0))  # type: ignore[return-value]


@pytest.mark.parametrize(("name", "count"), [("fsrcnn", 24_502), ("carn", 168_970)])
def test_a_published_file_alone_tells_its_model(name: str, count: int) -> None:
    model = published(name)
    assert model.saccade_name == f"pcsr_{name}"
    assert model.scale == 4
    assert model.refine
    assert sum(p.numel() for p in model.parameters()) == count


#: k: (RGB dB, Y dB, heavy share in per cent); the paper's authors' weights, measured once with their code
SET5 = {
    "carn": {-25.0: (29.94, 31.85, 100), 0.0: (29.89, 31.80, 44), 1.0: (29.82, 31.75, 24)},
    "fsrcnn": {-25.0: (28.92, 30.92, 100), 0.0: (28.88, 30.88, 52), 1.0: (28.43, 30.37, 8)},
}
KODAK = {
    "carn": {-25.0: (27.44, 28.76, 100), 0.0: (27.41, 28.73, 34), 1.0: (27.39, 28.71, 16)},
    "fsrcnn": {-25.0: (26.95, 28.30, 100), 0.0: (26.93, 28.27, 37), 1.0: (26.67, 28.00, 2)},
}
ADAPTIVE = {"carn": (29.85, 31.79, 31), "fsrcnn": (28.84, 30.86, 42)}


def check(got: tuple[float, float, float], wanted: tuple[float, float, float]) -> None:
    assert got[0] == pytest.approx(wanted[0], abs=0.01)
    assert got[1] == pytest.approx(wanted[1], abs=0.01)
    assert got[2] == pytest.approx(wanted[2], abs=1.0)


@pytest.mark.parametrize("name", [pytest.param("carn", marks=pytest.mark.slow), "fsrcnn"])
def test_published_weights_give_their_figures_on_set5(name: str) -> None:
    model = published(name)
    for k, wanted in SET5[name].items():
        model.k = k
        check(figures(model, "set5"), wanted)
    model.adaptive = True
    check(figures(model, "set5", round_luma=False), ADAPTIVE[name])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", ["carn", "fsrcnn"])
def test_published_weights_give_their_figures_on_kodak(name: str) -> None:
    model = published(name)
    for k, wanted in KODAK[name].items():
        model.k = k
        check(figures(model, "kodak"), wanted)


def test_half_the_cost_keeps_the_quality_of_published_weights() -> None:
    model = published("fsrcnn")
    model.budget = 1.0
    full = figures(model, "set5")
    model.budget = 0.6
    part = figures(model, "set5")
    assert model.last_report is not None
    assert model.last_report.fraction <= 0.6
    assert part[1] > full[1] - 0.1
