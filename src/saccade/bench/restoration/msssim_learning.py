"""MS-SSIM at 1080p, forward and backward, beside torchmetrics and pytorch-msssim; the numbers are compared too."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from saccade.bench import peers
from saccade.bench.harness import Contender, Row, compare, measure, skipped

__all__ = ["rows"]

COMMAND = "saccade bench restoration"
SIZE = (1080, 1920)


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Speed of the score and of its gradient by the second picture, 1 x 3 x 1080 x 1920, float32.

    Args:
        threads: torch's, for all contenders.
        rounds: timed calls of each.

    Returns:
        Ours beside each peer, and notes: how far the scores and gradients are apart.
    """
    from saccade.quality import ms_ssim

    calls: dict[str, Callable[[Any, Any], Any]] = {
        "MS-SSIM by saccade": lambda x, y: ms_ssim(y, x).mean(),
        "MS-SSIM by saccade, protocol vainf": lambda x, y: ms_ssim(y, x, protocol="vainf").mean(),
    }
    notes: list[str] = []
    for name, make in (("pytorch-msssim", _pytorch_msssim), ("torchmetrics", _torchmetrics)):
        try:
            calls[name] = make()
        except ImportError as error:
            notes.append(skipped(name, error))
    x, y = _pictures()
    notes += _differences(calls, x, y)
    found: list[Row] = []
    for what, backward in (("MS-SSIM forward", False), ("MS-SSIM forward and backward", True)):
        contenders = [
            Contender(
                name,
                functools.partial(_once, call, x, y, backward),
                threads,
                functools.partial(peers.torch_threads, threads),
            )
            for name, call in calls.items()
        ]
        timings = measure(contenders, rounds)
        facts = {"system": "msssim_learning", "what": what, "size": f"{SIZE[1]}x{SIZE[0]}", "command": COMMAND}
        others = [name for name in calls if "saccade" not in name]
        found += compare(timings, next(iter(calls)), others, **facts)
    return found, notes


def _pytorch_msssim() -> Callable[[Any, Any], Any]:
    from pytorch_msssim import ms_ssim  # type: ignore[import-untyped,unused-ignore]

    return lambda x, y: ms_ssim(y, x, data_range=1.0)


def _torchmetrics() -> Callable[[Any, Any], Any]:
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return lambda x, y: multiscale_structural_similarity_index_measure(y, x, data_range=1.0)


def _pictures() -> tuple[Any, Any]:
    """The benchmarks' scene, and the same with noise: (1, 3, 1080, 1920) each."""
    import torch

    from saccade.runtime.scene import scene

    x = torch.from_numpy(scene(*SIZE)).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(), (x + 0.05 * noise).clamp(0, 1).contiguous()


def _once(call: Callable[[Any, Any], Any], x: Any, y: Any, backward: bool) -> Any:
    """The score, or the gradient of it by the second picture."""
    import torch

    if not backward:
        with torch.inference_mode():
            return call(x, y)
    with torch.inference_mode(False), torch.enable_grad():  # contenders run inside the first of the two
        y = y.detach().requires_grad_()
        call(x, y).backward()
    return y.grad


def _differences(calls: dict[str, Callable[[Any, Any], Any]], x: Any, y: Any) -> list[str]:
    """How far each peer's score is from the protocol of its name, and its gradient, of the largest."""
    from saccade.quality import ms_ssim

    notes = []
    for name, protocol in (("pytorch-msssim", "vainf"), ("torchmetrics", "torchmetrics")):
        if name not in calls:
            continue
        ours = functools.partial(_ours, ms_ssim, protocol)
        score = abs(float(_once(calls[name], x, y, False)) - float(_once(ours, x, y, False)))
        theirs = _once(calls[name], x, y, True)
        gradient = float((theirs - _once(ours, x, y, True)).abs().max() / theirs.abs().max())
        notes.append(
            f"MS-SSIM by saccade, protocol {protocol}, and {name}: scores differ by {score:.1e}, gradients by "
            f"{gradient:.1e} of the largest."
        )
    return notes


def _ours(measure: Callable[..., Any], protocol: str, x: Any, y: Any) -> Any:
    return measure(y, x, protocol=protocol).mean()
