"""Which device runs: asked for by name, or found."""

from __future__ import annotations

from pathlib import Path

from saccade.errors import UnavailableError, UsageError

__all__ = ["chosen_device"]


def chosen_device(asked: str, backend: str) -> str:
    """A torch device name for ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ... as ``backend`` can use it.

    Raises:
        UsageError: no such device, or one that the backend cannot use.
        UnavailableError: it is not there.
    """
    if asked == "auto":
        if backend in ("openvino", "onnxruntime") or not Path("/dev/nvidia0").exists():
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cpu":
        return asked
    if backend in ("openvino", "onnxruntime"):
        raise UsageError(f"the {backend} backend runs on the CPU, not on {asked}")
    import torch

    try:
        device = torch.device(asked)
    except (RuntimeError, TypeError):
        raise UsageError(f"no device named {asked!r}; try auto, cpu or cuda") from None
    try:
        torch.zeros(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError):
        raise UnavailableError(f"no usable device {asked} here; try --device cpu") from None
    return str(device)
