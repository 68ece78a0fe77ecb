"""``saccade search``: the best sub-network of a supernet below a limit of MACs, or of milliseconds on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saccade.cli.options import AsJson, Device, Overwrite, a_seed
from saccade.errors import InputError, UsageError

if TYPE_CHECKING:
    from saccade.backbones.elasticvit.architecture import Architecture
    from saccade.backbones.elasticvit.evolution import Outcome, Settings
    from saccade.backbones.elasticvit.latency import Platform, Predictor
    from saccade.backbones.elasticvit.network import ElasticViT
    from saccade.backbones.elasticvit.search import Accuracy
    from saccade.backbones.elasticvit.space import Space

_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|)")
_ENDINGS = (".safetensors", ".onnx", ".json")
#: of a search whose networks are run on pictures, and of one by cost alone (as published)
_RUN = {"population": 32, "generations": 6, "parents": 16, "mutations": 8, "crossovers": 8}
_BY_COST = {"population": 512, "generations": 40, "parents": 256, "mutations": 128, "crossovers": 128}


def search(
    space: Annotated[
        str | None, typer.Option(help="elasticvit or elasticvit-small.  [default: the weights', else elasticvit]")
    ] = None,
    latency: Annotated[str | None, typer.Option(help="Limit of one picture's time on this machine, e.g. 8ms.")] = None,
    macs: Annotated[str | None, typer.Option(help="Limit of MACs by the published cost model, e.g. 300M.")] = None,
    weights: Annotated[Path | None, typer.Option(help="A trained supernet, to take networks from.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Training pictures, one folder a class: to calibrate norms, to measure accuracy.")
    ] = None,
    validate: Annotated[str | None, typer.Option(help="Held-out pictures; default: every 16th of --data.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write what was found: .safetensors, .onnx or .json.")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of the network that is to be fast.")] = 1,
    device: Device = "cpu",
    backend: Annotated[str, typer.Option(help="What runs it: auto, openvino or torch.")] = "auto",
    classes: Annotated[int | None, typer.Option(help="Outputs.  [default: the weights', else 1000]")] = None,
    networks: Annotated[int, typer.Option(help="Networks to measure for the latency predictor, once.")] = 32,
    again: Annotated[
        bool, typer.Option("--again", help="Measure them anew; do not take the cached predictor.")
    ] = False,
    size: Annotated[int | None, typer.Option(help="Side of the pictures.  [default: the space's largest]")] = None,
    batches: Annotated[int, typer.Option(help="Batches of 64 pictures that norms are calibrated on.")] = 8,
    held: Annotated[int, typer.Option(help="Held-out pictures that accuracy is measured on.")] = 512,
    population: Annotated[int | None, typer.Option(help="Networks to start from.  [default: 512, on data 32]")] = None,
    generations: Annotated[int | None, typer.Option(help="After them.  [default: 40, on data 6]")] = None,
    seed: Annotated[int, typer.Option(callback=a_seed, help="Of all chance.")] = 0,
    overwrite: Overwrite = False,
    json: AsJson = False,
) -> None:
    """Find the best sub-network of an ElasticViT supernet below a limit of time or of MACs.

    Best is what names most held-out pictures, with --weights and --data. Without them costs alone decide, and no
    accuracy is told.
    """
    from saccade.runtime.devices import chosen_device

    limit_ms, limit_macs = _limit(latency, macs)
    if out is not None:
        _check_out(out, overwrite, trained=weights is not None and data is None)
    if data is not None and weights is None:
        raise UsageError("--data measures a trained supernet: give --weights too")
    if threads < 1 or batches < 1 or held < 1:
        raise UsageError(f"--threads, --batches and --held are at least 1, not {threads}, {batches} and {held}")

    from saccade.backbones.elasticvit.latency import Platform
    from saccade.runtime.accelerate import BACKENDS

    if backend not in BACKENDS:  # before minutes of search
        raise UsageError(f"no backend named {backend!r}; there are {', '.join(BACKENDS)}")
    device = chosen_device(device, backend)
    model = _supernet(weights, space, classes, seed)
    platform = Platform(threads, backend, device, model.num_classes)
    fitness = None if data is None else _accuracy(model, data, validate, size, batches, held, seed, device)
    settings = _settings(fitness is not None, population, generations, seed)
    predictor = None if limit_ms is None else _predictor(model.space, platform, networks, again)
    found = _found(model.space, limit_ms, limit_macs, fitness, settings, predictor, platform)
    told = describe(found, model.space, platform, fitness)
    if out is not None:
        told["file"] = str(out)
        _write(out, model, found, fitness, told)
    if json:
        import json as json_module

        typer.echo(json_module.dumps(told, indent=1))
    else:
        typer.echo(text(told))


# ---------------------------------------------------------------------------------------------------------------------
# What was asked for
# ---------------------------------------------------------------------------------------------------------------------
def milliseconds(given: str) -> float:
    """``8ms``, ``0.008s`` or ``8`` -> 8.0.

    Raises:
        UsageError: anything else, or zero.
    """
    found = _TIME.fullmatch(given.strip().lower())
    value = float(found[1]) * (1e3 if found[2] == "s" else 1.0) if found else 0.0
    if value <= 0:
        raise UsageError(f"--latency takes a time such as 8ms or 0.1s, not {given!r}")
    return value


def _limit(latency: str | None, macs: str | None) -> tuple[float | None, float | None]:
    """Milliseconds, or M MACs: one of the two."""
    from saccade.cli.scale import amount

    if (latency is None) == (macs is None):
        raise UsageError(f"give one of --latency and --macs, not {'none' if latency is None else 'both'}")
    if latency is not None:
        return milliseconds(latency), None
    assert macs is not None
    return None, amount(macs, "--macs") / 1e6


def _check_out(out: Path, overwrite: bool, *, trained: bool) -> None:
    from saccade.io.files import check_target

    if out.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{out} is to be a network: end its name with {', '.join(_ENDINGS)}")
    check_target(out, overwrite)
    if trained and out.suffix.lower() != ".json":
        raise UsageError(
            "running statistics of a supernet are those of none of its networks: give --data, so that they can be "
            "calibrated, or write the architecture alone (.json)"
        )


def _supernet(weights: Path | None, space: str | None, classes: int | None, seed: int) -> ElasticViT:
    """The supernet of a file, or a fresh one."""
    import torch

    from saccade.backbones.elasticvit.catalogue import as_space
    from saccade.backbones.elasticvit.network import ElasticViT
    from saccade.checkpoint import load
    from saccade.registry import create

    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            options = {"space": space or "elasticvit", "num_classes": 1000 if classes is None else classes}
            model = create("elasticvit", weights=None, **options)
    else:
        model = load(weights)
    if not isinstance(model, ElasticViT):
        name = getattr(model, "saccade_name", type(model).__name__)
        raise UsageError(f"{weights} holds {name}, not a supernet (elasticvit)")
    if space is not None and as_space(space) != model.space:
        raise UsageError(f"{weights} holds a supernet of another space than {space}; leave --space out")
    if classes is not None and classes != model.num_classes:
        raise UsageError(f"{weights} has {model.num_classes} classes, not {classes}")
    return model


def _settings(run: bool, population: int | None, generations: int | None, seed: int) -> Settings:
    from saccade.backbones.elasticvit.evolution import Settings

    given = {"population": population, "generations": generations}
    return Settings(**{**(_RUN if run else _BY_COST), **{k: v for k, v in given.items() if v is not None}}, seed=seed)


def _accuracy(
    model: ElasticViT,
    data: str,
    validate: str | None,
    size: int | None,
    batches: int,
    held: int,
    seed: int,
    device: str,
) -> Accuracy:
    """Accuracy on pictures of folders; they are read once and kept."""
    import torch

    from saccade.backbones.elasticvit.search import Accuracy
    from saccade.training.classification import Options, prepared_batches

    side = model.space.resolutions[-1] if size is None else size
    if side < model.least:
        raise UsageError(f"--size is at least {model.least}, not {side}")
    options = Options(model="elasticvit", data=data, out="", validate=validate, patch=side)
    known = options.created()["num_classes"]
    if known != model.num_classes:
        raise InputError(f"{data} has {known} classes, the supernet {model.num_classes}")
    chance = torch.Generator().manual_seed(seed)
    made = []
    for pictures, count in zip(options.split(), (64 * batches, held), strict=True):
        chosen = torch.randperm(len(pictures), generator=chance)[:count].tolist()
        made.append(prepared_batches([pictures[i] for i in chosen], side, model))
    return Accuracy(model.to(device), *made)


# ---------------------------------------------------------------------------------------------------------------------
# The search
# ---------------------------------------------------------------------------------------------------------------------
def _predictor(space: Space, platform: Platform, networks: int, again: bool) -> Predictor:
    """The predictor for this machine: from the cache, or fitted and kept."""
    import hashlib
    import json
    from dataclasses import asdict

    from saccade.backbones.elasticvit.latency import Predictor, fit
    from saccade.bench.harness import machine, versions
    from saccade.cache import cache_folder
    from saccade.checkpoint import write_bytes

    key = json.dumps([space.to_dict(), asdict(platform), networks, machine(), versions()], sort_keys=True)
    path = cache_folder() / "latency" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    if path.exists() and not again:
        try:
            return Predictor.from_json(path.read_text())
        except (OSError, UsageError):  # a damaged file is made again
            pass
    typer.echo(f"measuring {networks} networks for the latency predictor; it is kept in {path.parent}", err=True)
    found = fit(space, platform, count=networks)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, found.to_json().encode())
    except (OSError, InputError):  # a cache that cannot be written costs time only
        typer.echo(f"cannot keep the predictor in {path.parent}: it is fitted again next time", err=True)
    return found


@dataclass(frozen=True)
class _Found:
    outcome: Outcome
    limit: str
    met: bool
    predicted: float | None
    measured: float
    rounds: int
    predictor: Predictor | None

    @property
    def architecture(self) -> Architecture:
        return self.outcome.best.architecture


def _found(
    space: Space,
    limit_ms: float | None,
    limit_macs: float | None,
    fitness: Accuracy | None,
    settings: Settings,
    predictor: Predictor | None,
    platform: Platform,
) -> _Found:
    from saccade.backbones.elasticvit.latency import measure
    from saccade.backbones.elasticvit.search import below_latency, below_macs, most_macs, wide_and_shallow

    if limit_ms is not None:
        assert predictor is not None
        timed = below_latency(limit_ms, predictor, fitness or most_macs(space, platform.classes), settings)
        met = timed.measured <= limit_ms
        return _Found(timed.outcome, f"{limit_ms:g} ms", met, timed.predicted, timed.measured, timed.rounds, predictor)
    assert limit_macs is not None
    best = fitness or wide_and_shallow(space, platform.classes)
    outcome = below_macs(space, limit_macs, best, settings, classes=platform.classes)
    took = measure(outcome.best.architecture, space, platform)
    return _Found(outcome, f"{limit_macs:g} M MACs", True, None, took, 1, None)


def describe(found: _Found, space: Space, platform: Platform, fitness: Accuracy | None) -> dict[str, Any]:
    """Everything about what was found, as plain data."""
    from dataclasses import asdict

    from saccade.backbones.elasticvit.code import to_code
    from saccade.backbones.elasticvit.counting import cost_macs, true_macs

    architecture, predictor = found.architecture, found.predictor
    chosen_by = "accuracy" if fitness is not None else "MACs in the time" if predictor else "width rather than depth"
    return {
        "limit": found.limit,
        "met": found.met,
        "code": to_code(architecture, space.head_dim),
        "architecture": architecture.to_dict(),
        "resolution": architecture.resolution,
        "cost_model_macs": round(1e6 * float(cost_macs(architecture, space, platform.classes)[0])),
        "macs": true_macs(architecture, space, platform.classes),
        "predicted_ms": found.predicted,
        "measured_ms": found.measured,
        "threads": platform.threads,
        "device": platform.device,
        "chosen_by": chosen_by,
        "accuracy_percent": None if fitness is None else fitness(architecture),
        "held_out_pictures": 0 if fitness is None else sum(len(labels) for _, labels in fitness.held),
        "evaluated": found.outcome.evaluated,
        "rounds": found.rounds,
        "predictor": None
        if predictor is None
        else {**asdict(predictor.errors), "measured": len(predictor.samples), "ends_ms": list(predictor.ends)},
    }


def text(told: dict[str, Any]) -> str:
    """The description in lines."""
    guess = "" if told["predicted_ms"] is None else f", predicted {told['predicted_ms']:.2f} ms"
    lines = [
        f"at most {told['limit']}: {told['resolution']} px, {told['cost_model_macs'] / 1e6:.1f} M MACs by the cost "
        f"model, {told['macs'] / 1e6:.1f} M that run",
        f"measured {told['measured_ms']:.2f} ms{guess} ({told['threads']} threads, {told['device']})",
    ]
    if not told["met"]:
        lines.append(f"the limit is NOT met, after {told['rounds']} searches: is this machine busy with other work?")
    if (p := told["predictor"]) is not None:
        lines.append(
            f"predictor: {p['mape']:.1f} % off on average, {p['worst']:.1f} % at worst, rank correlation "
            f"{p['spearman']:.3f}, on {p['networks']} networks held out of {p['measured']}"
        )
    if told["accuracy_percent"] is not None:
        lines.append(
            f"{told['accuracy_percent']:.2f} % of {told['held_out_pictures']} held-out pictures named, norms calibrated"
        )
    else:
        lines.append(f"chosen by {told['chosen_by']} alone: accuracy takes --weights and --data")
    lines.append(f"{told['evaluated']} networks tried; code {told['code']}")
    return "\n".join([*lines, *([told["file"]] if "file" in told else [])])


# ---------------------------------------------------------------------------------------------------------------------
# The network as a file
# ---------------------------------------------------------------------------------------------------------------------
def _write(out: Path, model: ElasticViT, found: _Found, fitness: Accuracy | None, told: dict[str, Any]) -> None:
    """What was found: calibrated weights, their graph, or the architecture alone."""
    import json
    import os

    from saccade.backbones.elasticvit.deploy import extract, recalibrate
    from saccade.checkpoint import save, write_bytes

    if out.suffix.lower() == ".json":
        write_bytes(out, json.dumps(told, indent=1).encode())
        return
    model.architecture = found.architecture
    if fitness is not None:
        recalibrate(model, fitness.calibration)
    network = extract(model).cpu().eval()
    if out.suffix.lower() == ".safetensors":
        save(network, out, search=json.dumps({k: told[k] for k in ("limit", "measured_ms", "accuracy_percent")}))
        return
    from saccade.io.files import temporary_beside
    from saccade.nn.fuse import fuse
    from saccade.runtime import graphs

    side = found.architecture.resolution
    temporary = temporary_beside(out)
    try:
        graphs.export(fuse(network), temporary, shape=(1, 3, side, side), names=("pictures", "logits"))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
