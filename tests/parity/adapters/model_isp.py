"""The canonical operators against the PyTorch port of Brooks et al.; dictionaries have no public reference."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from saccade.ops.demosaic import mosaic
from saccade.restoration.model_isp import operators as isp


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    found = re.search(r"\d*\.?\d+e-\d+", metadata["tolerance"])
    assert found is not None
    tolerance = min(float(found[0]), 1e-6) if vectors["input.x"].dtype == torch.float32 else float(found[0])
    x, (shot, read) = vectors["input.x"], vectors["input.shot_read"]
    gains = isp.channel_gains(*vectors["input.gains_rgb_red_blue"])
    camera = isp.Camera(vectors["input.rgb2cam"], vectors["input.cam2rgb"], gains)
    got = {
        "apply_ccm": isp.apply_ccm(x, camera.rgb_to_camera).clamp(0, 1),
        "apply_gains": isp.apply_gains(x, gains),
        "gamma_compression": isp.gamma_compression(x),
        "gamma_expansion": isp.gamma_expansion(x),
        "inv_smoothstep": isp.inverse_smoothstep(x),
        "mosaic_grbg": mosaic(x, "grbg", compat="official"),
        "mosaic_rggb": mosaic(x, "rggb"),
        "noise_variance": isp.noise_variance(vectors["input.noise_mean"], shot, read),
        "process_linear_rgb": isp.process(
            vectors["output.unprocess_linear_rgb"], camera
        ),  # the chain goes there and back
        "safe_invert_gains": isp.safe_invert_gains(x, gains),
        "smoothstep": isp.smoothstep(x),
        "unprocess_linear_rgb": isp.unprocess(x, camera),
        "unprocess_rggb": isp.unprocess(x, camera, "rggb"),
    }
    wanted = {name.removeprefix("output."): value for name, value in vectors.items() if name.startswith("output.")}
    assert set(got) >= set(wanted), f"outputs that nothing was compared with: {sorted(set(wanted) - set(got))}"
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
