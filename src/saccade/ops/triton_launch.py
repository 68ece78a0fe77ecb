"""What operators with Triton kernels share: when they run by them, and the sizes and sums of a program."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from saccade.errors import UnavailableError

__all__ = ["autocast", "blocks", "require_triton", "runs_on_triton", "sums"]


def runs_on_triton(*tensors: Tensor | None) -> bool:
    """Whether kernels take these of their own accord: on a GPU, outside graphs, where Triton is installed."""
    if torch.compiler.is_compiling() or not all(t is None or t.is_cuda for t in tensors):
        return False
    return not torch.onnx.is_in_onnx_export() and importlib.util.find_spec("triton") is not None


def require_triton() -> None:
    """Refuse where Triton is asked for and not installed.

    Raises:
        UnavailableError: it is not.
    """
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError("Triton is not installed: pip install triton")


def autocast(x: Tensor) -> Tensor:
    """In the type that autocast has convolutions and products computed in, where it is on; doubles stay."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(kind))


def blocks(count: int, most: int) -> int:
    """Elements of one axis that a program takes: a power of two that covers ``count``, but not above ``most``."""
    return max(1, min(1 << (count - 1).bit_length(), most))


def sums(x: Tensor) -> Any:
    """The type in which kernels add up: float32, or x's own where that is wider."""
    import triton.language as tl

    return tl.float64 if x.dtype == torch.float64 else tl.float32
