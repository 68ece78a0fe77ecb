"""HyperZ.Z.W against the official code: logits, parts of the blocks, the slow-neural loss, both optimisers."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from saccade.backbones.hyperzzw import HyperZZW, from_official, slow_neural_loss
from saccade.nn.fuse import fuse
from saccade.training.kar import Kar

from . import built, under


def near(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-3, atol=2e-4)


def optimisers(vectors: dict[str, Tensor]) -> None:
    for name, betas in (("Kar2", (0.95,)), ("Kar3", (0.5, 0.95))):
        p = nn.Parameter(vectors[f"input.{name}.p0"].clone())
        optimiser = Kar([p], lr=0.01, betas=betas)
        for gradient in vectors[f"input.{name}.grads"]:
            p.grad = gradient.clone()
            optimiser.step()
        torch.testing.assert_close(p.detach(), vectors[f"output.{name}.p5"], rtol=1e-5, atol=1e-6)


@torch.no_grad()
def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    recipe = from_official(under(vectors, "state."))
    model = built(recipe, HyperZZW)
    assert model.size == told["size"]
    assert [i["num_chs"] for i in model.feature_info][-1] == told["final_no_hidden"]
    assert recipe.options["depths"] == tuple(told["g_layers"])
    assert recipe.options["local"] == tuple(told["l_sizes"])

    x, block = vectors["input.x"], model.stages[0]
    maps = list(model.maps(x))
    for i in (0, 1):
        near(model.kernels()[i], vectors[f"mid.block{i}.global_hyper_kernel"])
        near(maps[i], vectors[f"mid.block{i}.out"])
    near(block.hyper_channel(x), vectors["mid.block0.hyper_channel_interact"])
    near(block.rgu(x), vectors["mid.block0.rgu"])
    near(block.interaction(block.rgu(x), x), vectors["mid.block0.hyper_interact(rgu(x),x)"])
    near(block.local[0].slow(x), vectors["mid.block0.local_kernel_1"])
    logits, loss = model.with_slow_neural_loss(x)
    near(logits, vectors["output.logits"])
    near(model(x[:1].repeat(2, 1, 1, 1)), vectors["output.logits_first_sample_twice"])
    near(loss, vectors["output.slow_neural_loss"])
    near(slow_neural_loss(model.kernels()), loss)
    near(fuse(model)(x), vectors["output.logits"])
    with torch.enable_grad():
        optimisers(vectors)
