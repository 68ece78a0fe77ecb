"""Momentum contrast on distorted pictures makes features that tell how spoilt a picture is; on clean ones it does not.

No rated set is free to ship, so truth is made: pieces of test photographs, untouched or spoilt by blur, JPEG, noise,
lost resolution or coarse pixels at five levels. A ridge is fitted to the levels on half of the photographs and asked
about the other half, both ways round.

Three encoders of one architecture start from one seed: untrained; pre-trained on clean crops (plain momentum contrast:
the content branch); pre-trained on distorted copies (the quality branch). Statistics of normalised brightness, made by
hand, stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.quality.reiqa.moco import Recipe, pretrain
from saccade.quality.reiqa.network import ReIQA
from saccade.quality.reiqa.protocol import srcc
from saccade.quality.reiqa.ridge import fit_ridge
from saccade.quality.reiqa.scoring import Scorer
from saccade.quality.reiqa.synthetic import KINDS, SIDE, Rated, pieces, score_pieces
from saccade.registry import create, default_weights
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import seeded

CLAIM = Claim(
    system="reiqa",
    says="On photographs not seen before, a ridge on quality-aware features follows the level of known damage with "
    "SRCC >= 0.80: at least 0.10 above an untrained encoder and 0.05 above plain momentum contrast on clean crops; "
    "both branches together are at most 0.01 below the better one; moving the crop changes a score by less than a "
    "level.",
    source="tables 1 and 4 of the paper, at small scale on generated damage",
    baseline="the same encoder untrained; pre-trained on clean crops; statistics of normalised brightness made by hand",
)

STEPS = 2000
RECIPE = Recipe()
PHOTOGRAPHS = 12


def run(data: Data, seed: int) -> Figures:
    """Pre-train two encoders for 2,000 steps each; half an hour on one core."""
    files = next(iter(data.tests("kodak").values()))[:PHOTOGRAPHS]
    training = data.training()
    rated = pieces(files, seed, side=SIDE)
    recipe = replace(RECIPE, steps=STEPS, seed=seed)
    untrained, trained = (seeded(lambda: create("reiqa_small", weights=None), seed) for _ in range(2))
    assert isinstance(untrained, ReIQA)
    assert isinstance(trained, ReIQA)
    pretrain(trained.quality.encoder, training, recipe)
    pretrain(trained.content.encoder, training, replace(recipe, distortions=False, normalise=True))
    features = {
        "untrained": table(untrained.use("quality"), rated),
        "by_hand": np.stack([brightness_statistics(r.pixels) for r in rated]),
        "both": table(trained.use("quality_content"), rated),
    }
    width = trained.dimensions("quality")
    features |= {"quality": features["both"][:, :width], "content": features["both"][:, width:]}
    figures: Figures = {"steps": STEPS, "photographs": len(files), "pairs": pairs(recipe)}
    for name, found in features.items():
        figures |= {f"srcc_{name}": agreement(found, rated), f"srcc_{name}_by_kind": by_kind(found, rated)}
    figures["levels_moved_by_the_crop"] = moved(trained.use("quality"), features["quality"], rated, files, seed)
    return figures | shipped(rated)


def pairs(recipe: Recipe) -> int:
    """Pairs of crops that a pre-training sees."""
    return recipe.steps * recipe.pictures * 2 * (1 + recipe.copies)


def table(model: ReIQA, rated: Sequence[Rated]) -> np.ndarray:
    """(n, D) features of the model's present layout."""
    scorer = Scorer(model.eval())
    return np.stack([scorer.features_of_bytes(r.pixels) for r in rated])


def halves(rated: Sequence[Rated]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(training, test) sample numbers: photographs with even numbers against odd ones, and the reverse."""
    odd = np.array([r.content % 2 for r in rated], bool)
    return [(np.flatnonzero(~odd), np.flatnonzero(odd)), (np.flatnonzero(odd), np.flatnonzero(~odd))]


def predictions(features: np.ndarray, rated: Sequence[Rated]) -> np.ndarray:
    """Levels of every piece by the ridge that was fitted on the other half of the photographs."""
    levels, contents = np.array([r.level for r in rated], float), [r.content for r in rated]
    made = np.empty(len(rated))
    for train, test in halves(rated):
        made[test] = fit_ridge(features[train], levels[train], [contents[int(i)] for i in train])(features[test])
    return made


def agreement(features: np.ndarray, rated: Sequence[Rated]) -> float:
    """SRCC with the levels, the mean of both halves."""
    made, levels = predictions(features, rated), np.array([r.level for r in rated])
    return float(np.mean([srcc(made[test], levels[test]) for _, test in halves(rated)]))


def by_kind(features: np.ndarray, rated: Sequence[Rated]) -> dict[str, float]:
    """SRCC within each kind of damage and the untouched pieces, the ridge being fitted on all kinds."""
    made, levels = predictions(features, rated), np.array([r.level for r in rated])
    found = {}
    for kind in KINDS:
        own = np.array([r.kind in (kind, "") for r in rated])
        found[kind] = float(np.mean([srcc(made[t][own[t]], levels[t][own[t]]) for _, t in halves(rated)]))
    return found


def moved(model: ReIQA, features: np.ndarray, rated: Sequence[Rated], files: Sequence[Path], seed: int) -> float:
    """Mean difference in predicted levels between the piece in the middle and the one at the corner."""
    levels, contents = np.array([r.level for r in rated], float), [r.content for r in rated]
    few = [i for i, r in enumerate(rated) if r.content in (0, 1) or r.level in (0, 3)]
    corner = pieces(files, seed, 0.0, SIDE)
    elsewhere = table(model, [corner[i] for i in few])
    off = []
    for train, test in halves(rated):
        ridge = fit_ridge(features[train], levels[train], [contents[int(i)] for i in train])
        own = [j for j, i in enumerate(few) if i in set(test.tolist())]
        off.extend(np.abs(ridge(features[[few[j] for j in own]]) - ridge(elsewhere[own])))
    return float(np.mean(off))


def shipped(rated: Sequence[Rated]) -> Figures:
    """SRCC of the scores that the shipped weights give by themselves, and mean scores of each kind by level.

    Their regressor was fitted to damage of the training photographs; `saccade evaluate reiqa_small` prints the same.
    """
    if default_weights("reiqa_small") is None:
        return {"srcc_shipped": None}
    model = create("reiqa_small")
    assert isinstance(model, ReIQA)
    scores = score_pieces(model, rated)
    levels, kinds = np.array([r.level for r in rated]), np.array([r.kind for r in rated])
    means = {kind: [float(scores[(kinds == kind) & (levels == n)].mean()) for n in range(1, 6)] for kind in KINDS}
    return {
        "srcc_shipped": srcc(-scores, levels),
        "score_untouched": float(scores[levels == 0].mean()),
        "score_by_level": means,
    }


def brightness_statistics(pixels: np.ndarray) -> np.ndarray:
    """(22,) moments of brightness over its local mean and deviation, and of products of neighbours, at two sizes.

    The idea of BRISQUE (Mittal et al., IEEE TIP 2012): natural pictures have one law there, damage bends it.
    """
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float() @ torch.tensor([0.299, 0.587, 0.114])
    y, found = x[None, None], list[Tensor]()
    for _ in range(2):
        found += _moments(y)
        y = F.avg_pool2d(y, 2)
    return torch.stack(found).numpy()


def _moments(y: Tensor) -> list[Tensor]:
    line = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / (7 / 6)) ** 2)
    kernel = (line[:, None] * line / line.sum() ** 2)[None, None]
    mean, square = (F.conv2d(F.pad(v, (3,) * 4, mode="replicate"), kernel) for v in (y, y * y))
    spread = (square - mean * mean).clamp_min(0).sqrt()
    m = (y - mean) / (spread + 1)
    found = [m.var(), m.abs().mean(), (m**4).mean() / (m.var() ** 2 + 1e-6)]
    found += [spread.mean().log1p(), spread.std().log1p()]
    for product in (m[..., 1:] * m[..., :-1], m[..., 1:, :] * m[..., :-1, :]):
        found += [product.mean(), product.abs().mean(), product.std()]
    return found


def met(f: Figures) -> bool:
    """The five inequalities of the claim."""
    return bool(
        f["srcc_quality"] >= 0.80
        and f["srcc_quality"] >= f["srcc_untrained"] + 0.10
        and f["srcc_quality"] >= f["srcc_content"] + 0.05
        and f["srcc_both"] >= max(f["srcc_quality"], f["srcc_content"]) - 0.01
        and f["levels_moved_by_the_crop"] < 1
    )


def plot(figures: Figures, path: Path) -> None:
    """SRCC of every set of features, by kind of damage."""
    import matplotlib.pyplot as plt

    names = ("untrained", "by_hand", "content", "quality", "both")
    picture, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    rows: dict[str, dict[str, Any]] = {n: {"all": figures[f"srcc_{n}"]} | figures[f"srcc_{n}_by_kind"] for n in names}
    for i, name in enumerate(names):
        places = [j + (i - 2) * 0.15 for j in range(len(rows[name]))]
        heights = [v if v is not None and math.isfinite(v) else 0.0 for v in rows[name].values()]
        axis.bar(places, heights, 0.14, label=name.replace("_", " "))
    axis.axhline(0.8, color="0.5", linewidth=0.8)
    axis.set_xticks(range(len(rows["quality"])), [k.replace("_", " ") for k in rows["quality"]])
    axis.set_ylabel("SRCC with the level")
    axis.set_ylim(0, 1.2)
    axis.legend(ncols=5, fontsize=8, loc="upper center")
    picture.savefig(path, dpi=120)
    plt.close(picture)
