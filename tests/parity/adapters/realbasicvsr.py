"""RealBasicVSR against MMagic: warping, flow, dynamic cleaning at three thresholds, a clip and its mirror image."""

from __future__ import annotations

import json
from typing import cast

import torch
from torch import Tensor

from saccade.checkpoint import fit
from saccade.ops.warp import flow_warp, naive
from saccade.registry import create
from saccade.restoration.realbasicvsr import RealBasicVSR, from_official

from . import under

LEVEL = "basicvsr.spynet.basic_module."


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])

    def same(found: Tensor, name: str) -> None:
        want = vectors[f"output.{name}"]
        torch.testing.assert_close(found, want, atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")

    model = _model(vectors, config)
    clip = vectors["input.lqs"]
    with torch.no_grad():
        flow = vectors["input.warp_flow"].permute(0, 3, 1, 2)
        for border in ("zeros", "border"):
            for way in (flow_warp, naive.flow_warp):
                same(way(vectors["input.warp_x"], flow, border), f"warp_{border}")
        same(model.flow(clip[:, 0], clip[:, 1]), "flow")
        for threshold in config["thresholds"]:
            model.threshold = float(threshold)
            y = model(clip)
            _same_part(y, vectors[f"output.y_thr{threshold}"], tolerance, first=1)
            same(model.clean(clip), f"lq_thr{threshold}")
            first = float(vectors["mid.first_residue_mean_abs"])
            assert abs(model.last_changes[0] / 255 - first) <= tolerance
        model.threshold = 255.0
        _same_part(model(torch.cat([clip, clip.flip(1)], 1)), vectors["output.y_mirror"], tolerance, first=0)


def _same_part(y: Tensor, stored: Tensor, tolerance: float, first: int) -> None:
    """Compare with what was kept: whole frames from ``first`` on, or every fourth pixel of the first frames."""
    if stored.shape[3:] != y.shape[3:]:
        y, first = y[..., 1::4, 2::4], 0
    torch.testing.assert_close(y[:, first : first + stored.shape[1]], stored, atol=tolerance, rtol=0)


def _model(vectors: dict[str, Tensor], config: dict[str, int]) -> RealBasicVSR:
    state = under(vectors, "state.")
    stored = {k: v for k, v in state.items() if k.startswith(f"{LEVEL}0.")}
    for i in range(1, 6):  # the file keeps one level for all six
        state.update({k.replace(f"{LEVEL}0.", f"{LEVEL}{i}.", 1): v for k, v in stored.items()})
    recipe = from_official({f"generator_ema.{k}": v for k, v in state.items()})
    assert recipe is not None
    model = cast(RealBasicVSR, create(recipe.model, weights=None, **recipe.options))
    fit(model, recipe.state, "golden")
    told = (recipe.options["width"], recipe.options["blocks"], recipe.options["cleaning_blocks"])
    assert told == (config["mid_channels"], config["num_propagation_blocks"], config["num_cleaning_blocks"])
    return model
