"""Translation-variant convolution: shifted views give what unfolding gives, forward and backward; what is refused."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.errors import InputError, UsageError
from saccade.ops.tvconv import output_size, shifted, tvconv


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
