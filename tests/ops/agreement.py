"""Kernels beside the truth in double precision, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Run = Callable[..., Tensor]


def agrees(kernel: Run, truth: Run, given: Sequence[Tensor], dtype: torch.dtype, close: float) -> None:
    """Outputs and gradients of ``kernel(*given)`` are those of ``truth`` in float64, to ``close`` of the largest value.

    ``dtype`` is that of the kernel's numbers; the truth starts from the same rounded ones.
    """
    found = []
    for run, wide in ((kernel, dtype), (truth, torch.float64)):
        leaves = [t.to(dtype).to(wide, copy=True).requires_grad_() for t in given]
        out = run(*leaves)
        share = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(dtype).to(wide)
        found.append([out.detach(), *torch.autograd.grad((out * share).sum(), leaves)])
    for one, want in zip(*found, strict=True):
        assert one.dtype == dtype
        scale = max(1.0, float(want.abs().max()))
        torch.testing.assert_close(one.double(), want, rtol=0, atol=close * scale)
