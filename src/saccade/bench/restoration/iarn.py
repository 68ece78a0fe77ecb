"""Rescaling there and back: IRN beside its published steps, IARN in tiles beside its own steps run plainly."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.registry import create
from saccade.restoration.iarn import IARN, IRN, DenseBlock, Subnet
from saccade.restoration.iarn.network import LINEAR, Residual, from_opponent, mirrored, to_opponent
from saccade.restoration.iarn.phases import gather, maps, scatter
from saccade.restoration.rescale import Enlarger, Shrinker
from saccade.runtime.scene import scene

__all__ = ["Plain", "contests", "rows"]

WHOLE = 512 * 512  # pixels up to which IRN of the published size runs
FACTOR = 2.0


class Plain:
    """IARN's steps as its equations have them, on the whole picture: (B, 3, H, W) -> small, and back.

    Matrices are dense, the linear path sees its input three times, every step makes a new tensor, channels come first.
    """

    def __init__(self, model: IARN) -> None:
        self.model = model

    def _maps(self, large: Tensor | tuple[int, int], small: tuple[int, int]) -> tuple[dict[str, Tensor], ...]:
        size = tuple(large.shape[-2:]) if isinstance(large, Tensor) else large
        made = []
        for n, m in zip(size, small, strict=True):
            axis = maps(n, m, self.model.functions, (0, m), (0, n))
            made.append({name: getattr(axis, name).dense() for name in ("down", "up", "analysis", "synthesis")})
        return tuple(made)

    def shrink(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The small picture, rounded; one coupling."""
        rows, columns = self._maps(x, size)
        ratios = (size[0] / x.shape[-2], size[1] / x.shape[-1])
        x = to_opponent(x)
        y = rows["down"] @ x @ columns["down"].T
        z = x - rows["up"] @ y @ columns["up"].T
        z = z + self._spread(self._subnet(self.model.P, y, ratios), rows, columns)
        y = y + self._hidden(z, rows, columns, ratios)
        return from_opponent(y).clamp(0, 1).mul(255).round().div(255)

    def enlarge(self, y: Tensor, size: tuple[int, int]) -> Tensor:
        """The large picture."""
        rows, columns = self._maps(size, (y.shape[-2], y.shape[-1]))
        ratios = (y.shape[-2] / size[0], y.shape[-1] / size[1])
        y = to_opponent(y)
        z = -self._spread(self._subnet(self._block.G, y, ratios), rows, columns)
        y = y - self._hidden(z, rows, columns, ratios)
        z = z - self._spread(self._subnet(self.model.P, y, ratios), rows, columns)
        return from_opponent(rows["up"] @ y @ columns["up"].T + z)

    @property
    def _block(self) -> Any:
        (block,) = self.model.blocks
        return block

    def _hidden(
        self, z: Tensor, rows: dict[str, Tensor], columns: dict[str, Tensor], ratios: tuple[float, float]
    ) -> Tensor:
        parts = rows["analysis"] @ z @ columns["analysis"].T
        return self._subnet(self._block.F, gather(parts, self.model.functions), ratios)

    def _spread(self, parts: Tensor, rows: dict[str, Tensor], columns: dict[str, Tensor]) -> Tensor:
        return rows["synthesis"] @ scatter(parts, self.model.functions) @ columns["synthesis"].T

    @staticmethod
    def _subnet(net: Subnet, x: Tensor, ratios: tuple[float, float]) -> Tensor:
        a, b = ratios[0] - 0.5, ratios[1] - 0.5
        modulation = x.new_tensor([a, b, a * a, b * b])
        told = x.new_tensor(ratios)[None, :, None, None].expand(len(x), 2, *x.shape[-2:])
        y = F.leaky_relu(net.first(torch.cat([x, told], 1)), 0.2) * (1 + net.modulate[0](modulation))[:, None, None]
        for block, modulate in zip(net.body, net.modulate[1:], strict=True):
            assert isinstance(block, Residual)
            y = (y + block.conv2(F.leaky_relu(block.conv1(y), 0.2))) * (1 + modulate(modulation))[:, None, None]
        linear: Tensor = net.linear(mirrored(net.linear_inputs(x, ratios)))
        made: Tensor = net.last(F.leaky_relu(y, 0.2)) + LINEAR * linear
        return made


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """There and back by 2, seeded weights: IARN at every size; IRN x2, with two blocks instead of eight above 512."""
    width, height = size
    picture = torch.from_numpy(np.ascontiguousarray(scene(height, width))).permute(2, 0, 1)[None].float() / 255
    inside = functools.partial(peers.torch_threads, threads)
    model = cast(IARN, _seeded("iarn"))
    plain = Plain(model)
    small = (round(height / FACTOR), round(width / FACTOR))
    tiled = functools.partial(_in_tiles, model, scene(height, width), threads)
    yield Contest(
        f"iarn, there and back by {FACTOR:g}, RGB",
        Contender("iarn by saccade", tiled, threads, inside),
        Contender(
            "iarn as its equations, PyTorch", functools.partial(_plainly, plain, picture, small), threads, inside
        ),
        notes=("iarn: no official code exists; the peer is our own equations run plainly, on the whole picture",),
    )
    blocks = (8,) if width * height <= WHOLE else (2,)
    irn = cast(IRN, _seeded("irn_x2", blocks=list(blocks)))
    even = picture[..., : height // 2 * 2, : width // 2 * 2]
    yield Contest(
        f"irn_x2, {blocks[0]} blocks, there and back, RGB",
        Contender("irn_x2 by saccade", functools.partial(_there_and_back, irn, even), threads, inside),
        Contender("irn_x2 as published, PyTorch", functools.partial(_published, irn, even), threads, inside),
        notes=() if blocks == (8,) else ("irn_x2 at 1920x1080: two blocks, eight take minutes",),
    )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """One axis as banded matrices beside dense ones, at the size of training crops and of photographs."""
    made: list[Row] = []
    inside = functools.partial(peers.torch_threads, threads)
    for n, m in ((64, 32), (1080, 540)):
        axis = maps(n, m, 3, (0, m), (0, n)).synthesis
        dense, x = axis.dense(), torch.rand(3, 3 * m, n, generator=torch.Generator().manual_seed(0))
        ours = Contender("banded matrix", functools.partial(axis.rows, x), threads, inside)
        other = Contender("dense matrix", functools.partial(torch.matmul, dense, x), threads, inside)
        facts = {
            "system": "iarn",
            "what": "synthesis of one axis",
            "size": f"{n}x{n}",
            "command": f"saccade bench restoration --system iarn --threads {threads}",
        }
        made += compare(measure([ours, other], rounds), ours.name, **facts)
    return made, []


def _seeded(name: str, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create(name, weights=None, **options)


@torch.inference_mode()
def _plainly(plain: Plain, picture: Tensor, small: tuple[int, int]) -> Tensor:
    return plain.enlarge(plain.shrink(picture, small), (picture.shape[-2], picture.shape[-1]))


def _in_tiles(model: IARN, picture: np.ndarray, threads: int) -> np.ndarray:
    """As the command line does it, without files: within the default bound on memory."""
    limits: dict[str, Any] = {"max_memory": 1 << 30, "threads": threads, "device": "cpu"}
    height, width = picture.shape[:2]
    small, _ = Shrinker(model, scale=FACTOR, **limits).array(picture)
    return Enlarger(model, size=(width, height), **limits).array(small)[0]


@torch.inference_mode()
def _there_and_back(model: IRN, picture: Tensor) -> Tensor:
    return model.enlarge(model.shrink(picture))


@torch.inference_mode()
def _published(model: IRN, picture: Tensor) -> Tensor:
    """The official steps: coupling by coupling, channels first, dense blocks that concatenate anew."""
    dense: Callable[[Any, Tensor], Tensor] = DenseBlock.forward_naive
    x = picture
    for step in model.operations:
        if hasattr(step, "haar_weights"):
            x = step(x)
            continue
        part: Any = step
        x1, x2 = x[:, :3], x[:, 3:]
        y1 = x1 + dense(part.F, x2)
        s = 2 * torch.sigmoid(dense(part.H, y1)) - 1
        x = torch.cat([y1, x2 * torch.exp(s) + dense(part.G, y1)], 1)
    small = x[:, :3].clamp(0, 1).mul(255).round().div(255)
    y = torch.cat([small, torch.zeros_like(x[:, 3:])], 1)
    for step in reversed(model.operations):
        part = step
        if hasattr(step, "haar_weights"):
            y = part.inverse(y)
            continue
        y1, y2 = y[:, :3], y[:, 3:]
        s = 2 * torch.sigmoid(dense(part.H, y1)) - 1
        x2 = (y2 - dense(part.G, y1)) / torch.exp(s)
        y = torch.cat([y1 - dense(part.F, x2), x2], 1)
    return y
