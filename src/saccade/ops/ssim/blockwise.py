"""Structural similarity in blocks that stay in cache, with the gradient taken in the same pass.

    rows of a, b -- s = a+b-2g, d = a-b, s^2, d^2 -- x band -- band x -- maps -- sums
                    (4, P, R+w-1, W)                (4, P, R, W')          |
    gradient rows <------------ band^T x -- x band^T <------------- d sum / d maps

Four maps instead of five: var_a + var_b = (var_s + var_d)/2 and cov = (var_s - var_d)/4. The window runs over a block
as two products with small banded matrices: the rows are cut into overlapping tiles of T + w - 1 pixels (a strided view,
nothing is copied), each times one (T+w-1, T) matrix; a column is R + w - 1 pixels, times one of (R, R+w-1). That is
three times the multiplications of the shifted sums, at many times their speed.

A score is linear in the figure that it is the mean of, so the gradient of that mean is known, up to one factor a plane,
as soon as a block's maps are. It is taken there, and backward only multiplies: nothing else is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["similarity"]

SIDE = 32  # rows and columns of a tile's result, about
PIXELS = 65_536  # of a block's maps, about: sixteen buffers of these in float32 fill a cache of the second level


@dataclass(frozen=True)
class Problem:
    """What is asked: the window, the constants and which score."""

    window: tuple[float, ...]
    c1: float
    c2: float
    level: float
    luminance: bool

    @property
    def reach(self) -> int:
        """Pixels that a window adds to each axis."""
        return len(self.window) - 1


def similarity(
    a: Tensor, b: Tensor, window: Sequence[float], c1: float, c2: float, level: float, luminance: bool
) -> Tensor:
    """As `naive.similarity`: planes (P, H, W) -> (P,); once differentiable."""
    problem = Problem(tuple(window), c1, c2, level, luminance)
    if not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return _run(a, b, problem, (False, False))[0]
    scores: Tensor = _Similarity.apply(a, b, problem)
    return scores


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, problem: Problem) -> Tensor:
        scores, *gradients = _run(a, b, problem, ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        a, b = (None if g is None else g * upstream[:, None, None] for g in ctx.saved_tensors)
        return a, b, None


@torch.no_grad()
def _run(
    a: Tensor, b: Tensor, problem: Problem, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The scores (P,), and their gradients (P, H, W) by a and by b where wanted."""
    count, height, width = a.shape
    valid = height - problem.reach
    rows = _even(valid, SIDE)
    planes = max(1, min(count, PIXELS // (rows * width)))
    tasks = [(p, min(p + planes, count), 0, valid) for p in range(0, count, planes)]
    threads = torch.get_num_threads() if a.numel() > 2 * PIXELS else 1
    if threads > 1 and len(tasks) % threads:
        cut = rows * -(-valid // (rows * threads))
        tasks = [(p, q, top, min(top + cut, valid)) for p, q, _, _ in tasks for top in range(0, valid, cut)]
    work = functools.partial(_stripe, a, b, problem, wanted, rows)
    gradients = [
        torch.zeros_like(x, memory_format=torch.contiguous_format) if w else None
        for x, w in zip((a, b), wanted, strict=True)
    ]
    totals = torch.zeros(count, dtype=torch.float64)
    for (first, last, top, bottom), (sums, *stripes) in zip(tasks, _each(work, tasks, threads), strict=True):
        totals[first:last] += sums
        for whole, stripe in zip(gradients, stripes, strict=True):
            if whole is not None:
                whole[first:last, top : bottom + problem.reach] += stripe[..., :width]
    pixels = valid * (width - problem.reach)
    for whole in gradients:
        if whole is not None:
            whole /= pixels
    return (totals / pixels).to(a.dtype), gradients[0], gradients[1]


def _even(total: int, side: int) -> int:
    """The size of equal parts of at most about ``side`` that cover ``total``; the last may be shorter."""
    return -(-total // -(-total // side))


def _each(work: Any, tasks: list[tuple[int, int, int, int]], threads: int) -> Any:
    """Results in order. Several threads each take whole tasks: one hand-over a task, not one an operation."""
    if threads == 1 or len(tasks) == 1:
        yield from map(work, tasks)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # also the matrix library's, which is one for the process
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, tasks)
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def _stripe(
    a: Tensor, b: Tensor, problem: Problem, wanted: tuple[bool, bool], rows: int, task: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sums of the scores of some planes over some rows of results, and the gradients of these sums."""
    first, last, top, bottom = task
    block = _Block(last - first, rows, a.shape[-1], problem, a.dtype)
    height = bottom - top + problem.reach
    gradients = [a.new_zeros(last - first, height, block.padded) if w else None for w in wanted]
    sums = torch.zeros(last - first, dtype=torch.float64)
    for y in range(top, bottom, rows):
        if bottom - y < rows:
            block = _Block(last - first, bottom - y, a.shape[-1], problem, a.dtype)
        place = slice(y, y + block.rows + problem.reach)
        sums += block.scores(a[first:last, place], b[first:last, place])
        if any(wanted):
            parts = [None if g is None else g[:, place.start - top : place.stop - top] for g in gradients]
            block.gradients(parts[0], parts[1])
    return sums, gradients[0], gradients[1]


@functools.lru_cache(maxsize=64)
def _band(window: tuple[float, ...], size: int, dtype: torch.dtype) -> Tensor:
    """(size, size + w - 1): the matrix that slides the window along a column."""
    band = torch.zeros(size, size + len(window) - 1, dtype=dtype)
    for i, tap in enumerate(window):
        band.diagonal(i).fill_(tap)
    return band


class _Block:
    """Buffers for ``rows`` rows of results of P planes, and the two passes over them.

    Sizes: R = rows, w = window, T columns of a tile, N tiles; the last tile may reach beyond the picture, where the
    sources are zero and the results are not counted.
    """

    def __init__(self, planes: int, rows: int, width: int, problem: Problem, dtype: torch.dtype) -> None:
        self.problem, self.planes, self.rows, self.width = problem, planes, rows, width
        valid = width - problem.reach
        self.tile = _even(valid, SIDE)
        self.tiles = -(-valid // self.tile)
        self.surplus = self.tiles * self.tile - valid
        self.padded = self.tiles * self.tile + problem.reach
        self.tall, wide = rows + problem.reach, self.tile + problem.reach
        self.down = _band(problem.window, rows, dtype)  # (R, R+w-1)
        self.along = _band(problem.window, self.tile, dtype)  # (T, T+w-1)
        n, p, t = self.tiles, planes, self.tile
        self.sources = torch.zeros(4, p, self.tall, self.padded, dtype=dtype)  # s, d, s^2, d^2
        strides = (t, p * self.tall * self.padded, self.tall * self.padded, self.padded, 1)
        self.windows = self.sources.as_strided((n, 4, p, self.tall, wide), strides)
        self.filtered = torch.empty(n, 4, p, self.tall, t, dtype=dtype)
        self.maps = torch.empty(n, 4, p, rows, t, dtype=dtype)
        self.scratch = torch.empty(6, n, p, rows, t, dtype=dtype)
        self.spread: Tensor | None = None  # (N, 4, P, R+w-1, T+w-1), made when gradients are asked for

    def scores(self, a: Tensor, b: Tensor) -> Tensor:
        """Sums over the results: (P, R+w-1, W) twice -> (P,), float64; what `gradients` needs stays in the buffers."""
        problem = self.problem
        s, d = self.sources[0, ..., : self.width], self.sources[1, ..., : self.width]
        torch.add(a, b, out=s).sub_(2 * problem.level)
        torch.sub(a, b, out=d)
        torch.mul(self.sources[:2], self.sources[:2], out=self.sources[2:])
        n, t = self.tiles, self.tile
        torch.bmm(
            self.windows.view(n, -1, t + problem.reach),
            self.along.T.expand(n, -1, -1),
            out=self.filtered.view(n, -1, t),
        )
        columns = self.filtered.view(-1, self.tall, t)
        torch.bmm(self.down.expand(len(columns), -1, -1), columns, out=self.maps.view(-1, self.rows, t))
        mean_s, mean_d, var_s, var_d = self.maps.unbind(1)  # (N, P, R, T) each
        var_s.addcmul_(mean_s, mean_s, value=-1)
        var_d.addcmul_(mean_d, mean_d, value=-1)
        cs, below, luminance, bright, total, square = self.scratch
        torch.sub(var_s, var_d, out=cs).add_(2 * problem.c2)
        torch.add(var_s, var_d, out=below).add_(2 * problem.c2)  # twice the denominator, as all below
        cs.div_(below)
        score = cs
        if problem.luminance:
            torch.add(mean_s, 2 * problem.level, out=total)
            torch.mul(total, total, out=bright)
            torch.mul(mean_d, mean_d, out=square)
            torch.sub(bright, square, out=luminance).add_(2 * problem.c1)
            bright.add_(square).add_(2 * problem.c1)
            luminance.div_(bright)
            score = torch.mul(luminance, cs, out=square)
        if self.surplus:
            score[-1, ..., t - self.surplus :] = 0
        return score.sum((0, 2, 3), dtype=torch.float64)

    def gradients(self, to_a: Tensor | None, to_b: Tensor | None) -> None:
        """Add the gradients of the last `scores` to (P, R+w-1, padded W), once for each set of scores.

        With L = l cs, dL/dvar_s = l (1 - cs) / 2B, dL/dvar_d = -l (1 + cs) / 2B where B = (var_s + var_d)/2 + c2, and
        alike for the means; l is 1 where luminance does not count. var = G*x^2 - mu^2 gives mu its second part.
        """
        mean_s, mean_d, by_var_s, by_var_d = self.maps.unbind(1)
        cs, below, luminance, bright, total, square = self.scratch
        if self.problem.luminance:
            torch.div(luminance, below, out=below)
        else:
            below.reciprocal_()
        torch.mul(below, cs, out=square)
        torch.sub(below, square, out=by_var_s)
        torch.add(below, square, out=by_var_d).neg_()
        mean_s.mul_(by_var_s)
        if self.problem.luminance:
            torch.div(cs, bright, out=bright)
            torch.mul(bright, luminance, out=square)
            mean_s.addcmul_(torch.sub(bright, square, out=luminance), total, value=-1)
            mean_d.mul_(bright.add_(square).add_(by_var_d))
        else:
            mean_d.mul_(by_var_d)
        self.maps[:, :2].mul_(-2)
        if self.surplus:
            self.maps[-1, ..., self.tile - self.surplus :] = 0
        by_s, by_d = self._unfiltered()
        if to_a is not None:
            self._add(by_s + by_d, to_a)
        if to_b is not None:
            self._add(by_s - by_d, to_b)

    def _unfiltered(self) -> tuple[Tensor, Tensor]:
        """From the gradients of the maps to those of s and d, tile by tile: (N, P, R+w-1, T+w-1) twice."""
        n, t = self.tiles, self.tile
        columns, rows = self.filtered.view(-1, self.tall, t), self.maps.view(-1, self.rows, t)
        torch.bmm(self.down.T.expand(len(rows), -1, -1), rows, out=columns)
        if self.spread is None:
            self.spread = torch.empty(self.windows.shape, dtype=self.maps.dtype)
        wide = t + self.problem.reach
        torch.bmm(self.filtered.view(n, -1, t), self.along.expand(n, -1, -1), out=self.spread.view(n, -1, wide))
        by_s, by_d, by_square_s, by_square_d = self.spread.unbind(1)
        by_s.addcmul_(self.windows[:, 0], by_square_s, value=2)
        by_d.addcmul_(self.windows[:, 1], by_square_d, value=2)
        return by_s, by_d

    def _add(self, tiles: Tensor, target: Tensor) -> None:
        """Add overlapping tiles (N, P, R+w-1, T+w-1) into (P, R+w-1, padded W)."""
        n, t, reach = self.tiles, self.tile, self.problem.reach
        own = target[..., : n * t].unflatten(-1, (n, t)).movedim(-2, 0)
        own += tiles[..., :t]
        for start in range(t, t + reach, t):  # a tile narrower than the window reaches over several
            size = min(t, t + reach - start)
            beyond = target[..., start:].unfold(-1, size, t)[..., :n, :].movedim(-2, 0)
            beyond += tiles[..., start : start + size]
