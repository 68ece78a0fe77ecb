"""Our own expected outputs: whoever lacks the published vectors still holds the numbers.

Each system that meets its published vectors has ``tests/expected/<slug>.json``: outputs alone. Weights and inputs are
drawn here, from a seed, by numpy, and so are the same everywhere. After a change that is meant to change the numbers,
and with parity met:

    PYTHONPATH=tests/backbones python tests/parity/test_expected.py [slug ...]
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn

from saccade.registry import create

EXPECTED = Path(__file__).resolve().parents[1] / "expected"
TOLERANCE = 2e-5  # of values around 1, in float32, between machines


def draw(chance: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.asarray(chance.standard_normal(shape), np.float32))


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> nn.Module:
    """Every parameter and buffer from the seed, in the order of their names; variances positive."""
    chance = np.random.default_rng(seed)
    for name, value in sorted(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        drawn = draw(chance, tuple(value.shape))
        if name.endswith("running_var"):
            value.copy_(0.5 + drawn.abs())
        elif value.dim() > 1:
            value.copy_(drawn / value[0].numel() ** 0.5)
        else:
            value.copy_((name.endswith("weight") and "bn" in name) + 0.2 * drawn)
    return model


def picture(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).random(shape), np.float32))


@torch.no_grad()
def espcn() -> dict[str, Tensor]:
    made = {}
    for name, scale, channels in (("espcn", 3, 1), ("espcn_small", 2, 1), ("espcn_rgb", 4, 3)):
        model = fill(create(name, weights=None, scale=scale), seed=scale).train()  # before the clamp
        made[f"{name}_x{scale}"] = model(picture(1, 1, channels, 3, 4))
    return made


@torch.no_grad()
def sesr() -> dict[str, Tensor]:
    made = {}
    for name, options in (
        ("sesr_m3", {"scale": 2}),
        ("sesr_m5", {"scale": 4, "expansion": 24}),
        ("sesr_m11", {"scale": 2, "expansion": 24, "bias": "kernel"}),
        ("sesr_m3", {"scale": 3, "expansion": 24, "bias": "output"}),
        ("sesr_rgb", {"scale": 2, "expansion": 24}),
    ):
        model = fill(create(name, weights=None, **options), seed=len(made)).train()
        y = model(picture(2, 1, model.in_channels, 3, 4))
        made[f"{name}_{'_'.join(map(str, options.values()))}"] = y / y.abs().max()
    return made


@torch.no_grad()
def pcsr() -> dict[str, Tensor]:
    made = {}
    small = {"heavy": (8, 8), "light": (4,), "classifier": (4,), "width": 8}
    for name, options in (
        ("pcsr_small", {"scale": 2}),
        ("pcsr_fsrcnn", {"scale": 3, **small, "shrink": 4, "layers": 1}),
        ("pcsr_carn", {"scale": 2, **small, "groups": 2}),
        ("pcsr_srresnet", {"scale": 4, **small, "blocks": 2}),
    ):
        model = fill(create(name, weights=None, **options), seed=len(made)).eval()
        x = picture(3, 1, 3, 3, 3)
        made[f"{name}_margins"] = model.margins(x)
        made[f"{name}_mixture"] = model.forward_mixture(x)
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def fast_scaling() -> dict[str, Tensor]:
    from saccade.backbones.fast_scaling import BASES, AnyNet, complexity, regnet, scale

    made = {}
    for name in sorted(BASES):
        for strategy in ("fast", "compound"):
            net = complexity(scale(BASES[name], strategy, 4))
            made[f"{name}_{strategy}_4"] = torch.tensor([net.macs / 1e9, net.params / 1e6, net.acts / 1e6])
    net = regnet(4, 16, 12.0, 2.0, 8, stem_width=8, classes=7, se_ratio=0.25)
    made["regnet"] = fill(AnyNet(net), seed=0).eval()(picture(4, 2, 3, 32, 32))
    return made


@torch.no_grad()
def metalens_former() -> dict[str, Tensor]:
    from saccade.restoration.metalens_former import assemble, blur, psf2otf, surroundings, wiener_bank

    told = {"filters": 3, "dim": 4, "blocks": (1, 2, 1, 1), "refinement": 2, "channel_heads": (1, 2, 2, 2)}
    told |= {"head_dim": 2, "spatial_heads": (1, 2, 1, 1), "window": 4, "embed": 4, "embed_window": 4}
    model = fill(create("acformer", weights=None, query_sizes=(5, 3, 7, 3, 3), **told), seed=0)
    y = model(picture(5, 1, 3, 3, 8, 9))
    psfs = picture(6, 4, 5, 4, 3)
    otf = psf2otf(psfs / psfs.sum((1, 2), keepdim=True), 9, 12)
    patches = blur(surroundings(picture(7, 1, 3, 12, 16), (2, 2)), otf)
    bank = assemble(wiener_bank(patches, otf, (0.1, 0.01)), (2, 2))
    return {"acformer": y / y.abs().max(), "bank": bank}


@torch.no_grad()
def histoformer() -> dict[str, Tensor]:
    # float64: two values that differ by a float32's rounding would change places from machine to machine
    small = {"dim": 4, "blocks": (1, 1, 1, 1), "refinement": 1, "expansion": 3.0}
    made = {}
    for name, options in (
        ("plain", {"heads": (1, 2, 1, 2)}),
        ("biased", {"heads": (2, 1, 2, 4), "bias": True, "centred": False}),
    ):
        model: Any = fill(create("histoformer", weights=None, **small, **options), seed=len(made)).double()
        x = picture(5, 1, 3, 9, 8).double()
        made[name] = model(x) - x
        features = draw(np.random.default_rng(6), (1, 16, 2, 3)).double()
        made[f"{name}_attention"] = model.encoder_level3[0].attn_g(features)
        made[f"{name}_feed_forward"] = model.encoder_level3[0].ffn(features)
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def pbasr() -> dict[str, Tensor]:
    from saccade.training.dual_branch import exchange, merged

    small = {"blocks": 1, "width": 8, "growth": 4}
    nets = [fill(create("rrdbnet", weights=None, **small), seed=i) for i in range(2)]
    x = picture(5, 1, 3, 3, 2)
    exchange(nets[0], nets[1], 0.9)
    made = {"exchanged": nets[0](x)}
    nets[0].load_state_dict(merged(nets[0].state_dict(), nets[1].state_dict(), 0.3))
    made["merged"] = nets[0](x)
    made["x2"] = fill(create("rrdbnet", weights=None, scale=2, **small), seed=3)(x)
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def realbasicvsr() -> dict[str, Tensor]:
    small = {"width": 4, "blocks": 1, "cleaning_blocks": 1, "high_width": 3}
    made = {}
    for threshold in (255.0, 0.0):
        model: Any = fill(create("realbasicvsr", weights=None, **small, threshold=threshold), seed=0)
        clip = picture(9, 1, 3, 3, 7, 9)
        made[f"clip_{threshold:g}"] = model(clip)[:, 1, :, 1::4, 2::4]
    made["picture"] = model(clip[:, 0])[:, :, 1::4, 2::4]
    made["flow"] = model.flow(clip[:, 0], clip[:, 1])
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def msssim_learning() -> dict[str, Tensor]:
    from saccade.quality import ms_ssim, ssim
    from saccade.quality.structure import MSSSIMLoss

    a, b = picture(5, 2, 3, 41, 37), picture(6, 2, 3, 41, 37)
    b = (0.7 * a + 0.3 * b).clamp(0, 1)
    small = {"win_size": 5, "win_sigma": 1.0, "weights": (0.2, 0.3, 0.5)}
    made = {f"ms_ssim_{p}": ms_ssim(a, b, protocol=p, **small) for p in ("wang2003", "matlab", "vainf", "y_channel")}
    made["ssim"] = ssim(a, b)
    made["loss"] = MSSSIMLoss(small["weights"], win_size=5, mix=0.84)(a, b)
    with torch.enable_grad():
        c = b[:1, :1, :9, :8].clone().requires_grad_()
        made["gradient"] = torch.autograd.grad(ssim(c, a[:1, :1, :9, :8], win_size=5).sum(), c)[0]
    return made


@torch.no_grad()
def dot() -> dict[str, Tensor]:
    model = create("dot", weights=None, patch=3, fold_sigma=1.0)
    model.update_source(torch.nn.functional.avg_pool2d(picture(7, 2, 3, 24, 20), 2, 1))
    model.update_target(picture(8, 2, 3, 22, 24))
    w2 = torch.tensor(model.compute())
    x = torch.nn.functional.avg_pool2d(picture(9, 1, 3, 9, 12), 2, 1)
    return {"w2": w2, "y": model.transport(x), "y_half": model.transport(x, latent_alpha=0.5)}


@torch.no_grad()
def serpent() -> dict[str, Tensor]:
    from saccade.ops.selective_scan import selective_scan
    from saccade.restoration.serpent import SS2D

    chance = np.random.default_rng(6)
    u, delta = draw(chance, (1, 6, 9)), draw(chance, (1, 6, 9))
    B, C = draw(chance, (1, 2, 4, 9)), draw(chance, (1, 2, 4, 9))
    A, D, bias = -draw(chance, (6, 4)).abs(), draw(chance, (6,)), draw(chance, (6,))
    made = {"scan": selective_scan(u, delta, A, B, C, D, bias, softplus=True)}
    made["ss2d"] = fill(SS2D(6, 4, 2.0), seed=0)(picture(5, 1, 3, 4, 6))
    net = create("serpent", weights=None, width=4, states=3, ratio=1.5, scales=(1, 2))
    made["serpent"] = fill(net, seed=1).eval()(picture(6, 1, 3, 5, 7))
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def iarn() -> dict[str, Tensor]:
    irn = fill(create("irn_x4", weights=None, blocks=[1, 1], growth=3), seed=0)
    for step in irn.operations:  # Haar's kernels are no weights
        if hasattr(step, "haar_weights"):
            step.haar_weights.copy_(type(step)(step.channels).haar_weights)
    y, logdet = irn.with_logdet(picture(5, 1, 3, 8, 8))
    made = {"irn_forward": y / y.abs().max(), "irn_logdet": logdet / 1000}
    made["irn_enlarged"] = irn.enlarge(picture(6, 1, 3, 2, 2))
    model = fill(create("iarn", weights=None, opening=[3, 1], hider=[3, 1], teller=[3, 1]), seed=1)
    for p in model.parameters():
        p.mul_(0.2)
    made["iarn_small"], made["iarn_latent"] = model.split(picture(7, 1, 3, 7, 9), (4, 3))
    made["iarn_enlarged"] = model.enlarge(picture(8, 1, 3, 4, 3), (7, 9))
    return {name: y / max(1.0, float(y.abs().max())) for name, y in made.items()}


@torch.no_grad()
def model_isp() -> dict[str, Tensor]:
    from saccade.ops.demosaic import demosaic
    from saccade.restoration.model_isp import operators

    chance, x = np.random.default_rng(5), picture(5, 1, 3, 6, 8)
    camera = operators.average_camera()
    packed = operators.unprocess(x, camera, "grbg")
    made = {"unprocess": packed, "process": operators.process(x, camera), "malvar": demosaic(packed, "grbg")}
    model: Any = create("model_isp_tiny", weights=None)
    for name, value in sorted(model.state_dict().items()):
        drawn = draw(chance, tuple(value.shape))
        if "averages" in name:
            value.copy_(drawn.softmax(-1))
        elif name == "stages.ccm.dictionary":
            value.copy_(torch.eye(3) + 0.1 * drawn)
        elif name == "stages.wb.dictionary":
            value.copy_(0.3 + 0.2 * drawn)
        else:
            value.copy_((0.5 if "stages" in name else value[0].numel() ** -0.5 if value.dim() > 1 else 0.2) * drawn)
    made["forward"], made["inverse"] = model(0.4 * x), model.inverse(0.2 + 0.6 * x)
    denoiser = fill(create("raw_denoiser", weights=None, width=8, depth=1), seed=6).eval()
    made["raw_denoiser"] = denoiser(packed, 0.01, 1e-3)
    return made


@torch.no_grad()
def reiqa() -> dict[str, Tensor]:
    from saccade.data.distortions import DISTORTIONS, distort
    from saccade.quality.reiqa.moco import contrast_logits
    from saccade.quality.reiqa.network import ReIQA

    made = {}
    for block in ("basic", "bottleneck"):
        model = fill(
            create("reiqa", weights=None, block=block, layers=[1, 2], widths=[3, 4], stem=4, head=[6, 4]), seed=1
        ).eval()
        assert isinstance(model, ReIQA)
        x = picture(5, 2, 3, 65, 70)
        features = model(x, picture(6, 2, 3, 32, 35))
        made[f"{block}_features"] = features / features.abs().max()
        made[f"{block}_head"] = model.quality.project(x)
    q, k, queue = (torch.nn.functional.normalize(picture(i, n, 4) - 0.5, dim=1) for i, n in ((7, 3), (8, 3), (9, 4)))
    made["logits"] = contrast_logits(q, k, queue, 0.2)
    pixels = (255 * picture(10, 24, 32, 3)).round().byte().numpy()
    kinds = [kind for kind, what in DISTORTIONS.items() if not what.random and kind != "jpeg"]  # JPEG is libjpeg's own
    means = [distort(pixels, kind, level, compat="official")[..., 1].mean() for kind in kinds for level in (1, 3)]
    made["distortions"] = torch.tensor(means).view(len(kinds), 2).round()
    return made


@torch.no_grad()
def fit() -> dict[str, Tensor]:
    wide = {"layers": "(1)1(1)1", "x_size": 12, "num_groups": 3, "latents_per_group": 2, "x_dim": 8, "latent_dim": 16}
    wide |= {"x_num_heads": 2, "latent_num_heads": 4, "mlp_ratio": 2, "latent_pos_encoding": "sin_cos"}
    x = picture(5, 1, 3, 4, 6) - 0.5
    made = {}
    for mask in ("none", "causal"):
        model = fill(create("fit", weights=None, in_dim=6, mask=mask, **wide), seed=3)
        made[f"{mask}_tokens"], made[f"{mask}_latents"] = model(x)
    denoiser = fill(create("fit_denoiser", weights=None, out_dim=6, cond_dim=5, self_cond="latent", **wide), seed=4)
    made["noise"], _ = denoiser(x, torch.tensor([0.3]), picture(6, 1, 5), made["causal_latents"])
    decoder: Any = fill(create("fit_decoder", weights=None, vocab_size=7, **wide), seed=5)
    made["logits"] = decoder(torch.arange(12).view(1, 3, 4) % 7)
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def backbone(slug: str) -> dict[str, Tensor]:
    """Logits and the sums of the maps' channels of a small network."""
    small = zoo.SMALL[slug]
    model = fill(create(small.name, weights=None, **{**small.options, "num_classes": 5}), seed=3)
    x = picture(4, 1, 3, small.side, small.side) - 0.5
    made = {"logits": model(x)}
    for i, found in enumerate(model.forward_intermediates(x, intermediates_only=True)):
        made[f"map_{i}"] = found.mean((2, 3))
    return {name: y / y.abs().max() for name, y in made.items()}


@torch.no_grad()
def wavemix() -> dict[str, Tensor]:
    """The classifier, the segmenter and the enlarger."""
    made = backbone("wavemix")
    small = {"width": 8, "depth": 1, "ff_width": 6}
    for name, options, size in (
        ("wavemix_segmentation", {"level": 3, "num_classes": 2}, (32, 32)),
        ("wavemix_x2", {"level": 1}, (5, 6)),
    ):
        y = fill(create(name, weights=None, **small, **options), seed=4)(picture(5, 1, 3, *size))
        made[name] = (y if y.shape[-1] < 32 else y[..., ::4, ::4]) / y.abs().max()
    return made


@torch.no_grad()
def foveated() -> dict[str, Tensor]:
    """The parts of the transform on noise that is drawn here, regions by windows, and a network behind the blur."""
    from saccade.backbones.foveated.adain import coral
    from saccade.backbones.foveated.lapped import Lapped, Unlapped
    from saccade.backbones.foveated.transform import painted
    from saccade.backbones.foveated.windows import Windows, pooling_regions

    image, noise = picture(5, 1, 3, 32, 48), draw(np.random.default_rng(6), (1, 3, 32, 48))
    noise = coral(noise, image)
    windows = Windows((32, 48), 0.5, (0.3, 0.6))
    made = {"coral": noise[..., ::8, ::8], "rings": torch.from_numpy(windows.ring_weights()[:, ::16, ::8])}
    for painting in ("strongest", "order"):
        regions = pooling_regions(windows, 4, painting=painting)
        features = painted(Lapped(4)(image), Lapped(4)(noise), regions)
        made[f"painted_{painting}"] = Unlapped(4)(features)[..., 1::8, 2::8]
        made[f"alpha_{painting}"] = regions.alpha
    options = {**zoo.SMALL["foveated"].options, "kind": "blur", "num_classes": 5}
    y = fill(create("foveated", weights=None, **options), seed=3)(picture(4, 1, 3, 64, 64) - 0.5)
    return {**made, "logits": y / y.abs().max()}


SYSTEMS: dict[str, Callable[[], dict[str, Tensor]]] = {
    **{slug: functools.partial(backbone, slug) for slug in zoo.SMALL},
    "wavemix": wavemix,
    "dot": dot,
    "fit": fit,
    "foveated": foveated,
    "espcn": espcn,
    "fast_scaling": fast_scaling,
    "histoformer": histoformer,
    "metalens_former": metalens_former,
    "pbasr": pbasr,
    "msssim_learning": msssim_learning,
    "model_isp": model_isp,
    "pcsr": pcsr,
    "reiqa": reiqa,
    "realbasicvsr": realbasicvsr,
    "serpent": serpent,
    "sesr": sesr,
    "iarn": iarn,
}


def told(outputs: dict[str, Tensor]) -> dict[str, Any]:
    """Shapes and numbers of six digits."""
    return {
        name: {"shape": list(y.shape), "values": [float(f"{v:.6g}") for v in y.flatten().tolist()]}
        for name, y in outputs.items()
    }


def write(slug: str) -> Path:
    rows = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in told(SYSTEMS[slug]()).items()]
    path = EXPECTED / f"{slug}.json"
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("slug", SYSTEMS)
def test_outputs_are_those_that_met_the_published_vectors(slug: str) -> None:
    expected = json.loads((EXPECTED / f"{slug}.json").read_text(encoding="utf-8"))
    found = SYSTEMS[slug]()
    assert list(found) == list(expected)
    for name, want in expected.items():
        values = torch.tensor(want["values"]).view(want["shape"])
        torch.testing.assert_close(
            found[name].float(), values, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_expected_files_are_small_and_each_has_its_system() -> None:
    for path in EXPECTED.glob("*.json"):
        assert path.stem in SYSTEMS
        assert path.stat().st_size < 16_000


if __name__ == "__main__":  # needs tests/backbones on PYTHONPATH
    for chosen in sys.argv[1:] or SYSTEMS:
        print(write(chosen))
