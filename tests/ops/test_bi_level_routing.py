"""Bi-level routing attention: gathering and kernels are the masked path, forward and backward; what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from agreement import agrees
from torch import Tensor

from saccade.cost import cost
from saccade.errors import InputError, UsageError
from saccade.ops import bi_level_routing as module
from saccade.ops.bi_level_routing import (
    bi_level_routing_attention,
    from_regions,
    gathered,
    route,
    routed_attention,
    to_regions,
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("batch", "regions", "tokens", "keys", "dim", "width", "heads", "topk"),
    [(1, 4, 1, 1, 4, 4, 1, 1), (2, 9, 6, 6, 8, 8, 2, 3), (1, 16, 4, 2, 6, 12, 3, 16), (3, 5, 7, 7, 8, 16, 4, 2)],
)
def test_gathering_is_masking(
    batch: int,
    regions: int,
    tokens: int,
    keys: int,
    dim: int,
    width: int,
    heads: int,
    topk: int,
    soft: bool,
    dtype: torch.dtype,
) -> None:
    q = draw(batch, regions, tokens, dim, seed=1, dtype=dtype)
    k = draw(batch, regions, keys, dim, seed=2, dtype=dtype)
    v = draw(batch, regions, keys, width, seed=3, dtype=dtype)
    indices, affinity = route(q.mean(2), k.mean(2), topk)
    weights = affinity.softmax(-1) if soft else None
    found = []
    for fast in (True, False):
        inputs = [t.clone().requires_grad_() for t in (q, k, v)]
        w = None if weights is None else weights.clone().requires_grad_()
        out = routed_attention(*inputs, indices, heads=heads, scale=0.4, weights=w, fast=fast)
        out.square().sum().backward()
        found.append([out.detach(), *(t.grad for t in inputs), *([w.grad] if w is not None else [])])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for fast, truth in zip(*found, strict=True):
        torch.testing.assert_close(fast, truth, rtol=tolerance, atol=tolerance * max(1.0, float(truth.abs().max())))


# -- the kernels of a GPU

#: beside the masked path in double precision, relative; half precision rounds attention before it multiplies values,
#: and the interpreter rounds bfloat16 towards zero
CLOSE = {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}
CASES = [(1, 4, 1, 1, 4, 4, 1, 1), (2, 5, 6, 6, 8, 8, 2, 3), (1, 3, 20, 18, 6, 12, 3, 2), (1, 4, 4, 17, 3, 2, 1, 4)]


def agree(case: tuple[int, ...], dtype: torch.dtype, soft: bool) -> None:
    kernels = importlib.import_module("saccade.ops.bi_level_routing.triton")
    batch, regions, tokens, keys, dim, width, heads, topk = case
    sizes = ((tokens, dim), (keys, dim), (keys, width))
    given = [draw(batch, regions, *size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]
    indices, affinity = route(*(t.double().mean(2) for t in given[:2]), topk)
    given += [affinity.softmax(-1).to(dtype)] if soft else []

    def by(path: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v, w=None: path(q, k, v, indices, heads=heads, scale=0.4, weights=w)

    agrees(by(kernels.attended), by(module.naive.masked_attention), given, dtype, CLOSE[dtype])


def kernels_agree_in_all_precisions() -> None:
    agree(CASES[3], torch.float32, True)
    for dtype in CLOSE:
        agree(CASES[0], dtype, True)
    importlib.import_module("saccade.ops.bi_level_routing.triton").BYTES = 16  # 16 queries and keys at a time
    agree(CASES[2], torch.float32, False)


def kernels_agree_on_many_sizes() -> None:
    kernels = importlib.import_module("saccade.ops.bi_level_routing.triton")
    for kernels.BYTES in (4096, 16):
        for case in CASES:
            for dtype in CLOSE:
                for soft in (False, True):
                    agree(case, dtype, soft)


def the_face_chooses_kernels_and_the_ledger_counts_them() -> None:
    module.runs_on_triton = lambda *given: True  # as if this were a GPU
    q, k, v = (draw(1, 4, 6, 4, seed=i) for i in range(3))
    told = {"grid": (2, 2), "topk": 2, "heads": 2}
    want = bi_level_routing_attention(q, k, v, **told, fast=False)
    torch.testing.assert_close(bi_level_routing_attention(q, k, v, **told), want, rtol=1e-5, atol=1e-5)
    macs = [cost(lambda *maps: bi_level_routing_attention(*maps, **told), q, k, v, timed=False).macs]
    assert module._path(None, q.double()) is gathered.gathered_attention
    module.runs_on_triton = lambda *given: False
    macs += [cost(lambda *maps: bi_level_routing_attention(*maps, **told), q, k, v, timed=False).macs]
    assert macs == [2 * 24 * 12 * 4 + 4 * 4 * 4] * 2


def kernels_compile() -> None:
    kernels = importlib.import_module("saccade.ops.bi_level_routing.triton")
    for dtype in (torch.float32, torch.float16):
        q, k, v = (draw(2, 49, 64, 64, seed=i, dtype=dtype).requires_grad_() for i in range(3))
        indices, affinity = route(q.mean(2), k.mean(2), 4)
        kernels.attended(q, k, v, indices, heads=2, scale=0.2, weights=affinity).sum().backward()


def test_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_in_all_precisions, the_face_chooses_kernels_and_the_ledger_counts_them)


@pytest.mark.slow
def test_many_sizes_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_on_many_sizes)


def test_the_kernels_compile_for_a_gpu(for_absent_gpu: Callable[..., None]) -> None:
    for_absent_gpu(kernels_compile)


# -- the rest


def test_a_few_regions_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (draw(2, 9, 4, 8, seed=i) for i in range(3))
    indices, affinity = route(q.mean(2), k.mean(2), 3)
    told = {"heads": 2, "scale": 0.3, "weights": affinity.softmax(-1)}
    whole = routed_attention(q, k, v, indices, **told)
    for numbers in (1, 4 * 3 * 16 * 5):  # one region, then five at a time of 18
        monkeypatch.setattr(gathered, "NUMBERS", numbers)
        torch.testing.assert_close(routed_attention(q, k, v, indices, **told), whole, rtol=1e-6, atol=1e-6)


def test_with_all_regions_it_is_attention_to_everything() -> None:
    q, k, v = (draw(2, 12, 8, 16, seed=i) for i in range(3))
    found = bi_level_routing_attention(q, k, v, (3, 4), 12, heads=4)
    q, k, v = (t.flatten(1, 2).unflatten(2, (4, 4)).transpose(1, 2) for t in (q, k, v))
    want = F.scaled_dot_product_attention(q, k, v, scale=16**-0.5).transpose(1, 2).reshape(found.shape)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def test_regions_that_change_places_take_their_outputs_along() -> None:
    q, k, v = (draw(1, 9, 4, 8, seed=i) for i in range(3))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(7))

    def attend(*parts: Tensor) -> Tensor:
        indices, _ = route(parts[0].mean(2), parts[1].mean(2), 3)
        return routed_attention(*parts, indices, heads=2, scale=0.3)

    torch.testing.assert_close(attend(*(t[:, order] for t in (q, k, v))), attend(q, k, v)[:, order])


def test_regions_are_row_major_and_come_back() -> None:
    x = torch.arange(2 * 6 * 8 * 3.0).view(2, 6, 8, 3)
    cut = to_regions(x, (3, 2))
    assert torch.equal(cut[1, 3], x[1, 2:4, 4:8].reshape(8, 3))
    assert torch.equal(from_regions(cut, (3, 2), (6, 8)), x)


def test_affinities_descend() -> None:
    _, affinity = route(draw(2, 9, 4), draw(2, 9, 4, seed=1), 5)
    assert (affinity.diff(dim=-1) <= 0).all()


def test_no_gradient_passes_the_routing_of_maps() -> None:
    q, k = draw(1, 4, 4, 2).requires_grad_(), draw(1, 4, 4, 2, seed=1).requires_grad_()
    v = torch.zeros(1, 4, 4, 2)  # the output does not depend on scores, only the choice of regions does
    bi_level_routing_attention(q, k, v, (2, 2), 2).sum().backward()
    assert q.grad is not None
    assert float(q.grad.abs().max()) == 0


def test_the_masked_matrix_never_exists() -> None:
    """Peak bytes of a 56 x 56 map stay far below those of its 3136 x 3136 scores."""
    q, k, v = (draw(1, 56, 56, 16, seed=i) for i in range(3))
    told = cost(lambda a, b, c: bi_level_routing_attention(a, b, c, (7, 7), 4, heads=2), q, k, v, timed=False)
    assert told.peak_bytes < 0.15 * 2 * 3136**2 * 4
    naive = cost(
        lambda a, b, c: bi_level_routing_attention(a, b, c, (7, 7), 4, heads=2, fast=False), q, k, v, timed=False
    )
    assert naive.peak_bytes > 2 * 3136**2 * 4


def test_it_is_counted_as_the_part_of_full_attention_that_it_is() -> None:
    x = torch.empty(1, 28, 28, 16, device="meta")
    few = cost(lambda t: bi_level_routing_attention(t, t, t, (7, 7), 4), x).macs
    routing = 49 * 49 * 16
    assert few - routing == 2 * 784 * 784 * 16 * 4 // 49


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"topk": 0}, UsageError, "topk is 0"),
        ({"topk": 5}, UsageError, "there are 4 regions"),
        ({"grid": (3, 2)}, InputError, "4 x 4 does not divide into 2 x 3"),
        ({"heads": 3}, UsageError, "3 heads"),
        ({"value": torch.zeros(1, 4, 6, 4)}, InputError, "value is"),
        ({"key": torch.zeros(2, 4, 4, 4)}, InputError, "value is"),
        ({"query": torch.zeros(1, 4, 4)}, InputError, "query and key are"),
        ({"key": torch.zeros(1, 4, 4, 6)}, InputError, "query and key are"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, error: type[Exception], says: str) -> None:
    x = torch.zeros(1, 4, 4, 4)
    told = {"query": x, "key": x, "value": x, "grid": (2, 2), "topk": 2, **change}
    with pytest.raises(error, match=says):
        bi_level_routing_attention(**told)


def test_weights_go_with_the_indices() -> None:
    parts, indices = [torch.zeros(1, 4, 4, 4)] * 3, torch.zeros(1, 4, 2, dtype=torch.long)
    with pytest.raises(InputError, match="weights"):
        routed_attention(*parts, indices, heads=1, scale=1, weights=torch.ones(1, 4, 3))
