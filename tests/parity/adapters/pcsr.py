"""PCSR against the official code: features, queries, probabilities, costs, decisions, predictions, training mode."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor

from saccade.checkpoint import fit
from saccade.registry import create
from saccade.restoration.pcsr import PCSR, from_official
from saccade.restoration.pcsr.grid import queries

from . import under


def build(vectors: dict[str, Tensor], config: dict[str, Any]) -> PCSR:
    """The network of a golden file: sizes from its configuration, weights from its tensors."""
    state = under(vectors, "state.")
    recipe = from_official(state)
    assert recipe is not None
    assert recipe.model == f"pcsr_{config['encoder']['name'].lower()}"
    for part in ("heavy", "light", "classifier"):
        assert recipe.options[part] == config[part], f"hidden widths of {part} are read from the shapes"
    args = config["encoder"].get("args", {})
    told = {"nf": "width", "d": "width", "group": "groups", "s": "shrink", "m": "layers"}
    for theirs, ours in told.items():
        if theirs in args:
            assert recipe.options[ours] == args[theirs]
    # the vectors' pictures are fed as they are: no mean is taken off
    options = {**recipe.options, "scale": config["scale"]} | ({"mean": None} if "carn" in recipe.model else {})
    model = create(recipe.model, weights=None, **options)
    fit(model, recipe.state, "golden vectors")
    assert isinstance(model, PCSR)
    return model.eval()


def rows(picture: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), the vectors' layout."""
    return picture.flatten(2).transpose(1, 2)


def eroded(mask: Tensor) -> Tensor:
    """True where the whole 3x3 neighbourhood is true."""
    return torch.nn.functional.max_pool2d((~mask).float(), 3, 1, 1) == 0


def check_decision(model: PCSR, vectors: dict[str, Tensor], name: str, sure: Tensor, tolerance: float) -> None:
    """Flags where the probabilities differ, predictions wherever the flags agree, refined ones where all around do."""
    lr = vectors["input.lr"]
    model.refine = False
    prediction, heavy = model.route(lr)
    model.refine = True
    refined, _ = model.route(lr)
    flag = vectors.get(f"output.flag_{name}")
    agree = torch.ones_like(sure)
    if flag is not None:
        agree = rows(heavy)[..., 0] == (flag[..., 0] == 1)
        assert bool(agree[sure].all()), f"{name}: {int((~agree & sure).sum())} flags differ"
    around = rows(eroded(agree.view(len(lr), 1, *prediction.shape[-2:])))[..., 0]
    plain, smooth = f"output.pred_{name}", f"output.pred_{name}_refined"
    if name == "adaptive":
        plain, smooth = "", plain
    if plain in vectors:
        assert float((rows(prediction) - vectors[plain])[agree].abs().max()) <= tolerance, plain
    if smooth in vectors:
        assert float((rows(refined) - vectors[smooth])[around].abs().max()) <= tolerance, smooth


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])
    model, lr = build(vectors, config), vectors["input.lr"]
    scale = config["scale"]
    with torch.no_grad():
        features = model.encoder(lr)
    height, width = round(lr.shape[2] * scale), round(lr.shape[3] * scale)
    if "mid.feature" in vectors:
        torch.testing.assert_close(features, vectors["mid.feature"], atol=tolerance, rtol=tolerance)
    if "mid.sampler_input" in vectors:
        asked = queries(features, height, width)
        wanted = vectors["mid.sampler_input"]
        step = -(-asked.shape[1] // wanted.shape[1])
        torch.testing.assert_close(asked[:, ::step], wanted, atol=tolerance, rtol=tolerance)
    if "mid.cost_ratio" in vectors:
        assert torch.equal(model.cost_ratio(), vectors["mid.cost_ratio"]), "the cost ratio agrees to the last digit"
    heavy = rows(model.margins(lr).sigmoid())
    sure = torch.ones(heavy.shape[:2], dtype=torch.bool)
    if "mid.prob" in vectors:
        prob = vectors["mid.prob"]
        torch.testing.assert_close(torch.cat([1 - heavy, heavy], 2), prob, atol=tolerance, rtol=0)
        sure = (prob[..., 0] - prob[..., 1]).abs() > 1e-6
    names = {m[1] for key in vectors if (m := re.match(r"output\.(?:pred|flag)_(k[-+\d.e]+)", key))}
    assert names or "output.pred_adaptive" in vectors
    for name in sorted(names):
        k = model.k = float(name[1:])
        certain = sure
        if "mid.prob" in vectors:  # with another k the tie lies elsewhere
            weighed = vectors["mid.prob"].double() / model.cost_ratio().double() ** k
            certain = sure & ((weighed[..., 0] / weighed[..., 1] - 1).abs() > 1e-5)
        check_decision(model, vectors, name, certain, tolerance)
    if "output.pred_adaptive" in vectors or "output.flag_adaptive" in vectors:
        model.adaptive = True
        check_decision(model, vectors, "adaptive", sure, tolerance)
    if "output.train_pred" in vectors:
        with torch.no_grad():
            mixed = model.train()(lr)
        torch.testing.assert_close(rows(mixed), vectors["output.train_pred"], atol=tolerance, rtol=tolerance)
