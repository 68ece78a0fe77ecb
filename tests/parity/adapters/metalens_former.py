"""ACFormer and its optics against the official code: OTF, blur, Wiener bank, the field of cells, parts and whole."""

from __future__ import annotations

import ast
import json
import re

import torch
from torch import Tensor

from saccade.checkpoint import fit
from saccade.registry import create
from saccade.restoration.metalens_former import (
    ACFormer,
    assemble,
    blur,
    from_official,
    naive_bank,
    psf2otf,
    surroundings,
    wiener_bank,
)
from saccade.restoration.metalens_former.optics import grid_of

from . import under


def network(vectors: dict[str, Tensor], config: dict, compat: str | None = None) -> ACFormer:
    state = under(vectors, "state.")
    recipe = from_official(state, config["query_ksize"], config["ca_heads"], compat)
    assert recipe is not None
    told = {
        "filters": config["M"],
        "dim": config["dim"],
        "blocks": tuple(config["num_blocks"]),
        "refinement": config["num_refinement_blocks"],
        "channel_heads": tuple(config["channel_heads"]),
        "spatial_heads": tuple(config["spatial_heads"]),
        "window": config["window_size"],
        "head_dim": config["spatial_dim_head"],
        "bias": config["bias"],
        "embed": config["ca_dim"],
        "embed_window": config["window_size_ca"],
    }
    assert {k: recipe.options[k] for k in told} == told, "everything is read from the shapes"
    model = create(recipe.model, weights=None, **recipe.options)
    fit(model, recipe.state, "golden")
    assert isinstance(model, ACFormer)
    return model


def tolerances(text: str) -> tuple[float, float, float]:
    """Of the output, of the output with 16-bit attention, of the optics."""
    found = [float(n) for n in re.findall(r"\d+(?:\.\d+)?e-?\d+|\d*\.\d+", text)]
    return (*found, *found[-1:] * 3)[:3]


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = (
        json.loads(metadata["config"]) if metadata["config"].startswith("{") else ast.literal_eval(metadata["config"])
    )
    whole, half, optics = tolerances(metadata["tolerance"])
    check_optics(vectors, optics)
    for plain in (True, False):  # with gradients the plain form runs, without the lean one
        with torch.set_grad_enabled(plain):
            check_network(vectors, config, whole, half)


def check_optics(vectors: dict[str, Tensor], tolerance: float) -> None:
    image, psf, ks = (vectors[f"input.{name}"] for name in ("image", "psf", "ks"))
    close = {"atol": tolerance, "rtol": 0}
    size = tuple(image.shape[-2:])
    full = psf2otf(psf, *size, "official", half=False)
    torch.testing.assert_close(full, torch.complex(vectors["output.otf_real"], vectors["output.otf_imag"]), **close)
    otf = psf2otf(psf, *size, "official")
    torch.testing.assert_close(otf, full[..., : otf.shape[-1]], **close)
    blurred = blur(image, otf)
    torch.testing.assert_close(blurred, vectors["output.blurred"], **close)
    torch.testing.assert_close(naive_bank(blurred, full, ks), vectors["output.wiener"], **close)
    torch.testing.assert_close(wiener_bank(blurred, otf, ks), vectors["output.wiener"], **close)

    psfs, scene = vectors["input.psf_grid"], vectors["input.scene"]
    grid = grid_of(len(psfs))
    patches = surroundings(scene, grid)
    field = psf2otf(psfs, *patches.shape[-2:], "official")
    blurred_patches = blur(patches, field)
    torch.testing.assert_close(blurred_patches, vectors["mid.blurred_patches"], **close)
    whole = assemble(blurred_patches, grid)[0]
    want = vectors["output.blurred_grid_unpadded"]
    torch.testing.assert_close(whole[:, 2 : 2 + want.shape[-2], : want.shape[-1]], want, **close)
    want = vectors["output.wiener_grid"]
    # the vectors deblur the patches as they were blurred; a capture joined from their middles is another thing
    made = assemble(wiener_bank(blurred_patches, field, ks), grid)[0]
    torch.testing.assert_close(made, want, **close)


def check_network(vectors: dict[str, Tensor], config: dict, tolerance: float, half: float) -> None:
    model, x = network(vectors, config), vectors["input.x"]
    close = {"atol": tolerance, "rtol": 0}
    torch.testing.assert_close(model.ca(x), vectors["mid.mafg"], **close)
    block, given = model.decoder_level2[-1], vectors["input.staf_x"]
    torch.testing.assert_close(block.spatial_attn(given), vectors["output.ocab_y"], **close)
    torch.testing.assert_close(block.channel_attn(given), vectors["output.mdta_y"], **close)
    torch.testing.assert_close(block.spatial_ffn(given), vectors["output.gdfn_y"], **close)
    torch.testing.assert_close(block(given), vectors["output.staf_y"], **close)
    torch.testing.assert_close(model(x), vectors["output.y"], **close)
    rounded = network(vectors, config, "official")
    torch.testing.assert_close(rounded(x), vectors["output.y_half"], atol=half, rtol=0)
