"""Fit the statistics that `saccade restore --perception` uses and put them into the package.

    python scripts/fit_transport.py --data ../shared/data/train_free cleaner cleaner_small

Sources are what the model makes of pieces of photographs with the degradation it was trained on; targets are the same
pieces as they are: with other photographs the map would also carry over how much brighter or bluer those happen to be
(9 dB lost at full perception instead of 2). Seconds for a model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from saccade import registry
from saccade.data.crops import degradation, held_out
from saccade.data.pairs import photographs
from saccade.restoration.dot import fit

PIECES, SIDE, FLOOR = 32, 384, 2 / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--degrade", default="noise-jpeg")
    parser.add_argument("--out", type=Path, default=registry.WEIGHTS)
    chosen = parser.parse_args()
    files = photographs(chosen.data)
    spoilt = [given for given, _ in held_out(files[:PIECES], degradation(chosen.degrade), side=SIDE)]
    clean = [wanted for _, wanted in held_out(files[:PIECES], side=SIDE)]
    for name in chosen.models:
        with torch.inference_mode():
            made = fit(registry.create(name), spoilt, clean, floor=FLOOR)
        path = chosen.out / f"dot_{name}.safetensors"
        made.save(path)
        print(json.dumps({"file": path.name, "bytes": path.stat().st_size, "distance": float(made.distance())}))


if __name__ == "__main__":
    main()
