"""Re-IQA against the official code: features at both sizes, projection, contrast logits, distortions without chance."""

from __future__ import annotations

import json
import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.checkpoint import fit
from saccade.data.distortions import distort
from saccade.quality.reiqa.encoder import Head
from saccade.quality.reiqa.moco import contrast_logits
from saccade.quality.reiqa.network import ReIQA, from_official
from saccade.quality.reiqa.scoring import Scorer, half
from saccade.registry import create


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    told = re.search(r"rtol ([\d.e-]+).*difference <= (\d+) grey levels on > (\d+) %", metadata["tolerance"])
    assert told is not None
    relative, levels, share = float(told[1]), int(told[2]), int(told[3]) / 100
    check_features(vectors, config, relative)
    check_contrast(vectors, config, relative)
    for key in (k for k in vectors if k.startswith("output.dist.")):
        _, _, kind, level = key.split(".")
        made = distort(
            vectors["input.dist_image_u8"].numpy(), kind, int(level.removeprefix("level")), compat="official"
        )
        off = np.abs(made.astype(int) - vectors[key].numpy().astype(int))
        assert (off <= levels).all(2).mean() > share, f"{kind} at {level} is off by up to {off.max()}"


@torch.no_grad()
def check_features(vectors: dict[str, Tensor], config: dict[str, object], relative: float) -> None:
    state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
    recipe = from_official(state)
    assert recipe is not None
    model = create(recipe.model, weights=None, **recipe.options)
    fit(model, recipe.state, "golden")
    assert isinstance(model, ReIQA)
    encoder = model.quality.encoder
    depths = [len(getattr(encoder, f"layer{i + 1}")) for i in range(encoder.stages)]
    assert depths == config["layers"], "everything is read from the shapes"
    assert encoder.conv1.out_channels == config["stem"]
    assert isinstance(model.quality.head, Head)
    assert [encoder.features, *(model.quality.head[i].out_features for i in (0, 2))] == config["head"]
    pixels = vectors["input.image_u8"].numpy()
    assert np.abs(half(pixels).astype(int) - vectors["mid.half_u8"].numpy()).max() <= 1
    full, small = (v.permute(2, 0, 1)[None].float() / 255 for v in (vectors["input.image_u8"], vectors["mid.half_u8"]))
    wanted = vectors["output.features_full_half"]
    scale = float(wanted.abs().max())
    torch.testing.assert_close(model(full, small), wanted, rtol=relative, atol=relative * scale / 10)
    torch.testing.assert_close(model.quality.project(full), vectors["output.head_full"], rtol=relative, atol=relative)
    for backend in ("torch", "openvino"):
        made = torch.from_numpy(Scorer(model, backend=backend).features(pixels))[None]  # type: ignore[arg-type]
        torch.testing.assert_close(made, wanted, rtol=relative, atol=relative * scale / 10)


def check_contrast(vectors: dict[str, Tensor], config: dict[str, object], relative: float) -> None:
    q, k, queue = (vectors[f"input.moco.{name}"] for name in ("q", "k", "queue"))
    temperature = config["temperature"]
    assert isinstance(temperature, float)
    logits = contrast_logits(q, k, queue, temperature)
    torch.testing.assert_close(logits, vectors["output.moco.logits"], rtol=relative, atol=relative)
    loss = F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))
    torch.testing.assert_close(loss[None], vectors["output.moco.loss"], rtol=relative, atol=relative)
