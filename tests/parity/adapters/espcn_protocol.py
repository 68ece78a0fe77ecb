"""The measuring protocol of super-resolution: MATLAB's bicubic, BT.601 luma, PSNR and SSIM."""

from __future__ import annotations

import json
import re

import torch
from torch import Tensor

from saccade.ops.resize import resize, resize_array
from saccade.quality import luma, psnr, ssim


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    on_images, on_psnr, on_ssim = (float(t) for t in re.findall(r"\d+e-\d+", metadata["tolerance"]))
    wanted = {name.removeprefix("output."): value for name, value in vectors.items() if name.startswith("output.")}
    for i, (height, width) in enumerate(config["sizes"]):
        picture, noisy = vectors[f"input.img{i}"], vectors[f"input.img{i}_noisy"]
        assert picture.shape == (3, height, width)
        got = {f"img{i}_resize_{scale}": resize(picture, scale) for scale in config["scales"]}
        got[f"img{i}_nearest_aa_off_0.5"] = resize(picture, 0.5, antialias=False)
        got[f"img{i}_luma"] = luma(picture)
        for name, value in got.items():
            torch.testing.assert_close(value, wanted.pop(name), atol=on_images, rtol=0)
        for scale in config["scales"]:
            channels_last = resize_array(picture.permute(1, 2, 0).numpy(), scale)
            expected = vectors[f"output.img{i}_resize_{scale}"].permute(1, 2, 0)
            torch.testing.assert_close(torch.from_numpy(channels_last), expected, atol=on_images, rtol=0)
        for name in [name for name in wanted if name.startswith(f"img{i}_")]:
            metric, border, on_luma = re.fullmatch(rf"img{i}_(psnr|ssim)_border(\d+)_y([01])", name).groups()  # type: ignore[union-attr]
            measure, tolerance = (psnr, on_psnr) if metric == "psnr" else (ssim, on_ssim)
            value = measure(picture[None], noisy[None], border=int(border), luma=on_luma == "1")
            torch.testing.assert_close(value, wanted.pop(name), atol=tolerance, rtol=0)
    assert not wanted, f"outputs that nothing was compared with: {sorted(wanted)}"
