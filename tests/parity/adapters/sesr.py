"""SESR against the official TensorFlow code: outputs of collapsed and expanded training, and the collapsed kernels."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from saccade.restoration.sesr import SESR, from_official, twice_by_two

from . import built, under

BLOCKS = {"input_block": 0, "output_block": -1}


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    config = json.loads(metadata["config"])
    tolerance = float(metadata["tolerance"].split()[0])
    cases = config if all(isinstance(c, dict) for c in config.values()) else {"": config}
    for case, told in cases.items():
        at = f"{case}." if case else ""
        state = under(vectors, f"state.{at}")
        recipe = from_official(state, bias="kernel" if told["block"] == "collapsed" else "output")
        model = built(recipe, SESR, f"golden {case}")
        found = (len(model.blocks), model.width, model.expansion, model.scale)
        assert found == (told["m"], told["f"], told["fs"], told["scale"]), "everything is read from the shapes"
        x, y = (vectors[f"{kind}.{at}{name}"].permute(0, 3, 1, 2) for kind, name in (("input", "x"), ("output", "y")))
        with torch.no_grad():
            for net in (model, model.collapse()):
                torch.testing.assert_close(net(x), y, atol=tolerance, rtol=0)
            for key in (k for k in vectors if k.startswith(f"mid.{at}") and k.endswith(".collapsed_kernel")):
                name = key.removeprefix(f"mid.{at}").removesuffix(".collapsed_kernel")
                which = BLOCKS[name] if name in BLOCKS else 1 + int(name.rpartition(".")[2])
                kernel = model.linear_blocks()[which].collapsed()[0]
                if name == "output_block":
                    kernel = kernel[torch.tensor(twice_by_two(model.scale)).argsort()]
                torch.testing.assert_close(kernel.permute(2, 3, 1, 0), vectors[key], atol=tolerance, rtol=0)
