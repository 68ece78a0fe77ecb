"""The foveated transform beside its published loop over regions, and statistics of segments beside a loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saccade.backbones.foveated.adain import Decoder, Encoder, adain, coral
from saccade.backbones.foveated.network import FoveatedNetwork
from saccade.backbones.foveated.transform import FoveatedTexture
from saccade.backbones.foveated.windows import Windows, pooling_regions
from saccade.bench.classify import backbone_contest, eager
from saccade.bench.contest import Contest
from saccade.bench.harness import Row, compare, measure
from saccade.ops.segment_stats import segment_stats

__all__ = ["contests", "looped", "plainly", "rows"]


class Looped(nn.Module):
    """The transform as published: three encodings, a mask repeated for every channel, region after region."""

    masks: Tensor

    def __init__(self, ours: FoveatedTexture) -> None:
        super().__init__()
        self.encoder, self.decoder = ours.encoder, ours.decoder
        own = ours.regions
        masks = torch.zeros(len(own), own.grid[0] * own.grid[1])
        masks[own.segments, own.cells] = 1
        self.register_buffer("masks", masks.view(-1, *own.grid))
        self.register_buffer("white", ours.white)
        self.alpha, self.epsilon = own.alpha.tolist(), ours.epsilon

    def forward(self, picture: Tensor) -> Tensor:
        return torch.cat([self._one(p[None]) for p in picture])  # one after the other, as published

    def _one(self, picture: Tensor) -> Tensor:
        noise = coral(self.get_buffer("white"), picture)
        content, style, other = self.encoder(picture), self.encoder(picture), self.encoder(noise)
        made = torch.zeros_like(content)
        for alpha, mask in zip(self.alpha, self.masks, strict=True):
            inside = mask[None].repeat(content.shape[1], 1, 1)[0] > 0.001
            own, look, drawn = (f[:, :, inside].unsqueeze(3) for f in (content, style, other))
            made[:, :, inside] = ((1 - alpha) * own + alpha * adain(drawn, look, self.epsilon)).squeeze(3)
        out: Tensor = self.decoder(made)
        return out.clamp(0, 1)


def looped(ours: FoveatedTexture) -> Callable[[Tensor], Any]:
    """The published steps with the networks, regions and noise of ours."""
    return Looped(ours)


def plainly(model: nn.Module) -> Callable[[Tensor], Any]:
    """The network behind the published loop; shares its weights."""
    assert isinstance(model, FoveatedNetwork)
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    assert isinstance(twin.stage, FoveatedTexture)
    twin.stage = Looped(twin.stage)
    return twin.eval()


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """The transform with the published networks, and a whole system with the lapped transform."""
    yield published(size, threads)
    yield backbone_contest("foveated_texture_resnet18", plainly, size, threads, img_size=size[0])


def published(size: tuple[int, int], threads: int) -> Contest:
    """The transform at scale 0.4, regions painted in order over each other as published, on one picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = Encoder(), Decoder()
        x = torch.rand(1, 3, size[1], size[0])
    transform = FoveatedTexture((size[1], size[0]), painting="order", encoder=encoder, decoder=decoder).eval()
    transform.to(memory_format=torch.channels_last)
    plain = looped(copy.deepcopy(transform).to(memory_format=torch.contiguous_format))

    def check() -> None:
        with torch.inference_mode():
            torch.testing.assert_close(transform(x), plain(x), rtol=1e-3, atol=1e-3)

    return Contest(
        f"texture transform, VGG-19, {len(transform.regions)} regions",
        eager("saccade, all regions at once", transform, x.contiguous(memory_format=torch.channels_last), threads),
        eager("region after region", plain, x, threads),
        check=check,
    )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Statistics of the regions of a picture of 512 px in features of VGG-19."""
    own = pooling_regions(Windows((512, 512)))
    x = torch.randn(1, 64 * 64, 512, generator=torch.Generator().manual_seed(0))
    told = (own.cells, own.segments, own.sizes)
    ways: dict[str, Any] = {
        f"segment_stats, {path}": lambda y, path=path: segment_stats(y, *told, path=path)
        for path in ("added", "multiplied", "naive")
    }
    contenders = [eager(name, partial(way), x, threads) for name, way in ways.items()]
    timings = measure(contenders, rounds, warmup=1)
    what, command = (
        f"{len(own)} regions, 512 channels",
        f"saccade bench backbones --system foveated --threads {threads}",
    )
    return compare(timings, contenders[0].name, system="foveated", what=what, size="512x512", command=command), []
