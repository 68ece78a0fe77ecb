"""Blocks of the Restormer family: normalisation over channels as written out, and shapes halved and doubled."""

from __future__ import annotations

import pytest
import torch

from saccade.nn.channel_norm import ChannelNorm
from saccade.nn.restormer import EPSILON, Downsample, Upsample, channel_norm, norm_last


def features() -> torch.Tensor:
    return torch.randn(2, 6, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("centred", [True, False])
def test_normalisation_is_by_the_biased_variance_over_channels(centred: bool) -> None:
    x = features()
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    wanted = (x - mean if centred else x) / (variance + EPSILON).sqrt()
    torch.testing.assert_close(channel_norm(x, centred), wanted)


def test_the_norm_with_weights_is_the_same_on_a_picture_with_channels_last() -> None:
    x, norm = features(), ChannelNorm(6, EPSILON).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    wanted = channel_norm(x) * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), wanted)
    torch.testing.assert_close(norm_last(x.permute(0, 2, 3, 1), norm).permute(0, 3, 1, 2), wanted)


def test_downsampling_halves_the_size_and_upsampling_doubles_it() -> None:
    x = features()
    assert Downsample(6).double()(x).shape == (2, 12, 2, 4)
    assert Upsample(6).double()(x).shape == (2, 3, 8, 16)
