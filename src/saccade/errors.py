"""The errors that saccade raises on purpose. Everything a user can cause ends in one of these.

Each message says what was wrong, with which thing, and what to do. The command line prints it as one line on stderr
and exits with `exit_code`; a traceback appears only with ``--debug``.
"""

from __future__ import annotations

__all__ = [
    "BitstreamError",
    "CheckpointError",
    "InputError",
    "SaccadeError",
    "UnavailableError",
    "UsageError",
    "first_line",
    "naming",
]


def first_line(error: BaseException) -> str:
    """What another library's error says, short enough to stand inside one of ours."""
    lines = str(error).split("\n")
    return lines[0].strip()[:160] or type(error).__name__


def naming(error: SaccadeError, file: object) -> str:
    """What an error says, with the file's name in it, for those who work through several."""
    text = str(error)
    return text if str(file) in text else f"{file}: {text}"


class SaccadeError(Exception):
    """Base of all errors of this library; the command line turns it into one line and an exit code."""

    exit_code = 1


class UsageError(SaccadeError, ValueError):
    """A wrong name, option or value: the call itself is to be corrected."""

    exit_code = 2


class InputError(SaccadeError, ValueError):
    """A picture, clip, tensor or folder that cannot be used as it is."""


class CheckpointError(SaccadeError):
    """A file of weights that is unsafe, damaged, of another architecture, or only half matching."""


class BitstreamError(SaccadeError):
    """A compressed file that is damaged, truncated or of another format."""


class UnavailableError(SaccadeError, ImportError):
    """A missing optional dependency; the message holds the exact line that installs it."""

    @classmethod
    def extra(cls, what: str, extra: str) -> UnavailableError:
        """The error for a missing extra: ``what`` needs ``pip install 'saccade[extra]'``."""
        return cls(f"{what} needs an extra that is not installed: pip install 'saccade[{extra}]'")
