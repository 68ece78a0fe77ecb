"""Large depthwise convolution: every way is the sum over taps, forward and backward, and costs what it is."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from saccade.cost import cost
from saccade.errors import InputError, UnavailableError, UsageError
from saccade.ops import large_depthwise as module
from saccade.ops.large_depthwise import LargeDepthwise, cpu, large_depthwise

pytestmark = pytest.mark.usefixtures("one_thread")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def given(*shape: int, kernel: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(kernel + sum(shape))
    sizes = (shape, (shape[1], 1, kernel, kernel), (shape[1],))
    x, weight, bias = (torch.randn(size, generator=chance, dtype=dtype) for size in sizes)
    return x, weight, bias


def all_of(path: str, x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1) -> list[Tensor]:
    """The result, and the gradients by a loss that weighs every number differently."""
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, bias))
    y = large_depthwise(x, weight, bias, dilation=dilation, path=path)
    share = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * share).sum(), (x, weight, bias))]


def near(found: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == want.shape
    torch.testing.assert_close(found, want, rtol=0, atol=tolerance * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize(
    "shape", [(1, 3, 9, 8), (2, 4, 20, 31), (1, 2, 1, 40), (3, 5, 14, 14), (2, 1, 48, 7), (1, 6, 29, 27)], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=("planes", "last"))
def test_all_ways_are_the_sum_over_taps_forward_and_backward(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    for kernel, dilation in itertools.chain(
        ((k, 1) for k in (1, 3, 7, 9, 13, 15, 17, 31)), ((3, 2), (5, 2), (7, 3), (3, 7), (3, 9))
    ):
        x, weight, bias = given(*shape, kernel=kernel)
        x = x.contiguous(memory_format=layout)
        want = all_of("naive", x, weight, bias, dilation)
        for path in ("fast", "torch", "auto"):
            for found, true in zip(all_of(path, x, weight, bias, dilation), want, strict=True):
                near(found, true)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_take_torchs_own(dtype: torch.dtype) -> None:
    x, weight, bias = given(1, 3, 11, 12, kernel=17, dtype=dtype)
    near(large_depthwise(x, weight, bias), large_depthwise(x, weight, bias, path="torch"), 0)
    near(large_depthwise(x, weight), large_depthwise(x, weight, path="naive"), 1e-12 if x.itemsize == 8 else 0.1)
    with pytest.raises(UsageError, match="float32"):
        large_depthwise(x, weight, path="fast")


@pytest.mark.parametrize("layout", LAYOUTS, ids=("planes", "last"))
@pytest.mark.parametrize(("side", "kernel"), [(64, 31), (70, 31), (40, 39)])
def test_the_fft_is_the_convolution(side: int, kernel: int, layout: torch.memory_format) -> None:
    x, weight, _ = given(2, 3, side, side + 3, kernel=kernel)
    x = x.contiguous(memory_format=layout)
    found = cpu._by_fft(x, weight)
    near(found, large_depthwise(x, weight, path="torch"), 2e-5)
    assert found.is_contiguous(memory_format=layout)


def test_large_kernels_on_large_maps_go_by_fft_and_small_ones_do_not() -> None:
    wide, small = torch.empty(1, 1, 128, 128), torch.empty(1, 1, 14, 14)
    assert cpu._fft_wins(wide.shape, 31)
    assert not cpu._fft_wins(wide.shape, 13)
    assert not cpu._fft_wins(small.shape, 31)
    assert [cpu.fft_size(n) for n in (1, 7, 11, 61, 127, 241)] == [1, 8, 12, 64, 128, 243]


def test_taps_beyond_the_border_are_not_counted() -> None:
    for side, kernel in itertools.product((1, 4, 9, 30), (1, 3, 9, 31)):
        reach = kernel // 2
        counted = sum(1 for h in range(side) for i in range(-reach, reach + 1) if 0 <= h + i < side)
        assert cpu._taps(side, kernel) == counted


@pytest.mark.parametrize("layout", LAYOUTS, ids=("planes", "last"))
def test_the_result_has_the_layout_of_the_input(layout: torch.memory_format) -> None:
    for kernel, dilation in ((7, 1), (13, 1), (17, 1), (31, 1), (7, 3)):
        x, weight, bias = given(2, 8, 64, 66, kernel=kernel)
        y = large_depthwise(x.contiguous(memory_format=layout), weight, bias, dilation=dilation)
        assert y.is_contiguous(memory_format=layout)


def test_only_the_gradients_that_are_wanted_are_taken() -> None:
    for wants in ((True, False), (False, True)):
        x, weight, _ = given(1, 4, 40, 40, kernel=17)
        x, weight = x.requires_grad_(wants[0]), weight.requires_grad_(wants[1])
        large_depthwise(x, weight).sum().backward()
        assert ((x.grad is not None), (weight.grad is not None)) == wants


def test_the_ledger_counts_the_convolution_and_not_the_way_it_goes() -> None:
    layer = LargeDepthwise(8, 13)
    for layout in LAYOUTS:
        x = torch.randn(1, 8, 32, 32).contiguous(memory_format=layout)
        assert cost(layer, x, timed=False).macs == 8 * 32 * 32 * 13 * 13
    for kernel in (17, 31):
        x, weight, _ = given(1, 8, 64, 64, kernel=kernel)
        assert cost(lambda x, w=weight: large_depthwise(x, w), x, timed=False).macs == 8 * 64 * 64 * kernel * kernel


def test_it_compiles_and_is_torchs_own_in_graphs() -> None:
    layer, x = LargeDepthwise(4, 17, dilation=2).eval(), torch.randn(1, 4, 40, 41)
    torch._dynamo.reset()
    near(torch.compile(layer, backend="aot_eager", fullgraph=True)(x).detach(), layer(x).detach())
    graph = torch.export.export(layer, (x,)).graph
    assert [n for n in graph.nodes if "conv2d" in str(n.target)]
    assert not [n for n in graph.nodes if "saccade" in str(n.target)]


# -- the kernels of a GPU

SMALL = {"LANES": 16, "PRODUCTS": 64, "PROGRAMS": 6, "CHANNELS": 4}  # numbers of a program that cut everything up
#: of what every dtype holds exactly, relative; the interpreter rounds bfloat16 towards zero
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def kernels(**constants: int) -> ModuleType:
    found = importlib.import_module("saccade.ops.large_depthwise.triton")
    for name, value in constants.items():
        assert hasattr(found, name)
        setattr(found, name, value)
    return found


def agree(shape: tuple[int, ...], kernel: int, dilation: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    x, weight, bias = given(*shape, kernel=kernel, dtype=dtype)
    x = x.contiguous(memory_format=layout)
    want = all_of("naive", *(t.double() for t in (x, weight, bias)), dilation)
    for found, true in zip(all_of("triton", x, weight, bias, dilation), want, strict=True):
        assert found.dtype == dtype
        near(found.double(), true, CLOSE[dtype])


def kernels_agree_in_layouts_and_precisions() -> None:
    agree((1, 2, 4, 6), 13, 1, torch.float32, LAYOUTS[0])
    agree((1, 3, 5, 4), 7, 3, torch.float32, LAYOUTS[1])
    for (dtype, layout), dilation in zip(itertools.product(CLOSE, LAYOUTS), itertools.cycle((1, 2)), strict=False):
        agree((2, 3, 4, 3), 3, dilation, dtype, layout)
    kernels(**SMALL)
    for layout in LAYOUTS:
        agree((2, 3, 3, 7), 3, 1, torch.float32, layout)


def kernels_agree_on_many_sizes() -> None:
    for kernel, dilation in ((13, 1), (17, 1), (31, 1), (7, 3)):
        for layout in LAYOUTS:
            agree((2, 3, 6, 5), kernel, dilation, torch.float32, layout)
    kernels(**SMALL)
    for kernel, dilation in ((1, 1), (3, 1), (5, 2), (9, 1)):
        for layout in LAYOUTS:
            agree((2, 3, 5, 7), kernel, dilation, torch.float32, layout)
            agree((1, 5, 1, 9), kernel, dilation, torch.bfloat16, layout)
            agree((3, 1, 6, 2), kernel, dilation, torch.float16, layout)


def kernels_repeat_to_the_last_bit_and_take_what_is_not_dense() -> None:
    x, weight, bias = given(2, 4, 3, 4, kernel=3)
    first, second = (all_of("triton", x, weight, bias) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    cut, turned = x[:, ::2, :, 1:3], x.transpose(2, 3)
    for part in (cut, turned):
        channels = part.shape[1]
        want = all_of("naive", part, weight[:channels], bias[:channels])
        for found, true in zip(all_of("triton", part, weight[:channels], bias[:channels]), want, strict=True):
            near(found, true)
    assert not all_of("triton", x[:0], weight, bias)[2].any()


def the_face_chooses_kernels_and_follows_autocast() -> None:
    module.runs_on_triton = lambda *given: True  # as if this were a GPU
    x, weight, bias = given(2, 3, 5, 6, kernel=9)
    layer, small = LargeDepthwise(3, 9), LargeDepthwise(3, 7)
    assert module._chosen(x.half(), layer.weight.half(), 1) == "triton"
    assert module._chosen(x.half(), small.weight.half(), 1) == "torch"  # spans 7 pixels
    assert module._chosen(x.half(), small.weight.half(), 2) == "triton"  # spans 13
    near(large_depthwise(x, weight), large_depthwise(x, weight, path="naive"), CLOSE[torch.float32])
    with torch.autocast("cpu", torch.bfloat16):
        found = large_depthwise(x, weight, bias, path="triton")
    assert found.dtype == torch.bfloat16
    near(found.float(), large_depthwise(x, weight, bias, path="naive"), 2**-5)
    assert cost(lambda x: large_depthwise(x, weight, path="triton"), x, timed=False).macs == 2 * 3 * 5 * 6 * 81


def kernels_compile() -> None:
    for dtype, layout in itertools.product((torch.float32, torch.bfloat16), LAYOUTS):
        x, weight, bias = (t.to(dtype) for t in given(2, 24, 28, 28, kernel=31))
        all_of("triton", x.contiguous(memory_format=layout), weight, bias)


def test_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(
        kernels_agree_in_layouts_and_precisions,
        kernels_repeat_to_the_last_bit_and_take_what_is_not_dense,
        the_face_chooses_kernels_and_follows_autocast,
    )


@pytest.mark.slow
def test_many_sizes_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_on_many_sizes)


def test_the_kernels_compile_for_a_gpu(for_absent_gpu: Callable[..., None]) -> None:
    for_absent_gpu(kernels_compile)


def test_triton_takes_one_dtype_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, _ = given(1, 2, 4, 4, kernel=3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UsageError, match="one dtype"):
        large_depthwise(x.half(), weight, path="triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install triton"):
        large_depthwise(x, weight, path="triton")


def test_what_does_not_go_together_is_refused() -> None:
    x, weight, _ = given(1, 4, 9, 9, kernel=5)
    for wrong, kernel in ((x[0], weight), (x.int(), weight), (x[:, :3], weight), (x, weight[0])):
        with pytest.raises(InputError, match="depthwise"):
            large_depthwise(wrong, kernel)
    for options in ({"dilation": 0}, {"path": "fastest"}):
        with pytest.raises(UsageError):
            large_depthwise(x, weight, **options)
    for kernel in (weight[..., :4], weight[..., :4, :4]):
        with pytest.raises(UsageError, match="odd"):
            large_depthwise(x, kernel)
    for options in ({"kernel": 4}, {"kernel": 5, "dilation": 0}, {"kernel": -1}):
        with pytest.raises(UsageError, match="odd"):
            LargeDepthwise(4, **options)
