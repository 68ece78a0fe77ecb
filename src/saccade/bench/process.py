"""From the shell to a written file: ``saccade upscale`` as a process of its own, with start-up, reading and writing.

Bytecode caches are on and filled by the warm-up, as they are once a package is installed; the file cache is warm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from saccade import registry
from saccade.bench.harness import Advance, Contender, Result, compare, measure
from saccade.errors import SaccadeError
from saccade.io import save_picture
from saccade.runtime.engines import cores
from saccade.runtime.scene import scene

__all__ = ["run"]

PILLOW = """
import sys
from PIL import Image
image = Image.open(sys.argv[1])
size = [int(sys.argv[3]) * side for side in image.size]
image.resize(size, Image.Resampling.BICUBIC).save(sys.argv[2], quality=92)
"""


def run(
    source: Path | None = None,
    size: tuple[int, int] = (1920, 1080),
    *,
    scale: int = 2,
    model: str = "sesr_m5",
    threads: int = 0,
    rounds: int = 7,
    advance: Callable[[str, float], Advance] | None = None,
) -> Result:
    """Run the suite.

    Args:
        source: a picture; None makes a JPEG of ``size``.
        size: width and height of the picture that is made.
        scale, model, threads, rounds, advance: as in `bench.upscale.run`.

    Raises:
        SaccadeError: a process failed; the message is what it said.
    """
    threads = threads or cores()
    with tempfile.TemporaryDirectory(prefix="saccade-bench-") as name:
        folder = Path(name)
        given = folder / "in.jpg"
        if source is None:
            save_picture(given, scene(size[1], size[0]))
        else:
            given = source
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")
        written = str(folder / "out.jpg")

        def call(*arguments: str) -> None:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SaccadeError(f"{' '.join(command[:4])} ... failed: {done.stderr.strip().splitlines()[-1:]}")

        def saccade(backend: str) -> None:
            options = ["--scale", str(scale), "--model", model, "--threads", str(threads), "--backend", backend]
            call("-m", "saccade.cli", "upscale", str(given), "-o", written, "--overwrite", *options)

        contenders = [
            Contender("saccade upscale", lambda: saccade("auto"), threads),
            Contender("saccade upscale --backend torch", lambda: saccade("torch"), threads),
            Contender("python -c 'import torch' alone", lambda: call("-c", "import torch"), threads),
            Contender("Pillow, bicubic", lambda: call("-c", PILLOW, str(given), written, str(scale)), 1),
        ]
        bar = advance("processes", len(contenders) * (rounds + 2)) if advance else None
        timings = measure(contenders, rounds, warmup=2, advance=bar)
    shown = f"{size[0]}x{size[1]}" if source is None else source.name
    command = "saccade bench process " + (f"--size {shown}" if source is None else f"--source {shown}")
    command += f" --scale {scale} --model {model} --threads {threads}"
    system = registry.entry(model).system
    what = "shell to written JPEG"
    rows = compare(timings, contenders[0].name, system=system, what=what, size=shown, command=command)
    return Result("process", command, rounds, tuple(rows))
