"""``saccade evaluate``: the quality of super-resolution weights by the field's protocol."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from saccade.errors import UsageError


def measure(model: Any, folder: Path) -> dict[str, float]:
    """Mean PSNR and SSIM on luma over a folder of pictures, and those of bicubic enlargement.

    Raises:
        InputError: no or unreadable pictures.
    """
    from saccade.quality import benchmark_super_resolution, luma_enlarger

    enlarge = luma_enlarger(model) if getattr(model, "colour", "rgb") == "luma" else model
    return dict(benchmark_super_resolution(enlarge, folder, int(model.scale)))


def evaluate(
    model: Annotated[str, typer.Argument(help="A name (shipped weights) or a file of weights.")],
    data: Annotated[list[Path], typer.Option(help="Folder of test pictures; may be given several times.")],
    scale: Annotated[int | None, typer.Option(help="Enlargement.  [default: the model's first, or the file's]")] = None,
    budget: Annotated[float | None, typer.Option(help="Set the model's dial, in (0, 1].")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure enlargement: pictures are reduced (MATLAB bicubic, 8 bit), enlarged, compared on luma."""
    from saccade import registry
    from saccade.checkpoint import load

    if Path(model).suffix or Path(model).exists():
        network: Any = load(model)
        if scale is not None and scale != network.scale:
            raise UsageError(f"{model} enlarges by {network.scale}, not by {scale}")
    else:
        options: dict[str, Any] = {} if scale is None else {"scale": scale}
        network = registry.create(model, **options)
    if registry.entry(network.saccade_name).task != "super-resolution":
        raise UsageError(f"{model} is not a super-resolution network")
    if budget is not None:
        if not hasattr(type(network), "budget"):
            raise UsageError(f"{model} has no dial")
        network.budget = budget
    rows = {str(folder): measure(network, folder) for folder in data}
    if json:
        typer.echo(json_module.dumps({"model": model, "scale": int(network.scale), "sets": rows}, indent=1))
        return
    for folder, figures in rows.items():
        told = "  ".join(
            f"{name} {value:.4f}" if "ssim" in name else f"{name} {value:.2f}" for name, value in figures.items()
        )
        typer.echo(f"{Path(folder).name:<12} x{network.scale}  {told}")
