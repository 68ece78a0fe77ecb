"""Translation-variant convolution: shifted views give what unfolding gives, forward and backward; what is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from agreement import agrees
from torch import Tensor

import saccade.ops.tvconv as module
from saccade.cost import cost
from saccade.errors import InputError, UsageError
from saccade.ops.tvconv import output_size, shifted, tvconv
from saccade.runtime.threads import on_threads


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "kernel", "stride"),
    [(1, 1, 1, 1, 3, 1), (2, 3, 7, 9, 3, 1), (2, 4, 12, 15, 3, 2), (1, 2, 6, 8, 5, 1), (3, 2, 11, 7, 5, 3)],
)
def test_shifting_is_unfolding(
    batch: int, channels: int, height: int, width: int, kernel: int, stride: int, bias: bool, dtype: torch.dtype
) -> None:
    size = output_size(height, width, stride)
    told = [draw(batch, channels, height, width), draw(kernel**2, channels, *size, seed=1)]
    told += [draw(channels, *size, seed=2)] if bias else []
    found = []
    for fast in (True, False):
        inputs = [t.to(dtype).requires_grad_() for t in told]
        out = tvconv(*inputs, stride=stride, fast=fast)
        out.square().sum().backward()
        with torch.no_grad():
            near(tvconv(*inputs, stride=stride, fast=fast), out)
        found.append([out, *(t.grad for t in inputs)])
    for fast, truth in zip(*found, strict=True):
        near(fast, truth)


def near(a: Tensor, b: Tensor) -> None:
    tolerance = 1e-5 if a.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_same_kernel_everywhere_is_a_depthwise_convolution(stride: int) -> None:
    x, kernel = draw(2, 5, 8, 10), draw(5, 1, 3, 3, seed=1)
    weight = kernel.flatten(1).T[:, :, None, None].expand(-1, -1, *output_size(8, 10, stride))
    near(tvconv(x, weight, stride=stride), F.conv2d(x, kernel, stride=stride, padding=1, groups=5))


def test_layouts_and_pictures_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the path by shifted views, which runs what is not compiled."""
    monkeypatch.setattr(module, "works", lambda _: False)
    x, weight, bias = draw(5, 6, 8, 9), draw(9, 6, 8, 9, seed=1), draw(6, 8, 9, seed=2)
    want = tvconv(x, weight, bias, fast=False)
    for numbers, many in ((1, 2), (2 * 6 * 8 * 9, 2), (1, 9), (2 * 6 * 8 * 9, 9), (1 << 20, 2)):
        monkeypatch.setattr(shifted, "MANY", many)
        monkeypatch.setattr(shifted, "NUMBERS", numbers)
        near(tvconv(x, weight, bias), want)
        near(tvconv(x.contiguous(memory_format=torch.channels_last), weight, bias), want)
        near(
            tvconv(draw(6, 5, 8, 9).transpose(0, 1), weight),
            tvconv(draw(6, 5, 8, 9).transpose(0, 1), weight, fast=False),
        )


@pytest.mark.parametrize("channels", [1, 5])
def test_exported_graphs_take_large_inputs_in_parts(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return tvconv(x, weight, stride=2)

    x, weight = draw(1, channels, 8, 6), draw(9, channels, 4, 3, seed=1)
    want = tvconv(x, weight, stride=2, fast=False)
    counts = []
    for large in (1 << 21, 0):
        monkeypatch.setattr(shifted, "LARGE", large)
        program = torch.export.export(Layer(), (x,))
        near(program.module()(x), want)
        counts.append(sum("cat" in str(node.target) for node in program.graph.nodes))
    assert counts == [0, 1]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 3, 7, 9), (3, 33, 12, 15), (1, 2, 1, 5), (1, 2, 8, 2)])
@pytest.mark.parametrize("bias", [None, (1, 1), "whole"])
@pytest.mark.parametrize("last", [False, True])
def test_the_compiled_path_is_unfolding(size: tuple[int, ...], stride: int, bias: object, last: bool) -> None:
    pytest.importorskip("numba")
    compiled = importlib.import_module("saccade.ops.tvconv.numba")
    out = output_size(size[2], size[3], stride)
    x, weight = draw(*size), draw(9, size[1], *out, seed=1)
    offset = None if bias is None else draw(1, size[1], *(out if bias == "whole" else (1, 1)), seed=2)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert compiled.takes(x, weight, offset)
    found = compiled.tvconv3(x, weight, offset, stride)
    near(found, tvconv(x, weight, offset, stride=stride, fast=False))
    assert found.is_contiguous() or found.is_contiguous(memory_format=torch.channels_last)


def test_all_threads_together_fill_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    compiled = importlib.import_module("saccade.ops.tvconv.numba")
    monkeypatch.setattr(compiled, "ALONE", 1)
    x, weight = draw(2, 5, 7, 6), draw(9, 5, 7, 6, seed=1)
    with on_threads(3):
        for y in (x, x.contiguous(memory_format=torch.channels_last)):
            near(compiled.tvconv3(y, weight, None, 1), tvconv(x, weight, fast=False))


def test_the_compiled_path_leaves_what_it_is_not_made_for() -> None:
    pytest.importorskip("numba")
    takes = importlib.import_module("saccade.ops.tvconv.numba").takes
    x, weight = draw(1, 4, 6, 6), draw(9, 4, 6, 6)
    assert takes(x, weight, None)
    assert not takes(x.double(), weight.double(), None)
    assert not takes(x, weight, draw(4, 6, 6).half())
    assert not takes(draw(1, 4, 12, 12)[..., ::2, ::2], weight, None)
    assert not takes(x, draw(25, 4, 6, 6), None)
    assert not takes(x[:0], weight, None)
    assert tvconv(x[:0], weight).shape == (0, 4, 6, 6)


# -- the kernels of a GPU

#: beside unfolding in double precision, relative; the interpreter rounds bfloat16 towards zero
CLOSE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
CASES = [(1, 1, 1, 1, 3, 1), (2, 3, 4, 5, 3, 1), (2, 2, 5, 6, 3, 2), (3, 1, 7, 5, 5, 3), (5, 2, 3, 4, 1, 1)]


def agree(case: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    *shape, kernel, stride = case
    size = output_size(shape[2], shape[3], stride)
    given = [draw(*shape), draw(kernel**2, shape[1], *size, seed=1), *([draw(shape[1], *size, seed=2)] if bias else [])]
    kernels = importlib.import_module("saccade.ops.tvconv.triton")

    def by(path: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, weight, offset=None: path(x, weight, offset, kernel, stride)

    agrees(by(kernels.convolved), by(module.naive.unfolded), given, dtype, CLOSE[dtype])


def kernels_agree_in_all_precisions() -> None:
    for dtype in CLOSE:
        agree(CASES[2], dtype, True)
    importlib.import_module("saccade.ops.tvconv.triton").PLACES = 16
    agree(CASES[1], torch.float32, True)
    agree(CASES[3], torch.float32, False)


def kernels_agree_on_many_sizes() -> None:
    kernels = importlib.import_module("saccade.ops.tvconv.triton")
    for kernels.PLACES in (256, 16):
        for case in CASES:
            for dtype in CLOSE:
                for bias in (False, True):
                    agree(case, dtype, bias)


def the_face_chooses_kernels_and_the_ledger_counts_them() -> None:
    module.runs_on_triton = lambda *given: True  # as if this were a GPU
    x, weight, bias = draw(2, 3, 4, 5), draw(9, 3, 4, 5, seed=1), draw(3, 1, 1, seed=2)
    want = tvconv(x, weight, bias, fast=False)
    near(tvconv(x.contiguous(memory_format=torch.channels_last), weight, bias), want)
    assert cost(lambda x: tvconv(x, weight, bias), x, timed=False).macs == 2 * 9 * 3 * 4 * 5
    learns = x.clone().requires_grad_()
    near(tvconv(learns, weight), tvconv(x, weight, fast=False))
    assert type(tvconv(learns, weight).grad_fn).__name__ == "_ConvolvedBackward"
    first, second = (torch.autograd.grad(tvconv(learns, weight).sum(), learns)[0] for _ in range(2))
    assert torch.equal(first, second)


def kernels_compile() -> None:
    kernels = importlib.import_module("saccade.ops.tvconv.triton")
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = draw(8, 16, 28, 28).to(dtype).requires_grad_(), draw(9, 16, 14, 14).to(dtype).requires_grad_()
        kernels.convolved(x, weight, None, 3, 2).sum().backward()


def test_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_in_all_precisions, the_face_chooses_kernels_and_the_ledger_counts_them)


@pytest.mark.slow
def test_many_sizes_in_tritons_interpreter(in_interpreter: Callable[..., None]) -> None:
    in_interpreter(kernels_agree_on_many_sizes)


def test_the_kernels_compile_for_a_gpu(for_absent_gpu: Callable[..., None]) -> None:
    for_absent_gpu(kernels_compile)


# -- the rest


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_ledger_counts_one_for_each_tap_of_each_place(device: str) -> None:
    with torch.device(device):
        x, weight = torch.zeros(2, 5, 8, 10), torch.zeros(9, 5, 4, 5)
    assert cost(lambda y: tvconv(y, weight, stride=2), x, timed=False).macs == 2 * 9 * 5 * 4 * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_added_up_in_float32(dtype: torch.dtype) -> None:
    x, weight = draw(3, 4, 6, 6).to(dtype), draw(25, 4, 6, 6, seed=1).to(dtype)
    found = tvconv(x, weight)
    assert found.dtype == dtype
    assert torch.equal(found, tvconv(x.float(), weight.float()).to(dtype))


@pytest.mark.parametrize(
    ("x", "weight", "stride", "error", "says"),
    [
        ((1, 3, 50, 50), (9, 3, 24, 24), 2, InputError, "built for output 24x24, input 50x50 gives 25x25"),
        ((1, 3, 24, 24), (9, 3, 12, 12), 1, InputError, "built for output 12x12, input 24x24 gives 24x24"),
        ((1, 4, 24, 24), (9, 3, 24, 24), 1, InputError, "3 channels, not 4"),
        ((1, 3, 24, 24), (16, 3, 24, 24), 1, UsageError, "k odd, not 16"),
        ((1, 3, 24, 24), (8, 3, 24, 24), 1, UsageError, "k odd, not 8"),
        ((1, 3, 24, 24), (9, 3, 24, 24), 0, UsageError, "stride"),
        ((3, 24, 24), (9, 3, 24, 24), 1, InputError, "axes"),
    ],
)
def test_what_does_not_fit_is_refused(
    x: tuple[int, ...], weight: tuple[int, ...], stride: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        tvconv(torch.zeros(x), torch.zeros(weight), stride=stride)
