"""FIT against the official code: encoder, denoiser, decoder, tables of positions, masks, tokens of pictures."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch
from torch import Tensor

from saccade.backbones.fit import (
    FIT,
    FITDecoder,
    FITDenoiser,
    block_causal,
    load_keras,
    sin_cos_2d,
    sin_cos_table,
    snake,
    subimages,
)

from . import under


def near(found: Tensor, want: Tensor, what: str) -> None:
    torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-5, msg=lambda m: f"{what}: {m}")


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    for case, options in told.items():
        state = under(vectors, f"state.{case}.")
        given = {k.split(".", 2)[2]: v for k, v in vectors.items() if k.startswith(f"input.{case}.")}
        kind = next(kind for start, kind in CASES.items() if case.startswith(start))
        kind(vectors, case, dict(options), given, state)
    for key, want in vectors.items():
        if key.startswith("output.") and not any(key.startswith(f"output.{case}.") for case in told):
            tables(key.removeprefix("output."), want, vectors)


def encoder(vectors: dict[str, Tensor], case: str, options: Any, given: Any, state: Any) -> None:
    extra = given["y"].shape[-1] if "y" in given else 0
    model = load_keras(FIT(**options, in_dim=given["x"].shape[-1], extra_dim=extra).eval(), state)
    x, z = model(given["x"], given.get("y"))
    near(x, vectors[f"output.{case}.x_tokens"], f"{case}, tokens")
    near(z, vectors[f"output.{case}.latents"], f"{case}, latents")


def denoiser(vectors: dict[str, Tensor], case: str, options: Any, given: Any, state: Any) -> None:
    ratio = options.get("mlp_ratio", 4) if options.pop("xattn_with_mlp", False) else 0
    model = FITDenoiser(
        **{k: v for k, v in options.items() if k not in ("x_self_attention", "xattn_enc_ln")},
        cross_ratio=ratio,
        local_attention=options.get("x_self_attention", True),
        normalise_source=options.get("xattn_enc_ln", True),
        cond_dim=given["cond"].shape[-1],
        in_dim=given["x"].shape[-1],
        time_extra=0 if given["time"].ndim == 1 else given["time"].shape[1] - 1,
    )
    load_keras(model.eval(), state)
    if f"mid.{case}.time_token" in vectors:
        near(model.time_emb(given["time"])[:, None], vectors[f"mid.{case}.time_token"], "time token")
    x, z = model(given["x"], given["time"], given["cond"], given.get("latents_prev"))
    near(x, vectors[f"output.{case}.x"], f"{case}, tokens")
    near(z, vectors[f"output.{case}.latents"], f"{case}, latents")


def decoder(vectors: dict[str, Tensor], case: str, options: Any, given: Any, state: Any) -> None:
    model = load_keras(FITDecoder(**options).eval(), state)
    logits = model(given["tokens"])
    near(logits, vectors[f"output.{case}.logits"], f"{case}, logits")
    at = model.begin()
    steps = torch.stack([model.step(token, at) for token in given["tokens"].flatten(1).unbind(1)], 1)
    near(steps.view_as(logits), vectors[f"output.{case}.logits"], f"{case}, token by token")


def tables(name: str, want: Tensor, vectors: dict[str, Tensor]) -> None:
    numbers = [int(n) for n in re.findall(r"\d+", name)]
    if name.startswith("sincos1d"):
        near(sin_cos_table(want.shape[1], want.shape[2], numbers[-1])[None], want, name)
    elif name.startswith("sincos2d"):
        farthest = 2 * math.pi if name.endswith("2pi") else numbers[-1]
        near(sin_cos_2d(*want.shape[1:], farthest)[None], want, name)
    elif name.startswith("chunk_mask"):
        size, chunk = numbers
        assert torch.equal(1 - block_causal(size // chunk, chunk).float(), want[0, 0])
    elif name.startswith("tok.subimages"):
        height, width, patch = numbers
        near(subimages(vectors["input.tok.image_nhwc"].permute(0, 3, 1, 2), (height, width), patch), want, name)
    elif name.startswith("tok.patches_snake"):
        picture, patch = vectors["input.tok.image_nhwc"].permute(0, 3, 1, 2), numbers[0]
        patches = subimages(picture, (patch, patch), patch)[:, :, 0]
        near(snake(patches, picture.shape[3] // patch), want, name)
    else:
        raise AssertionError(f"nothing here runs {name}")


CASES = {"encoder": encoder, "denoiser": denoiser, "ar": decoder}
