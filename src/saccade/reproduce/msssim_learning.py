"""Structural similarity as a score and as a loss: it orders equal errors as people do, and autoencoders keep contrast.

Two things are measured. Five distortions of equal mean squared error (Wang's classic) are put in order by MS-SSIM. A
convolutional autoencoder of small grey pictures is trained with the squared error and with 1 - MS-SSIM, each at the
learning rate that serves its own loss best on pictures that were held out of training.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.data.cifar10 import tiles
from saccade.ops.ssim import gaussian
from saccade.progress import bar
from saccade.quality import luma, ms_ssim, psnr, ssim
from saccade.quality.structure import MSSSIMLoss
from saccade.reproduce import Claim, Data, Figures
from saccade.reproduce.examples import packed, unpacked
from saccade.reproduce.training import seeded
from saccade.training.trainer import learning_rate

CLAIM = Claim(
    system="msssim_learning",
    says="At equal squared error MS-SSIM orders shift of brightness > contrast > noise > blur > heavy JPEG; an "
    "autoencoder trained with 1 - MS-SSIM has an SSIM at least 0.02 above the one trained with L2, loses at most 1.5 "
    "dB of PSNR, and keeps 85 to 105 % of the local contrast where L2 keeps less than 75 %.",
    source="sections 3 and 4; the order: Wang et al. 2004, figure 2",
    baseline="the same autoencoder trained with the mean squared error, its learning rate tuned too",
)

SIDE = 32
BOTTLENECK = 64
STEPS, TUNING_STEPS = 2_000, 300
BATCH = 64
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
HELD_OUT = 512
SCALES, WINDOW = 3, 7
ROWS = ("original", "ms_ssim", "l2")  # of the examples
JPEG_QUALITY = 7
CROP = 256


class ConvolutionalAutoencoder(nn.Module):
    """Three convolutions of stride 2, a fully connected bottleneck, and their mirror (section 4.2).

    Shape: (B, 1, 32, 32) -> the same, in [0, 1].
    """

    def __init__(self, bottleneck: int = BOTTLENECK, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        a, b, c = widths

        def up(inputs: int, outputs: int) -> nn.Module:
            return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)

        encoder = [nn.Conv2d(1, a, 3, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1), nn.ReLU(), nn.Conv2d(b, c, 3, 2, 1)]
        self.encoder = nn.Sequential(*encoder, nn.ReLU(), nn.Flatten(), nn.Linear(c * 16, bottleneck))
        decoder = [nn.Linear(bottleneck, c * 16), nn.ReLU(), nn.Unflatten(1, (c, 4, 4))]
        self.decoder = nn.Sequential(*decoder, up(c, b), nn.ReLU(), up(b, a), nn.ReLU(), up(a, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.decoder(self.encoder(x))
        return y


def run(data: Data, seed: int) -> Figures:
    """About ten minutes on two cores: four short trainings and a long one for each loss."""
    return order(data, seed) | study(data, seed)


# -- equal errors


def order(data: Data, seed: int) -> Figures:
    """Mean MS-SSIM of five distortions that have the squared error of a heavy JPEG, on crops of the test pictures."""
    scores: dict[str, list[float]] = {}
    for path in [p for files in data.tests("kodak").values() for p in files]:
        clean = crop(path)
        for name, distorted in distortions(clean, seed).items():
            scores.setdefault(name, []).append(float(ms_ssim(distorted, clean, luma=True)))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    return {"ms_ssim_at_equal_error": means, "pictures_at_equal_error": len(scores["jpeg"])}


def crop(path: Path) -> Tensor:
    """The middle of a picture, grey, (1, 1, 256, 256) at most, its range narrowed: distortions stay in [0, 1]."""
    from saccade.data.pairs import read_resized

    picture = luma(read_resized(path).float() / 255)
    h, w = picture.shape[1:]
    top, left = max(0, h - CROP) // 2, max(0, w - CROP) // 2
    return 0.15 + 0.7 * picture[None, :, top : top + CROP, left : left + CROP]


def distortions(clean: Tensor, seed: int) -> dict[str, Tensor]:
    """Five of equal squared error, that of JPEG at quality 7."""
    jpeg = compressed(clean)
    error = float((jpeg - clean).square().mean())
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    mean = clean.mean((2, 3), keepdim=True)
    ways: dict[str, Callable[[float], Tensor]] = {
        "shift": lambda much: clean + much,
        "contrast": lambda much: mean + (1 + much) * (clean - mean),
        "noise": lambda much: clean + much * noise,
        "blur": partial(blurred, clean),
    }
    return {name: at_error(way, clean, error) for name, way in ways.items()} | {"jpeg": jpeg}


def at_error(way: Callable[[float], Tensor], clean: Tensor, error: float) -> Tensor:
    """The distortion of the strength that gives this squared error; all grow with their strength."""
    low, high = 0.0, 8.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if float((way(middle) - clean).square().mean()) < error else (low, middle)
    return way(high)


def blurred(clean: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, edges repeated."""
    taps = torch.tensor(gaussian(61, max(sigma, 1e-3)))
    x = F.pad(clean.flatten(0, 1)[:, None], (30, 30, 30, 30), mode="replicate")
    x = F.conv2d(F.conv2d(x, taps[None, None, :, None]), taps[None, None, None])
    return x.view(clean.shape)


def compressed(clean: Tensor) -> Tensor:
    """Through JPEG."""
    from PIL import Image

    pixels = (clean[0, 0] * 255).round().byte().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(stream)))[None, None].float() / 255


# -- learning


def small_pictures(data: Data, seed: int) -> tuple[Tensor, Tensor]:
    """Grey training and test pictures, (N, 1, 32, 32) float32 in [0, 1]: CIFAR-10, or crops of what there is."""
    folder = None if data.folder is None else data.folder / "cifar10"
    if folder is not None and (folder / "train_part0.webp").is_file() and (folder / "test.webp").is_file():
        data.used.append("cifar10")
        return tiles(folder / "train_part0.webp", "L"), tiles(folder / "test.webp", "L")[:2_000]
    training = crops(data.training(), 4_000, seed)
    return training, crops([p for files in data.tests().values() for p in files], 1_000, seed + 1)


def crops(files: list[Path], count: int, seed: int) -> Tensor:
    """Random crops of pictures at half of their size, grey."""
    from saccade.data.pairs import read_resized

    chance = np.random.default_rng(seed)
    pictures = [read_resized(path, 0.5).float().mean(0, keepdim=True) / 255 for path in files]
    made = []
    for _ in range(count):
        picture = pictures[int(chance.integers(len(pictures)))]
        top, left = (int(chance.integers(n - SIDE + 1)) for n in picture.shape[1:])
        made.append(picture[:, top : top + SIDE, left : left + SIDE])
    return torch.stack(made)


def losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Both, by name; three scales and a window of 7 fit into 32 pixels."""
    structural = MSSSIMLoss.for_size(SIDE, SIDE, win_size=WINDOW)
    assert len(structural.weights) == SCALES
    return {"l2": F.mse_loss, "ms_ssim": structural}


def study(data: Data, seed: int) -> Figures:
    """Tune, train and measure the autoencoder with each loss."""
    training, test = small_pictures(data, seed)
    held, training = training[:HELD_OUT], training[HELD_OUT:]
    figures: Figures = {"training_pictures": len(training), "test_pictures": len(test), "steps": STEPS}
    examples: dict[str, Tensor] = {"original": test[:8]}
    for name, loss in losses().items():
        found = {}
        for rate in RATES:
            model = fitted(loss, training, rate, TUNING_STEPS, seed, f"{name}, rate {rate:g}")
            found[rate] = float(loss(outputs(model, held), held))
        best = min(found, key=lambda rate: found[rate])
        model = fitted(loss, training, best, STEPS, seed, f"{name}, rate {best:g}")
        made = outputs(model, test)
        figures |= {
            f"held_out_loss_{name}_by_rate": {f"{rate:g}": value for rate, value in found.items()},
            f"rate_{name}": best,
            f"ssim_{name}": float(ssim(made, test).mean()),
            f"psnr_db_{name}": float(psnr(made, test).mean()),
            f"local_contrast_{name}": float(contrast(made).mean() / contrast(test).mean()),
        }
        examples[name] = made[:8]
    rows = [torch.cat(list(examples[name][:, 0]), 1) for name in ROWS]
    figures["examples"] = packed((torch.cat(rows) * 255).round().byte().numpy())
    return figures


def fitted(
    loss: Callable[[Tensor, Tensor], Tensor], pictures: Tensor, rate: float, steps: int, seed: int, what: str
) -> nn.Module:
    """An autoencoder trained by Adam on half a cosine; every run of one seed sees the same pictures in one order."""
    model = seeded(ConvolutionalAutoencoder, seed).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    chance = torch.Generator().manual_seed(seed)
    with bar(what, steps) as advance:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, rate, 50, 0.0)
            batch = pictures[torch.randint(len(pictures), (BATCH,), generator=chance)]
            loss(model(batch), batch).backward()
            optimiser.step()
            optimiser.zero_grad()
            advance(1)
    return model.eval()


@torch.no_grad()
def outputs(model: nn.Module, pictures: Tensor) -> Tensor:
    """(N, 1, 32, 32), in parts."""
    return torch.cat([model(part) for part in pictures.split(256)])


def contrast(pictures: Tensor) -> Tensor:
    """Standard deviation in every window of 7 x 7 pixels: (N, 1, H, W) -> (N, 1, H-6, W-6)."""
    mean, square = F.avg_pool2d(pictures, 7, 1), F.avg_pool2d(pictures.square(), 7, 1)
    return (square - mean.square()).clamp_min(0).sqrt()


def met(f: Figures) -> bool:
    """The order holds, and all three figures of learning lie where the claim has them."""
    at_equal_error = f["ms_ssim_at_equal_error"]
    scores = [at_equal_error[name] for name in ("shift", "contrast", "noise", "blur", "jpeg")]
    return bool(
        scores == sorted(scores, reverse=True)
        and f["ssim_ms_ssim"] >= f["ssim_l2"] + 0.02
        and f["psnr_db_ms_ssim"] >= f["psnr_db_l2"] - 1.5
        and 0.85 <= f["local_contrast_ms_ssim"] <= 1.05
        and f["local_contrast_l2"] < 0.75
    )


def plot(figures: Figures, path: Path) -> None:
    """Originals and both reconstructions; the scores of equal errors."""
    import matplotlib.pyplot as plt

    picture, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", width_ratios=(2, 1))
    left.imshow(unpacked(figures["examples"]), cmap="gray", vmin=0, vmax=255)
    left.set_yticks([SIDE / 2 + SIDE * i for i in range(3)], ["original", "1 - MS-SSIM", "L2"])
    left.set_xticks([])
    scores = figures["ms_ssim_at_equal_error"]
    right.barh(list(scores)[::-1], list(scores.values())[::-1])
    right.set_xlim(min(scores.values()) - 0.05, 1)
    right.set_xlabel("MS-SSIM at equal squared error")
    picture.savefig(path, dpi=120)
    plt.close(picture)
