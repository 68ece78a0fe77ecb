"""Collapsible linear blocks: one function with the expanded form, cheaper to train; more quality per MAC than FSRCNN.

MACs are told twice. The field's tables count FSRCNN's transposed convolution at the output's size, scale^2 times what
is executed (6.0 G for x2 to 720p, 2.9 G executed); SESR's counts are the same either way. SESR-M3 is below FSRCNN in
both. Plain FSRCNN has hardly left its start after so short a training; the one that is given its input is the baseline
that counts here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.cost import cost, count_parameters
from saccade.data.pairs import CropPairs
from saccade.registry import create
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.training import Bicubic, medians, on_threads, psnr, seeded, train
from saccade.restoration.sesr import SESR, LinearBlock

CLAIM = Claim(
    system="sesr",
    says="Collapsed and expanded blocks are one function (to 1e-6) and a collapsed training step is at least 5 times "
    "cheaper; after equal training SESR-M5, at half the MACs that the field counts for FSRCNN, and SESR-M3, at a "
    "third, both have the higher mean PSNR on every set.",
    source="sections 3.1, 3.2 and 5.2, tables 1 and 2",
    baseline="the expanded form; FSRCNN (d=56, s=12, m=4), plain and with the input added as in SESR",
)

SCALE = 2
STEPS = 1_500
BATCH = 8
SEEDS = 2
NETWORKS = ("sesr_m3", "sesr_m5", "fsrcnn", "fsrcnn_skip")


class FSRCNN(nn.Module):
    """Dong et al., arXiv:1608.00367: extract, shrink, map, expand, and a transposed convolution.

    Args:
        skip: add the enlarged input (nearest neighbour, as SESR does): a stronger baseline in short trainings.

    Shape: (B, 1, h, w) -> (B, 1, scale*h, scale*w).
    """

    colour = "luma"

    def __init__(self, scale: int, width: int = 56, shrunk: int = 12, layers: int = 4, skip: bool = False) -> None:
        super().__init__()
        self.scale, self.skip = scale, skip

        def step(inputs: int, outputs: int, size: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.PReLU(outputs)]

        inner = [module for _ in range(layers) for module in step(shrunk, shrunk, 3)]
        self.body = nn.Sequential(*step(1, width, 5), *step(width, shrunk, 1), *inner, *step(shrunk, width, 1))
        self.enlarge = nn.ConvTranspose2d(width, 1, 9, scale, 4, scale - 1)
        for name, p in self.named_parameters():  # the start of the paper: He's, and next to nothing for the last
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() > 1:
                nn.init.kaiming_normal_(p, a=0.25)
        nn.init.normal_(self.enlarge.weight, std=1e-3)

    def forward(self, luma: Tensor) -> Tensor:
        y: Tensor = self.enlarge(self.body(luma))
        return y + F.interpolate(luma, scale_factor=self.scale) if self.skip else y


def run(data: Data, seed: int) -> Figures:
    """Train four networks on two seeds for 1,500 steps each; about six minutes on two cores."""
    crops = CropPairs(data.training(), SCALE, 32, luma=True)
    sets = data.tests("set5", "set14", "b100")
    makers: dict[str, Callable[[], nn.Module]] = {
        "sesr_m3": partial(create, "sesr_m3", weights=None, scale=SCALE, expansion="paper"),
        "sesr_m5": partial(create, "sesr_m5", weights=None, scale=SCALE, expansion="paper"),
        "fsrcnn": partial(FSRCNN, SCALE),
        "fsrcnn_skip": partial(FSRCNN, SCALE, skip=True),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for name in NETWORKS:
        for own in range(seed, seed + SEEDS):
            model = train(
                seeded(makers[name], own), crops, steps=STEPS, seed=own, batch=BATCH, what=f"{name}, seed {own}"
            )
            model = model.collapse() if isinstance(model, SESR) else model
            found.setdefault(name, []).append(psnr(model, sets, SCALE))
    figures: Figures = {"steps": STEPS, "seeds": SEEDS, "psnr_y_db_bicubic": psnr(Bicubic(SCALE), sets, SCALE)}
    for name, runs in found.items():
        figures[f"psnr_y_db_{name}"] = {s: statistics.mean(r[s] for r in runs) for s in sets}
        figures[f"psnr_y_db_{name}_by_seed"] = {s: [r[s] for r in runs] for s in sets}
    return figures | costs(makers) | equality(seed) | step_cost(seed)


def costs(makers: dict[str, Callable[[], nn.Module]]) -> Figures:
    """Parameters (kernels), and GMACs to 1280x720 as executed and as the field counts them."""
    figures: Figures = {}
    for name, make in makers.items():
        model = make()
        model = model.collapse() if isinstance(model, SESR) else model
        executed = cost(model.eval(), torch.empty(1, 1, 720 // SCALE, 1280 // SCALE, device="meta")).macs
        counted = executed
        if isinstance(model, FSRCNN):
            counted += model.enlarge.weight.numel() * (SCALE**2 - 1) * (720 // SCALE) * (1280 // SCALE)
        figures[f"parameters_{name}"] = count_parameters(model, kernels_only=True)
        figures[f"gmacs_720p_executed_{name}"] = executed / 1e9
        figures[f"gmacs_720p_as_published_{name}"] = counted / 1e9
    return figures


@torch.no_grad()
def equality(seed: int) -> Figures:
    """The largest difference between SESR-M5 run expanded, collapsed at each call, and collapsed for good; float32."""
    model = seeded(partial(create, "sesr_m5", weights=None, scale=SCALE, expansion="paper"), seed).eval()
    assert isinstance(model, SESR)
    picture = torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(seed))
    collapsed, final = model(picture), model.collapse()(picture)
    _run_expanded(model)
    expanded = model(picture)
    differences = [float((expanded - other).abs().max()) for other in (collapsed, final)]
    return {"largest_difference_of_forms": max(differences)}


def _run_expanded(model: SESR) -> None:
    for block in model.linear_blocks():
        block.forward = partial(LinearBlock.forward_expanded, block)  # type: ignore[method-assign]


def step_cost(seed: int) -> Figures:
    """Processor seconds of a training step of SESR-M5 in both forms, batch 4 of 64x64, one thread."""
    low = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    high = torch.rand(4, 1, 64 * SCALE, 64 * SCALE, generator=torch.Generator().manual_seed(seed + 1))
    forms: dict[str, Callable[[], object]] = {}
    for name in ("collapsed", "expanded"):
        model = seeded(partial(create, "sesr_m5", weights=None, scale=SCALE, expansion="paper"), seed).train()
        assert isinstance(model, SESR)
        if name == "expanded":
            _run_expanded(model)
        forms[name] = partial(_step, model, torch.optim.Adam(model.parameters(), 1e-4), low, high)
    with on_threads(1):
        seconds = medians(forms, 5, time.thread_time)
    return {
        "seconds_step_collapsed": seconds["collapsed"],
        "seconds_step_expanded": seconds["expanded"],
        "step_ratio": seconds["expanded"] / seconds["collapsed"],
    }


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, low: Tensor, high: Tensor) -> None:
    optimiser.zero_grad()
    F.l1_loss(model(low), high).backward()
    optimiser.step()


def met(f: Figures) -> bool:
    """One function, a step at most a fifth, and M3 and M5 above both FSRCNNs on every set, in the mean over seeds."""
    best = {s: max(f["psnr_y_db_fsrcnn"][s], f["psnr_y_db_fsrcnn_skip"][s]) for s in f["psnr_y_db_fsrcnn"]}
    return (
        f["largest_difference_of_forms"] <= 1e-6
        and f["step_ratio"] >= 5
        and all(f["psnr_y_db_sesr_m5"][s] > best[s] and f["psnr_y_db_sesr_m3"][s] > best[s] for s in best)
    )


def plot(figures: Figures, path: Path) -> None:
    """PSNR gain over bicubic, every seed a point, over executed and published MACs."""
    import matplotlib.pyplot as plt

    sets = list(figures["psnr_y_db_bicubic"])
    picture, axes = plt.subplots(1, len(sets), figsize=(4 * len(sets), 3.4), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], sets, strict=True):
        for i, network in enumerate(NETWORKS):
            gains = [v - figures["psnr_y_db_bicubic"][name] for v in figures[f"psnr_y_db_{network}_by_seed"][name]]
            for key, marker in (("executed", "o"), ("as_published", "x")):
                macs = [figures[f"gmacs_720p_{key}_{network}"]] * len(gains)
                axis.plot(macs, gains, marker, color=f"C{i}", label=network if marker == "o" else None)
        axis.set_title(name)
        axis.set_xlabel("GMACs to 720p: executed (o), as published (x)")
    axes[0][0].set_ylabel(f"PSNR-Y over bicubic, x{SCALE} (dB)")
    axes[0][0].legend()
    picture.savefig(path, dpi=120)
    plt.close(picture)
