"""The command line: one verb a file, each imported only when it runs.

`main` is what the installed ``saccade`` calls. Errors that users can cause become one line on stderr and an exit code:
2 for misuse, 1 for failure; ``--debug`` before the verb shows the traceback too.
"""

from __future__ import annotations

import difflib
import importlib
import io
import sys
from typing import Any

import typer
from typer.core import TyperGroup

import saccade
from saccade.errors import SaccadeError, UsageError, first_line

__all__ = ["main", "tell", "verbs"]

#: verb: (module, what its line in ``saccade --help`` says)
VERBS = {
    "upscale": "Enlarge pictures and clips, fast and in bounded memory.",
    "restore": "Repair pictures and clips: noise, JPEG blocks, weather, known blur.",
    "score": "Score pictures by how good they look, without a reference; sort them.",
    "app": "The page: all of this in a browser on this machine.",
    "merge": "Interpolate two files of weights of one network.",
    "shrink": "Shrink pictures so that they can be enlarged back almost without loss.",
    "enlarge": "Enlarge what shrink made, at its first size again.",
    "develop": "Develop RAW files of cameras into pictures.",
    "unprocess": "Make RAW files of pictures.",
    "foveate": "Show pictures as an eye might see them that rests on one point.",
    "train": "Train a network on your own pictures.",
    "reproduce": "Re-run a system's published claim on small real data.",
    "bench": "Measure speed beside the alternatives, as ratios from one run.",
    "evaluate": "Quality of super-resolution weights by the protocol of the field.",
    "cost": "Parameters, MACs, activations, memory and latency of a model.",
    "scale": "Scale a backbone to a target cost so that it stays fast.",
    "search": "Find the best sub-network of a supernet below a limit of time or MACs.",
    "list": "List the models that can be created.",
    "weights": "List, fetch and clear published weights.",
    "systems": "Show the 81 systems and what stands of each.",
    "export": "Write a model as ONNX.",
    "demo": "Enlarge the bundled photograph and say what it cost.",
}


#: what torch says, with a RuntimeError, where no memory is left
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Storage size calculation overflowed")

# typer carries its own copy of click or uses the installed one, by version: take the classes from where it has them
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


class _Verbs(TyperGroup):
    """A group whose commands are modules, imported when they are called; the help page needs none of them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            near = difflib.get_close_matches(cmd_name, VERBS, n=1)
            hint = f"did you mean {near[0]}?" if near else "saccade --help lists them"
            raise UsageError(f"no verb named {cmd_name!r}; {hint}")
        name = "list_models" if cmd_name == "list" else cmd_name
        module = importlib.import_module(f"saccade.cli.{name}")
        made: Any = getattr(module, "app", None)
        if not isinstance(made, typer.Typer):
            made = typer.Typer(add_completion=False, rich_markup_mode=None)
            made.command(name=cmd_name)(getattr(module, name))
        command = typer.main.get_command(made)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


verbs = typer.Typer(cls=_Verbs, add_completion=False, no_args_is_help=True, rich_markup_mode=None)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"saccade {saccade.__version__}")
        raise typer.Exit


@verbs.callback()
def root(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Resource-efficient visual computing: spend compute, bits and memory where they matter."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not fit the terminal's encoding
    debug = "--debug" in arguments
    command = typer.main.get_command(verbs)
    try:
        code = command.main(args=arguments, prog_name="saccade", standalone_mode=False)
    except SaccadeError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.Abort:
        _fail("interrupted", 130)
    except _ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see '{context.command_path} --help')" if context else ""
        _fail(error.format_message().replace("\n", " ") + hint, error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
            _fail(f"there is not the memory for that ({first_line(error)}); ask for less at a time", 1)
        _fail(f"unexpected {type(error).__name__}: {error} (saccade --debug ... shows where; please report it)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def tell(message: str) -> None:
    """Say something on stderr, as one line whatever the names in it hold."""
    print(f"saccade: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


def _fail(message: str, code: int) -> None:
    tell(message)
    sys.exit(code)
