"""The weights in the package: complete, small, as good as their card says, and the same function in every form."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saccade import registry
from saccade.checkpoint import load, read_header

DATA = Path(os.environ.get("SACCADE_DATA", Path(__file__).parents[2] / "shared" / "data"))
TABLE: dict[str, Any] = json.loads((registry.WEIGHTS / "weights.json").read_text())
FILES = sorted(TABLE)
#: what the library promises at least: dB on luma of Set5, Set14, B100
PROMISED = {
    "sesr_m5_x2": (36.9, 32.6, 31.5),
    "sesr_m11_x2": (37.1, 0, 0),
    "sesr_xl_x2": (37.3, 0, 0),
    "sesr_m5_x4": (30.6, 0, 0),
    "sesr_xl_x4": (31.0, 0, 0),
}
needs_data = pytest.mark.skipif(not (DATA / "set5").is_dir(), reason="no test pictures: set SACCADE_DATA")


def test_every_file_of_weights_has_a_row_and_every_row_a_file() -> None:
    shipped = {p.name for p in registry.WEIGHTS.glob("*.safetensors")}
    statistics = {name for name in shipped if name.startswith("dot_")}  # of deep optimal transport, for these models
    assert shipped - statistics == set(FILES)
    assert {name.removeprefix("dot_") for name in statistics} <= set(FILES)


def test_all_promised_networks_ship() -> None:
    sesr = {f"{name}_x{scale}" for name in ("sesr_m5", "sesr_m11", "sesr_xl") for scale in (2, 3, 4)}
    assert sesr | {"pcsr_fsrcnn_x2", "pcsr_fsrcnn_x4"} <= {Path(f).stem for f in FILES}


def test_weights_take_some_megabytes_in_all() -> None:
    assert sum(p.stat().st_size for p in registry.WEIGHTS.iterdir()) < 12_000_000


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_its_model_and_its_training(name: str) -> None:
    metadata, _ = read_header(registry.WEIGHTS / name)
    told = json.loads(metadata["saccade"])
    scale = told["options"].get("scale")
    assert (f"{told['model']}_x{scale}" if scale else told["model"]) == Path(name).stem
    assert metadata["trained_by"] == TABLE[name]["command"]
    assert str(told["model"]) in (registry.WEIGHTS / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("sesr")])
def test_the_graph_computes_what_the_network_computes(name: str) -> None:
    ort = pytest.importorskip("onnxruntime")
    path = registry.WEIGHTS / name
    model = load(path)
    luma = np.random.default_rng(0).random((1, 1, 21, 34), dtype=np.float32)
    with torch.inference_mode():
        want = model(torch.from_numpy(luma)).numpy()
    session = ort.InferenceSession(str(path.with_suffix(".onnx")), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"low": luma})[0], want, atol=1e-5)


ENLARGING = [n for n in FILES if TABLE[n].get("task", "super-resolution") == "super-resolution"]


@needs_data
@pytest.mark.parametrize("name", ENLARGING)
def test_set5_comes_out_as_the_card_says(name: str) -> None:
    from saccade.restoration.evaluation import evaluate

    figures = evaluate(load(registry.WEIGHTS / name), DATA / "set5")
    assert figures["psnr_y"] == pytest.approx(TABLE[name]["figures"]["set5"]["psnr_y"], abs=0.01)


@needs_data
@pytest.mark.parametrize("name", [n for n in FILES if Path(n).stem in PROMISED])
def test_the_promised_quality_is_kept(name: str) -> None:
    for folder, least in zip(("set5", "set14", "b100"), PROMISED[Path(name).stem], strict=True):
        assert TABLE[name]["figures"][folder]["psnr_y"] >= least


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("name", [n for n in FILES if n not in ENLARGING])
def test_the_other_weights_do_what_the_card_says(name: str) -> None:
    from saccade.restoration.evaluation import evaluate

    model = load(registry.WEIGHTS / name)
    for folder, told in TABLE[name]["figures"].items():
        figures = evaluate(model, DATA / folder)
        assert figures.keys() == told.keys()
        for what, value in told.items():
            assert figures[what] == pytest.approx(value, abs=0.05), what


def test_the_cleaner_takes_noise_and_blocks_away() -> None:
    figures = TABLE["cleaner.safetensors"]["figures"]["kodak"]
    assert figures["noise_25_psnr"] >= figures["noise_25_before"] + 6
    for quality in (10, 20, 40):
        assert figures[f"jpeg_{quality}_psnr"] > figures[f"jpeg_{quality}_before"]
