"""How fast `saccade.ops.resize` is beside torch's antialiased bicubic interpolation, and beside its own naive form.

    python benchmarks/resize.py [--json] [--size 1920x1080] [--threads 1,2] [--rounds 9]

Float32 RGB (1, 3, h, w). torch's kernel mirrors nothing at the edges: the job is nearly, not exactly, the same. Ours
runs on one thread whatever is allowed; torch uses all that it is given. The naive form is timed on 240x160 pixels.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys

import torch
import torch.nn.functional as F

from saccade.bench.harness import Contender, Result, Row, compare, measure
from saccade.ops.resize import resize, resize_array
from saccade.ops.resize.naive import resize_naive
from saccade.runtime.threads import on_threads

SCALES = {"/2": 1 / 2, "/3": 1 / 3, "/4": 1 / 4, "x2": 2.0, "x3": 3.0, "x0.6": 0.6}
OURS, ARRAY = "resize", "resize_array (rows, no torch)"
TORCH, NAIVE = "torch interpolate, antialias", "naive, dense float64"


def main() -> None:
    options = parse()
    width, height = options.size
    rows: list[Row] = []
    for threads in options.threads:
        for name, scale in SCALES.items():
            rows += beside_torch(height, width, name, scale, threads, options.rounds)
    rows += [beside_naive(name, SCALES[name]) for name in ("/2", "x2")]
    result = Result("resize", command(), options.rounds, tuple(rows))
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    print(f"{result.machine}; torch {torch.__version__}; medians of {options.rounds} rounds, in turns")
    print(f"{'job':<6}{'input':>11}  {'threads':>7}  {'ours':<30}{'ms':>9}  {'peer':<30}{'ms':>9}{'ratio':>8}")
    for row in rows:
        print(
            f"{row.what:<6}{row.size:>11}  {row.peer_threads:>7}  {row.ours:<30}{row.ours_ms:>9.2f}  "
            f"{row.peer:<30}{row.peer_ms:>9.2f}{row.ratio:>8.2f}"
        )


def beside_torch(height: int, width: int, name: str, scale: float, threads: int, rounds: int) -> list[Row]:
    x = picture(height, width)
    channels_last = x[0].permute(1, 2, 0).contiguous().numpy()
    inside = functools.partial(on_threads, threads)
    interpolate = functools.partial(F.interpolate, x, scale_factor=scale, mode="bicubic", antialias=True)
    timings = measure(
        [
            Contender(OURS, functools.partial(resize, x, scale), 1, inside),
            Contender(TORCH, interpolate, threads, inside),
            Contender(ARRAY, functools.partial(resize_array, channels_last, scale), 1, inside),
        ],
        rounds,
        warmup=2,
    )
    told = {"system": "ops.resize", "what": name, "size": f"{width}x{height}", "command": command()}
    return [*compare(timings, OURS, [TORCH], **told), *compare(timings, ARRAY, [TORCH], **told)]


def beside_naive(name: str, scale: float) -> Row:
    x = picture(160, 240)
    inside = functools.partial(on_threads, 1)
    timings = measure(
        [
            Contender(OURS, functools.partial(resize, x, scale), 1, inside),
            Contender(NAIVE, functools.partial(resize_naive, x, scale), 1, inside),
        ],
        3,
    )
    return compare(timings, OURS, system="ops.resize", what=name, size="240x160", command=command())[0]


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def command() -> str:
    return shlex.join(["python", "benchmarks/resize.py", *sys.argv[1:]])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--size", type=numbers("x", 2), default=(1920, 1080), help="input, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=numbers(","), default=(1, 2), help="threads torch may use, e.g. 1,2")
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each")
    return parser.parse_args()


class numbers:  # noqa: N801 - named for argparse's message
    """Reads whole numbers of at least 1 with a separator between."""

    def __init__(self, separator: str, count: int | None = None) -> None:
        self.separator, self.count = separator, count

    def __call__(self, text: str) -> tuple[int, ...]:
        parts = tuple(int(part) for part in text.split(self.separator))
        if min(parts) < 1 or (self.count is not None and len(parts) != self.count):
            raise ValueError(text)
        return parts


if __name__ == "__main__":
    main()
