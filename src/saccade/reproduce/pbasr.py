"""PBaSR's claim: two branches from one start can be melted into one network; two from different starts cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.data.crops import Crops, held_out
from saccade.data.degrade import gaussian_blur, jpeg, white_noise
from saccade.data.intended_blur import intended_blur
from saccade.ops.resize import resize
from saccade.progress import bar
from saccade.quality import psnr
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import on_threads, seeded
from saccade.restoration.pbasr import RRDBNet
from saccade.training.dual_branch import Branches, dual_branch, merged, similarity
from saccade.training.trainer import learning_rate

CLAIM = Claim(
    system="pbasr",
    says="Two branches that start from one network, one trained on general pictures and one on blurred ones, melt into "
    "one network of the same cost: within 0.05 dB of the better branch on either kind, better than their common start, "
    "within 0.1 dB of joint training. Branches from different starts do not: their mixture falls below bicubic and 0.4 "
    "dB below its worse parent. The exchange of weights keeps branches alike (cosine with exchange > without > other "
    "starts).",
    source="sections 3.3 and 3.4; thresholds ours, for a small network under L1",
    baseline="joint training with as many patches; branches without exchange; branches from different starts; bicubic",
)
SCALE, PATCH = 2, 48  # PATCH: side of the high-resolution crop
JOINT, APART, BATCH = 700, 500, 8
KINDS = ("general", "blur")


def spoiled(sharp: Tensor, chance: np.random.Generator) -> Tensor:
    """The low-resolution picture: blur of 0.2 to 1.5 px, half size, noise of 0 to 10, JPEG of quality 50 to 95."""
    count = len(sharp)
    low = resize(gaussian_blur(sharp, chance.uniform(0.2, 1.5, count)), 1 / SCALE)
    low = white_noise(low, chance.uniform(0, 10, count) / 255, chance).clamp(0, 1)
    return jpeg(low, [int(q) for q in chance.integers(50, 96, count)])


class Domain:
    """Low- and high-resolution crops of one kind: general pictures, or the same with blur that belongs there."""

    def __init__(self, pictures: Sequence[Path], blurred: bool) -> None:
        self.crops, self.blurred = Crops(pictures, PATCH), blurred

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """(size, 3, 24, 24) and (size, 3, 48, 48)."""
        _, high = self.crops.batch(size, seed, step, rank)
        chance = np.random.default_rng((seed, step, rank, int(self.blurred)))
        if self.blurred:
            high = intended_blur(high, chance)[0]
        return spoiled(high, chance), high


def tests_of(pictures: Sequence[Path], blurred: bool) -> list[tuple[Tensor, Tensor]]:
    """Centre crops of 256 px, low and high."""
    made = []
    for i, (_, high) in enumerate(held_out(pictures)):
        chance = np.random.default_rng((99, i, int(blurred)))
        high = high[..., : high.shape[2] // 2 * 2, : high.shape[3] // 2 * 2]
        if blurred:
            high = intended_blur(high, chance)[0]
        made.append((spoiled(high, chance), high))
    return made


@torch.inference_mode()
def measured(network: Callable[[Tensor], Tensor], tests: dict[str, list[tuple[Tensor, Tensor]]]) -> list[float]:
    """PSNR of luma in dB: general, blur, mean."""
    each = []
    for kind in KINDS:
        found = [float(psnr(network(low).clamp(0, 1), high, border=SCALE, luma=True)) for low, high in tests[kind]]
        each.append(float(np.mean(found)))
    return [*each, float(np.mean(each))]


def jointly(
    network: nn.Module, domains: Sequence[Domain], steps: int, rate: float, seed: int, hold: float
) -> nn.Module:
    """Train on both kinds at once, as many patches of each as a branch sees; a new network is returned."""
    made = copy.deepcopy(network).train()
    optimiser = torch.optim.Adam(made.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    with bar("both kinds at once", steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, rate, 20 if hold else 0, hold)
            pairs = [domain.batch(BATCH, seed, step) for domain in domains]
            low, high = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
            F.l1_loss(made(low), high).backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return made.eval()


def run(data: Data, seed: int) -> Figures:
    with on_threads(min(2, torch.get_num_threads())):
        return _run(data, seed)


def _run(data: Data, seed: int) -> Figures:
    domains = [Domain(data.training(), blurred) for blurred in (False, True)]
    pictures = [p for files in data.tests("kodak").values() for p in files]
    tests = {kind: tests_of(pictures, kind == "blur") for kind in KINDS}

    def make() -> nn.Module:
        return RRDBNet(SCALE, blocks=2, width=16, growth=8, bilinear=True)

    starts = [jointly(seeded(make, seed + 100 * i), domains, JOINT, 1e-3, seed + i, 1.0) for i in (0, 1)]

    def apart(start: nn.Module, decay: float | None) -> Branches:
        return dual_branch(start, *domains, steps=APART, batch=BATCH, rate=5e-4, decay=decay, seed=seed + 10)

    joint = jointly(starts[0], domains, APART, 5e-4, seed + 10, 0.0)
    tied, loose = apart(starts[0], 0.999), apart(starts[0], None)
    figures: Figures = {
        "columns": ["general", "blur", "mean"],
        "bicubic_db": measured(lambda low: resize(low, SCALE), tests),
        "start_db": measured(starts[0], tests),
        "joint_db": measured(joint, tests),
    }
    for name, branches in (("exchange", tied), ("no_exchange", loose)):
        for part in ("general", "blur", "combined"):
            figures[f"{name}_{part}_db"] = measured(getattr(branches, part), tests)
        figures[f"{name}_cosine"] = branches.similarity
    figures |= _strangers(starts, tests)
    figures["alphas"] = [0.0, 0.25, 0.5, 0.75, 1.0]
    figures["alpha_db"] = [measured(_mixture(tied, a), tests) for a in figures["alphas"]]
    figures["merge_seconds_16.7M"] = _merge_seconds()
    return figures


def _strangers(starts: Sequence[nn.Module], tests: dict[str, list[tuple[Tensor, Tensor]]]) -> Figures:
    """Two networks from different initial weights and their mean."""
    states = [start.state_dict() for start in starts]
    mixture = copy.deepcopy(starts[0])
    mixture.load_state_dict(merged(states[0], states[1]))
    return {
        "strangers_parents_db": [measured(start, tests) for start in starts],
        "strangers_combined_db": measured(mixture, tests),
        "strangers_cosine": similarity(states[0], states[1]),
    }


def _mixture(branches: Branches, alpha: float) -> nn.Module:
    made = copy.deepcopy(branches.combined)
    made.load_state_dict(merged(branches.general.state_dict(), branches.blur.state_dict(), alpha))
    return made


def _merge_seconds() -> float:
    """Time of merging two published-size networks in memory."""
    import time

    state = seeded(RRDBNet, 0).state_dict()
    began = time.perf_counter()
    merged(state, state)
    return round(time.perf_counter() - began, 3)


def met(figures: Figures) -> bool:
    together, start, joint = (figures[k] for k in ("exchange_combined_db", "start_db", "joint_db"))
    better = [max(figures["exchange_general_db"][i], figures["exchange_blur_db"][i]) for i in (0, 1)]
    worse_parent = [min(parent[i] for parent in figures["strangers_parents_db"]) for i in (0, 1, 2)]
    strangers = figures["strangers_combined_db"]
    return bool(
        all(together[i] >= better[i] - 0.05 for i in (0, 1))
        and together[2] > start[2]
        and together[2] >= joint[2] - 0.1
        and figures["exchange_cosine"] > figures["no_exchange_cosine"] > figures["strangers_cosine"]
        and strangers[2] < figures["bicubic_db"][2]
        and strangers[2] <= worse_parent[2] - 0.4
        and monotone(figures)
    )


def monotone(figures: Figures) -> bool:
    """Whether PSNR goes from one branch's to the other's without turning by more than 0.01 dB, on either kind."""
    for i in (0, 1):
        steps = [after[i] - before[i] for before, after in pairwise(figures["alpha_db"])]
        if min(steps) < -0.01 and max(steps) > 0.01:
            return False
    return True


def plot(figures: Figures, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    rows = {
        "bicubic": figures["bicubic_db"],
        "common start": figures["start_db"],
        "joint training": figures["joint_db"],
        "melted, exchange": figures["exchange_combined_db"],
        "melted, no exchange": figures["no_exchange_combined_db"],
        "melted strangers": figures["strangers_combined_db"],
    }
    places = np.arange(len(rows))
    for i, kind in enumerate(KINDS):
        axes.barh(places + 0.2 - 0.4 * i, [row[i] for row in rows.values()], 0.38, label=kind)
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    low = min(min(row[:2]) for row in rows.values())
    axes.set_xlim(low - 1)
    axes.set_xlabel("PSNR of luma, dB")
    axes.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
