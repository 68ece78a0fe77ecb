"""ULSAM against the official module: output, gradient, attention, and a step of training; both forms of ours."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from saccade.backbones.ulsam import LoopedSubspaceAttention, SubspaceAttention, grouped_state
from saccade.checkpoint import fit
from saccade.nn.fuse import fuse

from . import under

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}  # of the output; the file's own


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    for i, told in enumerate(json.loads(metadata["config"])):
        prefix = f"case{i}." if i else ""
        case = {
            k.removeprefix(prefix): v for k, v in vectors.items() if k.startswith(prefix) and (i or "case" not in k)
        }
        state = under(case, "state.")
        after = under(case, "output.after_train.")
        width, groups = told["nin"], told["num_splits"]
        looped, grouped = LoopedSubspaceAttention(width, groups), SubspaceAttention(width, groups)
        fit(looped, state, "golden")
        fit(grouped, grouped_state(state), "golden")
        _form(looped.eval(), case, after)
        _form(grouped.eval(), case, grouped_state(after))


def _form(model: nn.Module, case: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    x = case["input.x"].clone().requires_grad_()
    y = model(x)
    torch.testing.assert_close(y, case["output.y"], **TOLERANCE)
    (gradient,) = torch.autograd.grad((y * case["input.cotangent"]).sum(), x)
    torch.testing.assert_close(gradient, case["output.grad_x"], rtol=1e-5, atol=2e-6)
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(x), case["output.y"], **TOLERANCE)
        first = slice(None, None, x.shape[1] // case["mid.attention"].shape[1])
        attention = ((y - x) / x)[:, first]
        safe = x[:, first].abs() > 0.1
        torch.testing.assert_close(attention[safe], case["mid.attention"][safe], rtol=0, atol=1e-3)
        torch.testing.assert_close(model.train()(x), case["output.y_train"], rtol=1e-5, atol=2e-6)
    found = model.state_dict()
    assert after
    for name, want in after.items():
        torch.testing.assert_close(found[name], want, rtol=1e-5, atol=2e-6)
