"""Put trained weights into the package: file, graph, figures and model card.

    python scripts/ship_weights.py --data ../shared/data runs/sesr_m5_x2 runs/pcsr_fsrcnn_x2 ...

For each run: the weights go to ``src/saccade/weights/<model>_x<scale>.safetensors`` (with where they come from in the
header), fixed graphs are exported beside them, quality is measured on Set5, Set14 and B100 by the field's protocol, and
``weights.json`` and ``MODEL_CARD.md`` are written anew. ``saccade evaluate`` prints the same figures for any weights.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

import saccade
from saccade import registry
from saccade.checkpoint import load, save
from saccade.cli.evaluate import measure
from saccade.runtime.graphs import export

CARD = registry.WEIGHTS / "MODEL_CARD.md"
TABLE = registry.WEIGHTS / "weights.json"
SETS = ("set5", "set14", "b100")


def command(options: dict[str, Any]) -> str:
    """The line that repeats a run, paths replaced by what they mean."""
    words = [f"saccade train sr --model {options['model']} --scale {options['scale']} --data train_free"]
    for name in ("steps", "batch", "patch", "rate", "ema", "phase", "seed"):
        words.append(f"--{name} {options[name]:g}" if name == "rate" else f"--{name} {options[name]}")
    if options.get("shrink", [1.0]) != [1.0]:
        words.append("--shrink " + ",".join(f"{size:g}" for size in options["shrink"]))
    if options["start"]:
        words.append(f"--start {Path(options['start']).parent.name}/weights.safetensors")
    if options["compile"]:
        words.append("--compile")
    return " ".join(words)


def ship(run: Path, data: Path) -> tuple[str, dict[str, Any]]:
    """Copy one run into the package; returns its file name and its row of the table."""
    told = json.loads((run / "run.json").read_text())
    options = told["options"]
    model: Any = load(run / "weights.safetensors")
    name = f"{options['model']}_x{options['scale']}"
    path = registry.WEIGHTS / f"{name}.safetensors"
    line = command(options)
    save(model, path, trained_by=line, licence="Apache-2.0")
    if not registry.entry(options["model"]).facts.get("routed"):
        export(model, path.with_suffix(".onnx"), path)
    figures = {folder: measure(model, data / folder) for folder in SETS}
    row = {
        "model": options["model"],
        "scale": options["scale"],
        "bytes": path.stat().st_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": told["course"][-1]["step"],
        "training_seconds": told["seconds"],
        "command": line,
        "figures": figures,
        "machine": f"1 CPU thread, {platform.machine()}, torch {torch.__version__}, saccade {saccade.__version__}",
    }
    return path.name, row


def card(table: dict[str, dict[str, Any]]) -> str:
    """The model card as Markdown."""
    lines = [
        "# Weights that ship with saccade",
        "",
        "Trained by us, from nothing, on 65 photographs under free licences (CC0, Unsplash, Pexels; each about 0.66",
        "megapixels, the set `train_free`): random crops, flips and quarter turns, low resolution by MATLAB-compatible",
        "bicubic rounded to 8 bit. No test picture was trained on; Set5 was watched while training. Licence of the",
        "weights: Apache-2.0, as the code.",
        "",
        "Intended use: enlarging photographs that were reduced cleanly. They do not remove noise or JPEG blocks, which",
        "they sharpen along with the rest. Faces and text are not treated specially; nothing is invented.",
        "",
        "PSNR on BT.601 luma in dB, `scale` pixels shaved, output rounded to 8 bit:",
        "",
        "| weights | parameters | Set5 | Set14 | B100 | steps | training time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(table.items()):
        f = row["figures"]
        psnr = " | ".join(f"{f[s]['psnr_y']:.2f}" for s in SETS)
        minutes = row["training_seconds"] / 60
        facts = f"{row['parameters']:,} | {psnr} | {row['steps']:,} | {minutes:.0f} min, 1 CPU thread"
        lines.append(f"| `{name}` | {facts} |")
    lines += [
        "",
        "The figures are printed by `saccade evaluate MODEL --scale S --data SET5 --data SET14 --data B100`. PCSR: its",
        "default dial.",
        "",
        "## Commands",
        "",
        "Where a run starts from another, that one comes first and its time is not included. Times are wall times on a",
        "machine that was busy with other work, one thread each.",
        "",
        "```",
        *(line for name, row in sorted(table.items()) for line in (*row["before"], f"{row['command']}    # {name}")),
        "```",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with set5, set14 and b100")
    chosen = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    for run in chosen.runs:
        name, row = ship(run, chosen.data)
        table[name] = {**row, "before": table.get(name, {}).get("before", [])}  # earlier runs are noted by hand
        print(name, {s: round(f["psnr_y"], 2) for s, f in row["figures"].items()})
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    CARD.write_text(card(table))


if __name__ == "__main__":
    main()
