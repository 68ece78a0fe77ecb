"""Serpent against the official VMamba code: the selective scan with its gradients, and SS2D."""

from __future__ import annotations

import json
from importlib.util import find_spec

import torch
from torch import Tensor

from saccade.checkpoint import fit
from saccade.ops.selective_scan import selective_scan
from saccade.restoration.serpent import SS2D

from . import under

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])

    def close(found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, vectors[name], atol=tolerance, rtol=0, msg=lambda m: f"{name}: {m}")

    given = {name: vectors[f"input.scan_{name}"] for name in NAMES}
    shape = config["scan"]
    assert given["B"].shape[1:] == (shape["K"], shape["N"], shape["L"])
    assert given["A"].shape == (shape["K"] * shape["C"], shape["N"])
    paths = ("naive", "chunked", *(("numba",) if find_spec("numba") else ()))
    for path in paths:
        leaves = {name: value.clone().requires_grad_() for name, value in given.items()}
        y = selective_scan(**leaves, softplus=True, path=path)
        close(y.detach(), "output.scan_softplus")
        grads = torch.autograd.grad((y * vectors["input.scan_grad_out"]).sum(), list(leaves.values()))
        for name, grad in zip(leaves, grads, strict=True):
            close(grad, f"output.scan_grad_{name}")
        plain = [given["u"], given["delta"].abs(), given["A"], given["B"], given["C"]]
        close(selective_scan(*plain, path=path), "output.scan_plain")

    block = SS2D(config["d_model"], config["d_state"], config["ssm_ratio"])
    fit(block, under(vectors, "state.ss2d."), "golden")
    with torch.no_grad():
        close(block(vectors["input.ss2d_x"]), "output.ss2d_y")
    close(block(vectors["input.ss2d_x"]).detach(), "output.ss2d_y")
