"""``saccade bench``: speed beside the alternatives, as ratios from one run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.budget import check_budget
from saccade.cli.options import Enlargement, ResultAsJson
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
Threads = Annotated[int, typer.Option(help="Processor threads of every contender; 0 for all cores.")]
Repeats = Annotated[int, typer.Option(help="Timed rounds; medians are shown.")]
Out = Annotated[Path | None, typer.Option(help="Write the result there as JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]


@app.command()
def upscale(
    size: Size = "1920x1080",
    scale: Enlargement = 2,
    model: Annotated[str, typer.Option(help="A super-resolution model with a fixed graph.")] = "sesr_m5",
    threads: Threads = 0,
    repeats: Repeats = 7,
    compiled: Annotated[bool, typer.Option("--compile", help="Also torch.compile (15 s more).")] = False,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The main job in memory, beside other engines, resizers and networks."""
    _measure("upscale", **locals())


@app.command()
def process(
    source: Annotated[Path | None, typer.Option(help="A picture; default: a JPEG made for it.")] = None,
    size: Size = "1920x1080",
    scale: Enlargement = 2,
    model: Annotated[str, typer.Option(help="A super-resolution model.")] = "sesr_m5",
    threads: Threads = 0,
    repeats: Repeats = 7,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """From the shell to a written JPEG, start-up included."""
    if source is not None and not source.is_file():
        raise InputError(f"cannot read {source}: no such file")
    _measure("process", **locals())


@app.command()
def espcn(
    size: Size = "960x540",
    scale: Enlargement = 3,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Sub-pixel convolution beside the same layers on the enlarged picture."""
    _measure("espcn", **locals())


@app.command()
def pcsr(
    size: Size = "960x540",
    scale: Enlargement = 2,
    model: Annotated[str, typer.Option(help="A PCSR model.")] = "pcsr_fsrcnn",
    budget: Annotated[float, typer.Option(help="Fraction of the full cost, in (0, 1].")] = 0.5,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Pixels routed to a heavy or a light sampler, beside every pixel heavy."""
    check_budget(budget)
    _measure("pcsr", **locals())


@app.command(name="fast_scaling")
def fast_scaling(
    base: Annotated[str, typer.Option(help="The network that is grown.")] = "regnety_400mf",
    macs: Annotated[float, typer.Option(help="What it is grown to.")] = 1.6e9,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 8,
    threads: Threads = 0,
    repeats: Repeats = 5,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """A backbone grown so that it stays fast, beside other ways to grow it."""
    if batch < 1:
        raise UsageError(f"--batch is at least 1, got {batch}")
    _measure("fast_scaling", **locals())


Systems = Annotated[list[str] | None, typer.Option("--system", help="A slug; may be repeated.  [default: all]")]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--size", help="Width x height; may be repeated.  [default: the suite's two]"),
]
Memory = Annotated[bool, typer.Option(help="Measure peak memory too.")]
Extras = Annotated[bool, typer.Option(help="Run the systems' own further rows too.")]


def contests(
    context: typer.Context,
    system: Systems = None,
    size: Sizes = None,
    threads: Threads = 0,
    repeats: Repeats = 5,
    memory: Memory = True,
    extras: Extras = True,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """The suite that the command is named after, in which every system brings contests."""
    _measure(
        str(context.info_name),
        chosen=system or (),
        sizes=[parse_sides(text) for text in size or ()],
        threads=threads,
        repeats=repeats,
        memory=memory,
        extras=extras,
        json=json,
        out=out,
        overwrite=overwrite,
    )


for suite, what in (("restoration", "Restoration networks"), ("backbones", "Backbones")):
    app.command(suite, help=f"{what} beside their official algorithms run plainly: time and memory.")(contests)


@app.command()
def sweep(
    model: Annotated[list[str] | None, typer.Option(help="May be repeated.  [default: one a system]")] = None,
    side: Annotated[
        list[int] | None, typer.Option(help="Pixels; may be repeated.  [default: seven from 224 to 1792]")
    ] = None,
    threads: Threads = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the curves into this PNG.")] = None,
    json: ResultAsJson = False,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Time and memory of backbones from small pictures to large ones, with the exponent of their growth."""
    import json as json_module

    from saccade.bench.sweep import SIDES, plot, run
    from saccade.checkpoint import write_bytes

    _check(threads, out, overwrite)
    with _bars() as bars:
        found = run(model or (), side or SIDES, threads=threads, advance=bars)
    told = json_module.dumps(found.to_dict(), indent=1)
    if out is not None:
        write_bytes(out, told.encode() + b"\n")
    if picture is not None:
        plot(found, picture)
    if json:
        typer.echo(told)
        return
    for c in found.courses:
        points = (
            f"{s} px {t * 1e3:.1f} ms {b / 2**20:.0f} MiB" for s, t, b in zip(c.sides, c.seconds, c.bytes, strict=True)
        )
        grows = ", ".join(f"{e:.2f}" for e in (c.time_exponent, c.memory_exponent) if e is not None)
        typer.echo("\t".join((c.model, *points, f"exponents {grows}", c.note)))
    typer.echo(f"# {found.machine}; {found.others:.1f} threads of others", err=True)


def _measure(
    suite: str,
    *,
    threads: int,
    repeats: int,
    json: bool,
    out: Path | None,
    overwrite: bool,
    size: str | None = None,
    **options: Any,
) -> None:
    """Run ``saccade.bench.<suite>`` and report.

    ``size`` is as `parse_sides` reads it, where the suite takes one; ``options`` are the suite's own, by name.
    """
    if size is not None:
        options["size"] = parse_sides(size)
    _check(threads, out, overwrite)
    run = importlib.import_module(f"saccade.bench.{suite}").run
    with _bars() as bars:
        result = run(threads=threads, rounds=repeats, advance=bars, **options)
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
