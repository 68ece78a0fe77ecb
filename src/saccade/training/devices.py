"""The devices of a training run: what torchrun or the user says, launched by Lightning Fabric."""

from __future__ import annotations

import os
from typing import Any, Protocol

from saccade.errors import UnavailableError, UsageError, first_line

__all__ = ["Asked", "launched", "places"]


class Asked(Protocol):
    """What a user says of devices; the options of every run do."""

    @property
    def accelerator(self) -> str:
        """``auto``, ``cpu``, ``cuda``, ..."""
        ...

    @property
    def devices(self) -> str:
        """How many of a machine, or ``auto``."""
        ...

    @property
    def nodes(self) -> int:
        """Machines."""
        ...

    @property
    def precision(self) -> str:
        """Fabric's, e.g. ``32-true``."""
        ...


def places(options: Asked) -> tuple[int | str, int]:
    """Devices of a machine, and machines: torchrun's counts where it started this process and no others are asked for.

    Left to itself, Fabric takes a process of torchrun's on a processor for a run of its own.
    """
    told = [os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE")]
    if options.devices == "auto" and all(n.isdigit() and int(n) for n in told):
        local, every = map(int, told)
        return local, max(1, every // local)
    return int(options.devices) if options.devices.isdigit() else options.devices, options.nodes


def launched(options: Asked) -> Any:
    """A Fabric on the run's devices, its processes started.

    Raises:
        UsageError: devices or a precision that this machine lacks.
        UnavailableError: the ``train`` extra is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise UnavailableError.extra("training", "train") from error
    devices, nodes = places(options)
    precision: Any = options.precision
    try:
        fabric = Fabric(accelerator=options.accelerator, devices=devices, num_nodes=nodes, precision=precision)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"no training on these devices: {first_line(error)}") from error
    fabric.launch()
    return fabric
