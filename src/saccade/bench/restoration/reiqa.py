"""Scoring a picture: both encoders at both sizes by our default path, beside the steps of the official scripts."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender

__all__ = ["contests"]


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """From decoded pixels to features: the published ResNet-50 pair, and our small pair.

    Args:
        size: width and height.
        threads: of both contenders.
    """
    from saccade.quality.reiqa.network import ReIQA
    from saccade.quality.reiqa.scoring import SIDE, Scorer
    from saccade.registry import create
    from saccade.reproduce.training import seeded
    from saccade.runtime.scene import scene

    width, height = size
    pixels = scene(height, width)
    inside = functools.partial(peers.torch_threads, threads)
    for name in ("reiqa", "reiqa_small"):
        model = seeded(functools.partial(create, name, weights=None), 0).eval()
        assert isinstance(model, ReIQA)
        scorer = Scorer(model, threads=threads, side=max(SIDE, width, height))
        scorer.prepare()  # made once for many pictures: no part of the picture's time and memory
        yield Contest(
            what=f"{name}, both encoders at both sizes, from RGB bytes to {model.dimensions()} features",
            ours=Contender(
                f"{name} by saccade ({scorer.backend})",
                functools.partial(scorer.features_of_bytes, pixels),
                threads,
                inside,
            ),
            official=Contender(f"{name} as published", functools.partial(_plain, model, pixels), threads, inside),
            notes=(
                "Fresh seeded weights; decoding the file is outside, it is the same work for both.",
                "reiqa: our encoders are made ready before, as the peer's are loaded before; OpenVINO's own copies of "
                "their weights come on top of the model's.",
            ),
        )


def _plain(model: Any, pixels: Any) -> Any:
    """The official scripts, one after the other: Pillow halves, ToTensor, [normalise,] encoder in eager torch."""
    import numpy as np
    import torch
    from PIL import Image
    from torchvision import transforms

    image = Image.fromarray(pixels)
    small = image.resize((image.size[0] // 2, image.size[1] // 2))
    normalise = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    made = []
    with torch.no_grad():
        for name in ("quality", "content"):
            encoder = getattr(model, name).encoder
            for picture in (image, small):
                x = transforms.ToTensor()(picture)
                made.append(encoder((normalise(x) if name == "content" else x).unsqueeze(0)))
    return np.asarray(torch.cat(made, 1))
