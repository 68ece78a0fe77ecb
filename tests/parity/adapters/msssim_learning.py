"""SSIM and MS-SSIM against pytorch-msssim: a score per picture, and the gradient of their mean by the second one."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.quality.structure import MSSSIMLoss, ms_ssim, ssim

SCORE, GRADIENT = 1e-5, 1e-3  # absolute; of the gradient's largest


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    for case, told in json.loads(metadata["config"]).items():
        kind, options = told["kind"], {k: v for k, v in told.items() if k not in ("kind", "K")}
        if "K" in told:
            options["k"] = tuple(told["K"])
        x, y = (vectors[f"input.{case}.{name}"] for name in ("x", "y"))
        y.requires_grad_()
        score = (ssim if kind == "ssim" else ms_ssim)(y, x, protocol="vainf", **options)  # (B,)
        torch.testing.assert_close(score, vectors[f"output.{case}.score_per_image"], atol=SCORE, rtol=0)
        (gradient,) = torch.autograd.grad(score.mean(), y)
        close(gradient, vectors[f"output.{case}.grad_of_mean_wrt_y"])
        if kind == "msssim":
            loss = MSSSIMLoss.preset("vainf", **options)(y, x)
            torch.testing.assert_close(loss, 1 - score.mean(), atol=SCORE, rtol=0)
            close(-torch.autograd.grad(loss, y)[0], vectors[f"output.{case}.grad_of_mean_wrt_y"])


def close(gradient: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(gradient, wanted, atol=GRADIENT * float(wanted.abs().max()), rtol=0)
