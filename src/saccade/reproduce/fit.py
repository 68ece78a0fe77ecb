"""Long sequences at nearly linear cost, with sight from end to end.

Cost is measured beside as many plain layers over the whole sequence, whose attention is fused and never stores L x L.
To see far is told by a task that only latents can carry: one token of a distant group holds a value that the first
token of the first group is to tell. The decoder is checked to the last bit; it learns sequences that repeat their
first group.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.fit import FIT, FITDecoder, FITDenoiser, subimages
from saccade.backbones.fit.layers import Layer
from saccade.data.shapes import shapes
from saccade.progress import bar
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import medians, on_threads, seeded

CLAIM = Claim(
    system="fit",
    says="Forward and backward of FIT grow with an exponent below 1.35 in the number of tokens, as many plain layers "
    "above 1.6, and at 16,384 tokens FIT is at least 10 times faster; a value in a distant group is told by at least "
    "97 % after 200 steps, without global layers by at most 20 %; no logit of the decoder changes by later tokens, all "
    "others do; it tells repeating sequences in fewer bits than local layers alone; the denoiser beats foretelling "
    "no noise.",
    source="abstract, section 3; figures of this small form measured beforehand",
    baseline="four plain layers with fused attention over all tokens; local layers alone",
)

LENGTHS = (1024, 4096, 16384)
ROUNDS = 3
STEPS, COPY_STEPS, NOISE_STEPS = 200, 300, 200
SMALL: Any = {"x_dim": 32, "latent_dim": 32, "x_num_heads": 4, "latent_num_heads": 4}


class Plain(nn.Module):
    """Four layers over the whole sequence: (B, L, c) -> (B, L, width)."""

    def __init__(self, length: int, inputs: int, width: int, heads: int) -> None:
        super().__init__()
        self.stem, self.table = nn.Linear(inputs, width), nn.Parameter(torch.zeros(length, width))
        self.layers = nn.Sequential(*(Layer(width, heads, 4) for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.stem(x) + self.table)
        return out


def run(data: Data, seed: int) -> Figures:
    """About four minutes on two cores, most of them for the plain layers."""
    figures = scaling()
    figures |= {f"accuracy_{name}": far(layers, seed) for name, layers in (("fit", "(1)1(1)"), ("local_alone", "(2)"))}
    figures["decoder_difference_before"], figures["decoder_changed_behind"] = exactness(seed)
    for name, layers in (("fit", "(1)1(1)"), ("local_alone", "(2)")):
        figures[f"bits_a_token_{name}"] = copying(layers, seed)
    figures["noise_loss"] = denoising(seed)
    return figures | {"steps": STEPS, "data": "generated sequences and shapes"}


def _step(model: nn.Module, x: Tensor) -> None:
    """Forward and backward; of FIT's two outputs the tokens count."""
    out = model(x)
    (out[0] if isinstance(model, FIT) else out).sum().backward()


def scaling() -> Figures:
    """Median seconds of forward and backward on one thread, all in turn; exponents between one length and the next."""
    calls: dict[str, Callable[[], None]] = {}
    wide = {"x_dim": 64, "latent_dim": 64, "x_num_heads": 4, "latent_num_heads": 4}
    for length in LENGTHS:
        x = torch.randn(1, length // 64, 64, 64, generator=torch.Generator().manual_seed(0))
        ours = FIT("(1)1(1)1", length, length // 64, 4, in_dim=64, **wide)
        peer = Plain(length, 64, 64, 4)
        calls[f"seconds_fit_{length}"] = partial(_step, ours, x)
        calls[f"seconds_plain_{length}"] = partial(_step, peer, x.flatten(1, 2))
    with on_threads(1):
        figures: Figures = {"threads": 1, **medians(calls, ROUNDS)}
    for name in ("fit", "plain"):
        times = [figures[f"seconds_{name}_{n}"] for n in LENGTHS]
        grown = [math.log(b / a, 4) for a, b in itertools.pairwise(times)]
        figures[f"exponents_{name}"] = grown
    return figures


def _trained(
    model: nn.Module, loss: Callable[[torch.Generator], Tensor], steps: int, seed: int, what: str
) -> nn.Module:
    """AdamW 3e-3, 30 steps of warm-up, cosine."""
    chance = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    with bar(what, steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 3e-3 * min(1, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.zero_grad()
            loss(chance).backward()
            optimiser.step()
            advance(1)
    return model.eval()


class Reader(nn.Module):
    """Tells 8 values apart by the first token of the first of 8 groups."""

    def __init__(self, layers: str) -> None:
        super().__init__()
        self.net, self.head = FIT(layers, 64, 8, 2, in_dim=9, **SMALL), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.net(x)[0][:, 0, 0])
        return out


def far(layers: str, seed: int) -> float:
    """Percent of values told right; the one token that is not blank stands in a group of 1 to 7."""

    def batch(count: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        value = torch.randint(8, (count,), generator=chance)
        place = torch.randint(8, 64, (count,), generator=chance)
        x = torch.zeros(count, 64, 9)
        x[:, :, 8] = 1  # blank
        x[torch.arange(count), place] = F.one_hot(value, 9).float()
        return x.unflatten(1, (8, 8)), value

    def loss(chance: torch.Generator) -> Tensor:
        x, value = batch(64, chance)
        return F.cross_entropy(model(x), value)

    model = seeded(lambda: Reader(layers), seed)
    _trained(model, loss, STEPS, seed, f"far, {layers}")
    with torch.inference_mode():
        x, value = batch(2000, torch.Generator().manual_seed(seed + 1))
        return 100 * float((model(x).argmax(1) == value).float().mean())


def _decoder(layers: str) -> FITDecoder:
    return FITDecoder(layers, 32, 8, 2, vocab_size=8, **SMALL)


def exactness(seed: int) -> tuple[float, float]:
    """Largest change of logits before a changed token, and the share of places from it on that change at all."""
    model = seeded(lambda: _decoder("(1)1(1)"), seed).eval()
    tokens = torch.randint(8, (1, 8, 4), generator=torch.Generator().manual_seed(seed))
    before, changed, places = 0.0, 0, 0
    with torch.inference_mode():
        want = model(tokens).flatten(1, 2)
        for place in range(32):
            other = tokens.flatten(1).clone()
            other[0, place] = (other[0, place] + 1) % 8
            moved = (model(other.view_as(tokens)).flatten(1, 2) - want).abs().amax(-1)[0]
            before = max(before, float(moved[:place].max()) if place else 0.0)
            changed, places = changed + int((moved[place:] > 0).sum()), places + 32 - place
    return before, changed / places


def copying(layers: str, seed: int) -> float:
    """Bits a token on sequences of 8 groups of 4 that all repeat the first one; at least 0.375."""

    def batch(count: int, chance: torch.Generator) -> Tensor:
        return torch.randint(8, (count, 4), generator=chance).repeat(1, 8)

    model = seeded(lambda: _decoder(layers), seed)
    assert isinstance(model, FITDecoder)
    _trained(model, lambda chance: model.loss(batch(64, chance)), COPY_STEPS, seed, f"copying, {layers}")
    with torch.inference_mode():
        return float(model.loss(batch(500, torch.Generator().manual_seed(seed + 1)))) / math.log(2)


def denoising(seed: int) -> float:
    """Mean squared error of foretold noise on shapes of 16 x 16 px, by class; foretelling none scores 1."""
    train = shapes(1000, side=16, seed=1)
    tokens = subimages(train.images, (8, 8), 4)  # (N, 4, 4, 48)
    classes = F.one_hot(train.labels, 8).float()
    told = {**SMALL, "x_dim": 64, "latent_dim": 64, "out_dim": 48, "cond_dim": 8, "self_cond": "latent"}
    model = seeded(lambda: FITDenoiser("(1)1(1)", 16, 4, 4, **told), seed)

    def loss(chance: torch.Generator, count: int = 64) -> Tensor:
        chosen = torch.randint(len(tokens), (count,), generator=chance)
        t, noise = torch.rand(count, generator=chance), torch.randn(count, 4, 4, 48, generator=chance)
        signal = torch.cos(t * math.pi / 2)[:, None, None, None] ** 2
        noisy = signal.sqrt() * tokens[chosen] + (1 - signal).sqrt() * noise
        return F.mse_loss(model(noisy, t, classes[chosen])[0], noise)

    _trained(model, loss, NOISE_STEPS, seed, "denoising")
    with torch.inference_mode():
        return float(loss(torch.Generator().manual_seed(seed + 1), 1000))


def met(f: Figures) -> bool:
    """The inequalities of the claim."""
    longest = LENGTHS[-1]
    return bool(
        max(f["exponents_fit"]) < 1.35
        and min(f["exponents_plain"]) > 1.6
        and f[f"seconds_plain_{longest}"] >= 10 * f[f"seconds_fit_{longest}"]
        and f["accuracy_fit"] >= 97
        and f["accuracy_local_alone"] <= 20
        and f["decoder_difference_before"] == 0
        and f["decoder_changed_behind"] == 1
        and f["bits_a_token_fit"] < f["bits_a_token_local_alone"]
        and f["noise_loss"] < 1
    )


def plot(figures: Figures, path: Path) -> None:
    """Seconds by length, and who sees far."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for name in ("fit", "plain"):
        left.loglog(LENGTHS, [figures[f"seconds_{name}_{n}"] for n in LENGTHS], marker="o", label=name)
    left.set(xlabel="tokens", ylabel="seconds, forward and backward")
    left.legend()
    right.barh(["FIT", "local layers alone"], [figures["accuracy_fit"], figures["accuracy_local_alone"]])
    right.set_xlabel("distant values told, %")
    picture.savefig(path, dpi=120)
    plt.close(picture)
