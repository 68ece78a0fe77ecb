"""The learnt ISP folded into one matrix and one table, beside its stages run one by one on the whole picture."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from saccade import registry
from saccade.bench import peers
from saccade.bench.contest import Contest
from saccade.bench.harness import Contender, Row, compare, measure
from saccade.runtime.scene import scene

__all__ = ["contests", "rows"]


def _model() -> Any:
    """Fresh weights from a seed; maps and curves away from identity, which the plain path would not profit from."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = registry.create("model_isp", weights=None)
        with torch.no_grad():
            for name in ("lsc", "tone"):
                for p in model.stages[name].parameters():
                    p.add_(0.1 * torch.randn(p.shape))
    return model


def _picture(size: tuple[int, int]) -> Any:
    import numpy as np
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(scene(size[1], size[0])))
    return pixels.permute(2, 0, 1)[None].float().div(255).contiguous()


def contests(size: tuple[int, int], threads: int) -> Iterator[Contest]:
    """Both directions: RAW to RGB and back, settings predicted for the picture each time.

    Args:
        size: width and height.
        threads: of torch.
    """
    import torch

    from saccade.restoration.model_isp.network import whole_grid

    model, picture = _model(), _picture(size)
    inside = functools.partial(peers.torch_threads, threads)

    @torch.inference_mode()
    def plain(direction: str) -> Any:
        """Stage by stage: gain maps made for the picture, gains, matrix, power, curve by searching its knots."""
        settings = model.predict(picture, direction)
        return model.trace(picture, settings, whole_grid(picture), direction)[-1]

    @torch.inference_mode()
    def kept(direction: str) -> Any:
        """The same with the mixed gain map of an earlier picture of this size at hand: only what differs is done."""
        settings = model.predict(picture, direction)
        stage = model.stages["lsc"]
        without = type(settings)(None, settings.gains, settings.ccm, settings.gamma, settings.tone)
        gain = torch.einsum("bn,nhw->bhw", settings.lsc, maps)[:, None]
        grid = whole_grid(picture[:, :, :1, :1])
        assert stage is not None
        if direction == "forward":
            return model.trace(picture * gain, without, grid, direction)[-1]
        return model.trace(picture, without, grid, direction)[-1] / gain

    with torch.inference_mode():
        maps = model.stages["lsc"].strip(0, size[1], size[1], size[0])
    for direction, what in (("forward", "RAW to RGB"), ("inverse", "RGB to RAW")):
        ours = model if direction == "forward" else model.inverse
        run = torch.inference_mode()(functools.partial(ours, picture))
        yield Contest(
            what=f"learnt ISP, {what}",
            ours=Contender(f"saccade, {what}, folded", run, threads, inside),
            official=Contender(f"{what} stage by stage", functools.partial(plain, direction), threads, inside),
            peers=(
                Contender(f"{what} stage by stage, maps kept", functools.partial(kept, direction), threads, inside),
            ),
            notes=(
                "the paper's code is not public: stage by stage is its algorithm written plainly, with our weights",
                "folded keeps the dictionary's gain maps from one picture of a size to the next where they take less "
                "than 48 MiB; the peer with maps kept has them as well",
            ),
        )


def rows(threads: int, rounds: int) -> tuple[list[Row], list[str]]:
    """Demosaicking by Malvar: one convolution over cells, beside four filters on the whole plane and masks."""
    import torch
    import torch.nn.functional as F

    from saccade.ops.demosaic import demosaic, mosaic, unpack
    from saccade.ops.demosaic.naive import MALVAR

    packed = mosaic(_picture((1920, 1080)))
    inside = functools.partial(peers.torch_threads, threads)
    kernels = torch.tensor([MALVAR[name] for name in ("cross", "row", "column", "diagonal")])[:, None]

    @torch.inference_mode()
    def plain() -> Any:
        """As in the common implementations: every filter everywhere, then each place picks."""
        plane = unpack(packed)[:, None]
        cross, row, column, diagonal = F.conv2d(F.pad(plane, (2, 2, 2, 2), mode="reflect"), kernels)[0]
        made = plane[0].expand(3, -1, -1).clone()
        made[1, 0::2, 0::2], made[1, 1::2, 1::2] = cross[0::2, 0::2], cross[1::2, 1::2]
        for colour, (y, x) in ((0, (0, 0)), (2, (1, 1))):
            made[colour, y::2, 1 - x :: 2] = row[y::2, 1 - x :: 2]
            made[colour, 1 - y :: 2, x::2] = column[1 - y :: 2, x::2]
            made[colour, 1 - y :: 2, 1 - x :: 2] = diagonal[1 - y :: 2, 1 - x :: 2]
        return made

    ours = Contender("saccade, cells", torch.inference_mode()(functools.partial(demosaic, packed)), threads, inside)
    contenders = [ours, Contender("four filters and masks", plain, threads, inside)]
    timings = measure(contenders, rounds)
    command = f"saccade bench restoration --threads {threads}"
    facts = {"system": "model_isp", "what": "Malvar demosaicking", "size": "1920x1080", "command": command}
    return compare(timings, ours.name, **facts), []
