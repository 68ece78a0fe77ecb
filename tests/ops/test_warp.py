import pytest
import torch

from saccade.errors import InputError
from saccade.ops.warp import flow_warp, naive


@pytest.mark.parametrize("border", ["zeros", "border"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 64, 9, 4), (3, 2, 1, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_four_indexings(shape, border, dtype):
    chance = torch.Generator().manual_seed(sum(shape))
    x, up = (torch.randn(shape, generator=chance, dtype=dtype) for _ in range(2))
    flow = 2.5 * torch.randn(shape[0], 2, *shape[2:], generator=chance, dtype=dtype)
    found = []
    for way in (flow_warp, naive.flow_warp):
        a, b = x.clone().requires_grad_(), flow.clone().requires_grad_()
        y = way(a, b, border)
        found.append((y.detach(), *torch.autograd.grad(y, (a, b), up)))
    for fast, true in zip(*found, strict=True):
        close = {"atol": 2e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 1e-11, "rtol": 1e-9}
        torch.testing.assert_close(fast, true, **close)


def test_a_flow_of_whole_pixels_moves_the_picture():
    x = torch.rand(1, 3, 8, 10)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 10)
    torch.testing.assert_close(flow_warp(x, flow)[..., 1:, :-2], x[..., :-1, 2:])
    assert flow_warp(x, flow)[..., 0, :].abs().max() < 1e-6, "outside lie zeros"
    torch.testing.assert_close(flow_warp(x, flow, "border")[..., 0, :-2], x[..., 0, 2:])


@pytest.mark.parametrize(
    "shapes", [((1, 3, 4, 4), (1, 3, 4, 4)), ((1, 3, 4, 4), (1, 2, 4, 5)), ((2, 3, 4, 4), (1, 2, 4, 4))]
)
def test_sizes_that_do_not_go_together_are_refused(shapes):
    with pytest.raises(InputError):
        flow_warp(*(torch.zeros(s) for s in shapes))
