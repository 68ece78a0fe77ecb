"""Where files are kept that can be made or fetched again: exported graphs, published weights."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder() -> Path:
    """``$SACCADE_CACHE``, else ``saccade`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may not exist yet."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SACCADE_CACHE") or Path(home) / "saccade")
