"""Blocks of the Restormer family: normalisation over channels as written out, and shapes halved and doubled."""

from __future__ import annotations

import pytest
import torch

from saccade.nn.restormer import EPSILON, ChannelNorm, Downsample, Upsample, channel_norm


def features() -> torch.Tensor:
    return torch.randn(2, 6, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("centred", [True, False])
def test_normalisation_is_by_the_biased_variance_over_channels(centred: bool) -> None:
    x = features()
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    wanted = (x - mean if centred else x) / (variance + EPSILON).sqrt()
    torch.testing.assert_close(channel_norm(x, centred), wanted)
    torch.testing.assert_close(ChannelNorm(6, centred, affine=False)(x), wanted)


@pytest.mark.parametrize("centred", [True, False])
def test_weights_scale_and_shift_each_channel(centred: bool) -> None:
    norm = ChannelNorm(6, centred).double()
    torch.nn.init.normal_(norm.weight)
    shift = torch.zeros(6, 1, 1, dtype=torch.float64)
    if centred:
        torch.nn.init.normal_(norm.bias)
        shift = norm.bias[:, None, None]
    x = features()
    torch.testing.assert_close(norm(x), channel_norm(x, centred) * norm.weight[:, None, None] + shift)
    assert [name for name, _ in norm.named_parameters()] == (["weight", "bias"] if centred else ["weight"])


def test_downsampling_halves_the_size_and_upsampling_doubles_it() -> None:
    x = features()
    assert Downsample(6).double()(x).shape == (2, 12, 2, 4)
    assert Upsample(6).double()(x).shape == (2, 3, 8, 16)
    assert ChannelNorm(6, affine=False).state_dict() == {}
