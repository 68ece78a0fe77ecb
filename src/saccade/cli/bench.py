"""``saccade bench``: speed beside the alternatives, as ratios from one run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.errors import InputError, UsageError

if TYPE_CHECKING:
    from saccade.bench.harness import Advance, Result

BUSY = 0.5  # threads of other processes from which on the times are to be taken with care

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure speed beside the alternatives, as ratios from one run.",
)

Size = Annotated[str, typer.Option(help="Width x height of the input.")]
Scale = Annotated[int, typer.Option(help="Enlargement.")]
Threads = Annotated[int, typer.Option(help="Processor threads of every contender; 0 for all cores.")]
Repeats = Annotated[int, typer.Option(help="Timed rounds; medians are shown.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Out = Annotated[Path | None, typer.Option(help="Write the result there as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]


@app.command()
def upscale(
    size: Size = "1920x1080",
    scale: Scale = 2,
    model: Annotated[str, typer.Option(help="A super-resolution model with a fixed graph.")] = "sesr_m5",
    threads: Threads = 0,
    repeats: Repeats = 7,
    compiled: Annotated[bool, typer.Option("--compile", help="Also torch.compile (15 s more).")] = False,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The main job in memory, beside other engines, resizers and networks."""
    sides = parse_sides(size)
    _check(threads, out, overwrite)
    from saccade.bench.upscale import run

    with _bars() as bars:
        result = run(sides, scale=scale, model=model, threads=threads, rounds=repeats, compiled=compiled, advance=bars)
    _report(result, json, out, overwrite)


@app.command()
def process(
    source: Annotated[Path | None, typer.Option(help="A picture; default: a JPEG made for it.")] = None,
    size: Size = "1920x1080",
    scale: Scale = 2,
    model: Annotated[str, typer.Option(help="A super-resolution model.")] = "sesr_m5",
    threads: Threads = 0,
    repeats: Repeats = 7,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """From the shell to a written JPEG, start-up included."""
    sides = parse_sides(size)
    _check(threads, out, overwrite)
    if source is not None and not source.is_file():
        raise InputError(f"cannot read {source}: no such file")
    from saccade.bench.process import run

    with _bars() as bars:
        result = run(source, sides, scale=scale, model=model, threads=threads, rounds=repeats, advance=bars)
    _report(result, json, out, overwrite)


@app.command()
def espcn(
    size: Size = "960x540",
    scale: Scale = 3,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Sub-pixel convolution beside the same layers on the enlarged picture."""
    sides = parse_sides(size)
    _check(threads, out, overwrite)
    from saccade.bench.espcn import run

    with _bars() as bars:
        result = run(sides, scale=scale, threads=threads, rounds=repeats, advance=bars)
    _report(result, json, out, overwrite)


@app.command()
def pcsr(
    size: Size = "960x540",
    scale: Scale = 2,
    model: Annotated[str, typer.Option(help="A PCSR model.")] = "pcsr_fsrcnn",
    budget: Annotated[float, typer.Option(help="Fraction of the full cost, in (0, 1].")] = 0.5,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Pixels routed to a heavy or a light sampler, beside every pixel heavy."""
    sides = parse_sides(size)
    _check(threads, out, overwrite)
    from saccade.bench.pcsr import run
    from saccade.budget import check_budget

    with _bars() as bars:
        result = run(
            sides,
            scale=scale,
            model=model,
            budget=check_budget(budget),
            threads=threads,
            rounds=repeats,
            advance=bars,
        )
    _report(result, json, out, overwrite)


@app.command(name="fast_scaling")
def fast_scaling(
    base: Annotated[str, typer.Option(help="The network that is grown.")] = "regnety_400mf",
    macs: Annotated[float, typer.Option(help="What it is grown to.")] = 1.6e9,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 8,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """A backbone grown so that it stays fast, beside other ways to grow it."""
    _check(threads, out, overwrite)
    if batch < 1:
        raise UsageError(f"--batch is at least 1, got {batch}")
    from saccade.bench.fast_scaling import run

    with _bars() as bars:
        result = run(base, macs=macs, batch=batch, threads=threads, rounds=repeats, advance=bars)
    _report(result, json, out, overwrite)


@app.command()
def restoration(
    system: Annotated[list[str] | None, typer.Option(help="A slug; may be repeated.  [default: all]")] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="Width x height; may be repeated.  [default: 512x512, 1920x1080]")
    ] = None,
    threads: Threads = 0,
    repeats: Repeats = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory too.")] = True,
    extras: Annotated[bool, typer.Option(help="Run the systems' own further rows too.")] = True,
    json: AsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Restoration networks beside their official algorithms run plainly: time and memory."""
    sides = [parse_sides(text) for text in size or ()]
    _check(threads, out, overwrite)
    from saccade.bench.restoration import SIZES, run

    with _bars() as bars:
        result = run(
            system or (),
            sides or SIZES,
            threads=threads,
            rounds=repeats,
            memory=memory,
            extras=extras,
            advance=bars,
        )
    _report(result, json, out, overwrite)


def parse_sides(text: str) -> tuple[int, int]:
    """``"1920x1080"`` -> (1920, 1080).

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"([1-9]\d*)[xX×]([1-9]\d*)", text)
    if not found:
        raise UsageError(f"--size takes WIDTHxHEIGHT, e.g. 1920x1080, not {text!r}")
    return int(found[1]), int(found[2])


def _check(threads: int, out: Path | None, overwrite: bool) -> None:
    """Refuse before minutes are spent what would be refused after them."""
    if threads < 0:
        raise UsageError(f"--threads must not be negative, got {threads}")
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; choose another name, or give --overwrite")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"cannot write {out}: there is no folder {out.parent}")


@contextmanager
def _bars() -> Iterator[Callable[[str, float], Advance]]:
    """Makes a progress bar at a time: a new one ends the last."""
    from saccade.progress import bar

    with ExitStack() as stack:

        def make(what: str, total: float) -> Advance:
            stack.close()
            return stack.enter_context(bar(what, total))

        yield make


def _report(result: Result, as_json: bool, out: Path | None, overwrite: bool) -> None:
    from saccade.bench.harness import save

    if out is not None:
        save(result, out, overwrite=overwrite)
    if as_json:
        import json

        typer.echo(json.dumps(result.to_dict(), indent=1))
    elif sys.stdout.isatty():
        _print_table(result)
    else:
        for row in result.rows:
            cells = (
                row.what,
                row.size,
                row.ours,
                f"{row.ours_ms:.1f}",
                row.peer,
                f"{row.peer_ms:.1f}",
                f"{row.ratio:.2f}",
            )
            typer.echo("\t".join(cells))
        for line in _footer(result):
            typer.echo(f"# {line}")


def _footer(result: Result) -> list[str]:
    found = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    busy = f"; the machine was busy: {result.others:.1f} threads of others" if result.others > BUSY else ""
    return [*result.notes, f"medians of {result.rounds} rounds in turns{busy}", result.machine, found]


def _print_table(result: Result) -> None:
    from rich.console import Console
    from rich.table import Table

    grid: Any = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("job", "size", "ours", "ms", "peer", "threads", "ms", "peer / ours"):
        grid.add_column(title, justify="right" if title in ("ms", "threads", "peer / ours") else "left")
    for row in result.rows:
        times = (f"{row.ours_ms:,.1f}", f"{row.peer_ms:,.1f}")
        grid.add_row(
            row.what, row.size, row.ours, times[0], row.peer, str(row.peer_threads), times[1], f"{row.ratio:.2f}"
        )
    console = Console()
    console.print(grid)
    for line in _footer(result):
        console.print(line, style="dim")
