"""Selective scan: every path is the loop over time, forward and backward, and no step size can break it."""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.cost import cost
from saccade.errors import InputError, UnavailableError, UsageError
from saccade.ops import selective_scan as module
from saccade.ops.selective_scan import Operands, chunked, scan_tokens, selective_scan
from saccade.runtime.threads import on_threads

#: (batch, groups, channels a group, states, length)
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 6, 8, 33), (2, 2, 3, 4, 100), (1, 2, 3, 4, 31), (3, 1, 5, 2, 2), (1, 1, 40, 16, 65)]
#: elements of a segment, least elements of a step, steps of a chunk: as shipped, and small ones that cut everything up
PLANS = [(chunked.SEGMENT, chunked.VECTOR, chunked.STEPS), (160, 40, 4), (64, 1, 4)]
#: what a processor runs beside the loop
FAST = [
    "chunked",
    pytest.param("numba", marks=pytest.mark.skipif(find_spec("numba") is None, reason="Numba is not installed")),
]
fast_paths = pytest.mark.parametrize("path", FAST)


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """All ten arguments, none at a special value."""
    batch, groups, each, states, length = shape
    chance = torch.Generator().manual_seed(seed)

    def normal(*of: int) -> Tensor:
        return torch.randn(of, generator=chance, dtype=torch.float64).to(dtype)

    channels = groups * each
    return {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).abs() * 3 - 0.05,
        "B": normal(batch, groups, states, length),
        "C": normal(batch, groups, states, length),
        "D": normal(channels),
        "delta_bias": normal(channels),
        "state": normal(batch, channels, states),
    }


def results(given_: dict[str, Tensor], **options: object) -> list[Tensor]:
    """Output, last state and all gradients of a weighted sum of both."""
    leaves = {name: value.clone().requires_grad_() for name, value in given_.items()}
    y, h = selective_scan(**leaves, softplus=True, return_state=True, **options)
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=x.dtype) for x in (y, h)]
    total = (y * weights[0]).sum() + (h * weights[1]).sum()
    return [y.detach(), h.detach(), *torch.autograd.grad(total, list(leaves.values()))]


def assert_equal(found: list[Tensor], truth: list[Tensor], close: float) -> None:
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=close * float(other.abs().max().clamp(min=1)), rtol=0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_chunked_path_is_the_loop_forward_and_backward(
    shape: tuple[int, ...], plan: tuple[int, int, int], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in zip(("SEGMENT", "VECTOR", "STEPS"), plan, strict=True):
        monkeypatch.setattr(chunked, name, value)
    for dtype, close in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        x = draw(shape, dtype)
        found, truth = (results(x, reverse=reverse, path=path) for path in ("chunked", "naive"))
        assert_equal(found, truth, close)


@pytest.mark.parametrize("path", FAST[1:])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1, 24, 3, 64), (1, 2, 49, 2, 129)], ids=str)
def test_the_compiled_path_is_the_loop_forward_and_backward(
    shape: tuple[int, ...], reverse: bool, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = importlib.import_module("saccade.ops.selective_scan.numba")
    for alone in (compiled.ALONE, 1):  # on one thread, and shared out as soon as there are two units
        monkeypatch.setattr(compiled, "ALONE", alone)
        for dtype, close in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
            x = draw(shape, dtype)
            with on_threads(3):
                found = results(x, reverse=reverse, path=path)
            assert_equal(found, results(x, reverse=reverse, path="naive"), close)


@given(
    shape=st.tuples(*(st.integers(1, n) for n in (2, 3, 5, 4, 70))),
    segment=st.integers(1, 400),
    vector=st.integers(1, 100),
    steps=st.integers(2, 20),
    reverse=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_cut_of_any_sequence_gives_the_same(
    shape: tuple[int, ...], segment: int, vector: int, steps: int, reverse: bool
) -> None:
    x = draw(shape)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SEGMENT", segment), ("VECTOR", vector), ("STEPS", steps)):
            patch.setattr(chunked, name, value)
        found = results(x, reverse=reverse, path="chunked")
    for one, truth in zip(found, results(x, reverse=reverse, path="naive"), strict=True):
        torch.testing.assert_close(one, truth, atol=1e-10, rtol=1e-10)


@fast_paths
@pytest.mark.parametrize("length", [1, 2, 31, 33, 100])
def test_short_and_odd_lengths_are_within_4e_6_of_the_loop(length: int, path: str) -> None:
    x = draw((2, 4, 6, 8, length), torch.float32)
    found, truth = (selective_scan(**x, softplus=True, path=p) for p in (path, "naive"))
    assert float((found - truth).abs().max() / truth.abs().max()) <= 4e-6


@fast_paths
@pytest.mark.parametrize("softplus", [True, False])
def test_gradients_are_exact(softplus: bool, path: str) -> None:
    x = draw((2, 2, 2, 2, 7))
    if not softplus:
        x["delta"], x["delta_bias"] = x["delta"].abs() + 0.1, x["delta_bias"].abs()
    leaves = [value.requires_grad_() for value in x.values()]

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(**dict(zip(x, values, strict=True)), softplus=softplus, return_state=True, path=path)

    assert torch.autograd.gradcheck(run, leaves)


@fast_paths
@pytest.mark.parametrize("seed", range(3))
def test_step_sizes_far_too_large_overflow_nothing(seed: int, path: str) -> None:
    """Where the form exp(cumsum) / exp(cumsum) is NaN nearly everywhere."""
    x = draw((1, 4, 24, 16, 128), torch.float32, seed)
    x["delta"] = F.softplus(4 + 2 * x["delta"])
    x["A"] = -torch.arange(1.0, 17).repeat(96, 1)
    del x["delta_bias"]
    truth = selective_scan(**{name: value.double() for name, value in x.items()}, path="naive")
    for one in (path, "naive"):
        found = selective_scan(**x, path=one).double()
        assert found.isfinite().all()
        assert float((found - truth).abs().max() / truth.abs().max()) <= 2e-7
    leaves = [value.requires_grad_() for value in x.values()]
    assert all(g.isfinite().all() for g in torch.autograd.grad(selective_scan(**x, path=path).sum(), leaves))


@fast_paths
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30, 3e38])
def test_extreme_step_sizes_give_what_double_precision_gives(size: float, softplus: bool, path: str) -> None:
    """No input, a state: what is left of it. From 88 on decays are exactly 0, whatever exp's argument overflows to."""
    x = draw((1, 1, 3, 2, 4), torch.float32)
    x["u"], x["delta"] = torch.zeros_like(x["u"]), torch.full_like(x["delta"], size)
    del x["delta_bias"]
    y, state = selective_scan(**x, softplus=softplus, return_state=True, path=path)
    wide = {name: value.double() for name, value in x.items()}
    truth, end = selective_scan(**wide, softplus=softplus, return_state=True, path="naive")
    torch.testing.assert_close(y.double(), truth, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(state.double(), end, atol=1e-6, rtol=1e-6)
    assert bool((state == 0).all()) == (size > 1)


@fast_paths
def test_long_memories_stay_within_1e_4_of_double_precision(path: str) -> None:
    x = draw((1, 1, 8, 4, 4096), torch.float32)
    x["A"] = -0.001 * torch.arange(1.0, 5).repeat(8, 1)
    truth = selective_scan(**{name: value.double() for name, value in x.items()}, softplus=True, path="naive")
    found = selective_scan(**x, softplus=True, path=path).double()
    assert float((found - truth).abs().max() / truth.abs().max()) <= 1e-4


@fast_paths
@pytest.mark.parametrize("reverse", [False, True])
def test_a_state_carried_over_pieces_is_the_scan_of_the_whole(reverse: bool, path: str) -> None:
    x = draw((2, 2, 3, 4, 90))
    del x["state"]
    options = {"softplus": True, "reverse": reverse, "return_state": True, "path": path}
    whole, end = selective_scan(**x, **options)
    pieces, state = [], None
    for now in (slice(0, 17), slice(17, 60), slice(60, 90))[:: -1 if reverse else 1]:
        cut = {name: value[..., now] if value.shape[-1] == 90 else value for name, value in x.items()}
        y, state = selective_scan(**cut, state=state, **options)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces[:: -1 if reverse else 1], -1), whole)
    torch.testing.assert_close(state, end)


def test_backwards_is_the_scan_of_the_flipped_sequence() -> None:
    x = draw((2, 2, 3, 4, 19))
    flipped = {name: value.flip(-1) if value.shape[-1] == 19 else value for name, value in x.items()}
    torch.testing.assert_close(
        selective_scan(**x, softplus=True, reverse=True), selective_scan(**flipped, softplus=True).flip(-1)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    x = draw((1, 2, 3, 4, 50), dtype)
    y, h = selective_scan(**x, softplus=True, return_state=True)
    assert (y.dtype, h.dtype) == (dtype, torch.float32)
    wide = selective_scan(**{name: value.float() for name, value in x.items()}, softplus=True)
    torch.testing.assert_close(y, wide.to(dtype), atol=0, rtol=0)


@fast_paths
def test_tokens_are_the_same_scan_with_channels_innermost(path: str) -> None:
    x = draw((2, 3, 4, 5, 21))
    y, h = selective_scan(**x, softplus=True, return_state=True)

    def grouped(name: str, dim: int) -> Tensor:
        return x[name].unflatten(dim, (3, 4))

    operands = Operands(
        *(grouped(name, 1).permute(0, 3, 1, 2) for name in ("u", "delta")),
        grouped("A", 0),
        *(x[name].permute(0, 3, 1, 2) for name in ("B", "C")),
    )
    rest = {"D": grouped("D", 0), "delta_bias": grouped("delta_bias", 0), "state": grouped("state", 1)}
    for one in (path, "naive"):
        tokens, state = scan_tokens(operands, **rest, softplus=True, path=one)
        torch.testing.assert_close(tokens.permute(0, 2, 3, 1).flatten(1, 2), y)
        torch.testing.assert_close(state.flatten(1, 2), h)


@fast_paths
def test_an_empty_batch_gives_an_empty_one_and_its_gradients(path: str) -> None:
    x = {name: value.requires_grad_() for name, value in draw((0, 2, 3, 4, 5)).items()}
    for one in (path, "naive"):
        y, h = selective_scan(**x, softplus=True, return_state=True, path=one)
        assert y.shape == (0, 6, 5)
        assert h.shape == (0, 6, 4)
    grads = torch.autograd.grad(selective_scan(**x, softplus=True, path=path).sum(), [x["u"], x["A"]])
    assert not any(g.any() for g in grads)


# -- what others see of the operator


@pytest.mark.slow
@fast_paths
def test_compilers_may_rely_on_its_declaration(path: str) -> None:
    batch, length, groups, each, states = 2, 9, 2, 3, 4
    chance = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=chance).requires_grad_()

    tokens, rates = (batch, length, groups, each), (groups, states, each)
    weights, state = (batch, length, groups, states), (batch, groups, states, each)
    with torch.no_grad():
        rate = -drawn(*rates)
    arguments = (drawn(*tokens), drawn(*tokens), rate.requires_grad_(), drawn(*weights), drawn(*weights), drawn(*state))
    torch.library.opcheck(torch.ops.saccade.selective_scan.default, (*arguments, True, False, True, path))


def test_the_ledger_counts_four_for_each_state_of_each_channel() -> None:
    x = draw((1, 4, 6, 8, 100), torch.float32)
    assert cost(lambda: selective_scan(**x, softplus=True), timed=False).macs == 4 * 8 * 24 * 100
    assert cost(lambda u: selective_scan(**{**x, "u": u}, softplus=True), x["u"], timed=False).activations == 24 * 100


# -- the path that is chosen


def test_small_scans_and_double_precision_take_the_chunked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "works", lambda _: True)
    batch, groups, each, states = 1, 2, 8, 16
    for dtype, length, name in (
        (torch.float32, module.WORTH // (groups * each * states), "numba"),
        (torch.float32, module.WORTH // (groups * each * states) - 1, "chunked"),
        (torch.float64, module.WORTH, "chunked"),
    ):
        u = torch.empty(batch, length, groups, each, dtype=dtype)
        if name == "numba":
            pytest.importorskip("numba")
        chosen = module._runner("auto", Operands(u, u, u.new_empty(groups, states, each), u, u))
        assert chosen.__name__.endswith(name)


def test_a_numba_that_refuses_to_load_leaves_the_chunked_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does beside a NumPy newer than itself."""
    monkeypatch.setitem(sys.modules, "saccade.ops.selective_scan.numba", None)
    monkeypatch.setattr(module, "WORTH", 0)
    module.works.cache_clear()
    try:
        x = draw((1, 2, 3, 4, 20), torch.float32)
        torch.testing.assert_close(
            selective_scan(**x, softplus=True), selective_scan(**x, softplus=True, path="chunked"), atol=0, rtol=0
        )
    finally:
        module.works.cache_clear()


def test_the_paths_agree_on_a_whole_network_layer() -> None:
    pytest.importorskip("numba")
    x = draw((1, 4, 24, 8, 400), torch.float32)
    assert_equal(results(x, path="numba"), results(x, path="chunked"), 2e-6)


def test_the_compiled_exponential_is_within_2_units_in_the_last_place() -> None:
    pytest.importorskip("numba")
    import numba
    import numpy as np

    from saccade.ops.selective_scan import numba as compiled

    @numba.njit
    def each(x: np.ndarray, out: np.ndarray) -> None:
        for i in range(x.size):
            out[i] = compiled._exp2_single(x[i])

    x = -np.random.default_rng(0).uniform(0, 124, 100_000).astype(np.float32)
    x[:4] = 0, -0.5, -1, -124
    out, truth = np.empty_like(x), np.exp2(x.astype(np.float64))
    each(x, out)
    assert float((np.abs(out - truth) / np.spacing(truth.astype(np.float32))).max()) <= 2
    lost = np.array([-125.5, -1000, -math.inf], np.float32)
    each(lost, out)
    assert not out[:3].any()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_only_costs_the_compilation() -> None:
    pytest.importorskip("numba")
    code = (
        "import numba.core.caching as c\n"
        "for locator in c.CacheImpl._locator_classes: locator.from_function = classmethod(lambda *a: None)\n"
        "import torch; from saccade.ops.selective_scan import selective_scan as s\n"
        "x = torch.ones(1, 2, 5); w = torch.ones(1, 1, 1, 5)\n"
        "print(float(s(x, x, -x[0, :, :1], w, w, path='numba').sum()) > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout.strip() == "True", done.stderr


# -- refusals


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"u": torch.ones(2, 6, 5, dtype=torch.int64)}, "floating point"),
        ({"u": torch.ones(6, 5)}, "floating point"),
        ({"delta": torch.ones(2, 6, 4)}, r"delta is \(2, 6, 4\)"),
        ({"A": -torch.ones(6, 3)}, "A is"),
        ({"B": torch.ones(2, 4, 4, 5)}, "groups that divide u's 6 channels"),
        ({"C": torch.ones(2, 2, 4, 6)}, "C is"),
        ({"D": torch.ones(5)}, "D is"),
        ({"delta_bias": torch.ones(2)}, "delta_bias is"),
        ({"state": torch.ones(2, 6, 5)}, "state is"),
        ({"A": torch.zeros(6, 4)}, "negative and finite"),
        ({"A": torch.full((6, 4), -torch.inf)}, "negative and finite"),
        ({"A": torch.full((6, 4), torch.nan)}, "negative and finite"),
        ({"delta": torch.full((2, 6, 5), torch.nan)}, "not a number"),
        ({"delta": torch.full((2, 6, 5), torch.inf)}, "infinite"),
        ({"delta_bias": torch.full((6,), torch.nan)}, "not a number"),
        ({"delta_bias": torch.full((6,), torch.inf)}, "infinite"),
        ({"A": -torch.ones(6, 4, dtype=torch.complex64)}, "real numbers"),
        ({"C": torch.ones(2, 2, 4, 5, dtype=torch.complex64)}, "real numbers"),
    ],
)
def test_what_makes_no_scan_is_refused(changed: dict[str, Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        selective_scan(**{**draw((2, 2, 3, 4, 5), torch.float32), **changed}, softplus=True)


def test_steps_back_in_time_and_empty_sequences_are_refused() -> None:
    x = draw((2, 2, 3, 4, 5), torch.float32)
    with pytest.raises(InputError, match="positive without softplus"):
        selective_scan(**x)
    with pytest.raises(InputError, match="positive without softplus"):
        selective_scan(**{**x, "delta": torch.full((2, 6, 5), 0.1), "delta_bias": torch.full((6,), -5.0)})
    with pytest.raises(InputError, match="at least one element"):
        selective_scan(**draw((2, 2, 3, 4, 0), torch.float32), softplus=True)
    with pytest.raises(UsageError, match="'fast'"):
        selective_scan(**x, softplus=True, path="fast")
    with pytest.raises(InputError, match="scan of tokens"):
        scan_tokens(Operands(*(x[name] for name in ("u", "delta", "A", "B", "C"))), softplus=True)


@pytest.mark.parametrize("path", ["triton", "numba"])
def test_without_the_package_its_path_is_unavailable(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match=f"pip install {path}"):
        selective_scan(**draw((1, 1, 1, 1, 2), torch.float32), softplus=True, path=path)


# -- the kernels, in Triton's interpreter

INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_selective_scan import draw, results
from saccade.ops.selective_scan import triton as kernels
kernels.TILE, kernels.CHANNELS, kernels.FLAT = 8, 2, 16
for shape, reverse in (((1, 2, 3, 3, 11), True), ((2, 1, 1, 1, 9), False)):
    x = draw(shape, torch.float32)
    found, truth = (results(x, reverse=reverse, path=path) for path in ("triton", "naive"))
    for one, other in zip(found, truth, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5 * float(other.abs().max().clamp(min=1)), rtol=0)
print("equal")
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_are_the_loop_in_tritons_interpreter() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED, here],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    if "TRITON_INTERPRET" in done.stderr or "0 active drivers" in done.stderr:
        pytest.skip(f"Triton's interpreter does not run here: {done.stderr.strip().splitlines()[-1]}")
    assert done.stdout.strip() == "equal", done.stderr


# -- speed


def seconds(call: Callable[[], object], rounds: int = 5) -> float:
    call()
    taken = []
    for _ in range(rounds):
        began = time.thread_time()
        call()
        taken.append(time.thread_time() - began)
    return min(taken)


def loop_over(path: str, backward: bool) -> float:
    """Seconds of the sequential loop over those of a path, one thread, L = 4096, 192 channels."""
    x = draw((1, 4, 48, 16, 4096), torch.float32)
    taken = []
    with on_threads(1):
        for one in ("naive", path):
            if backward:
                leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
                call = lambda one=one, x=leaves: selective_scan(**x, softplus=True, path=one).sum().backward()  # noqa: E731
                taken.append(seconds(call, 2))
            else:
                with torch.no_grad():
                    taken.append(seconds(lambda one=one: selective_scan(**x, softplus=True, path=one)))
    return taken[0] / taken[1]


#: what runs where Numba is not installed; the loop beside it reads channels innermost and takes half its former time
WITHOUT_NUMBA = "without Numba 2.7 to 3.7 times forward and about 5 with gradients; 5 is what was asked for"
SPEEDS = ["auto", *FAST[1:], pytest.param("chunked", marks=pytest.mark.xfail(reason=WITHOUT_NUMBA, strict=False))]


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("path", SPEEDS)
def test_with_gradients_a_fast_path_takes_a_fifth_of_the_loop(path: str) -> None:
    assert loop_over(path, backward=True) >= 5


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.parametrize("path", SPEEDS)
def test_forward_a_fast_path_takes_a_fifth_of_the_loop(path: str) -> None:
    assert loop_over(path, backward=False) >= 5
