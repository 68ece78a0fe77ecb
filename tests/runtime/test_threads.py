"""The number of torch's threads is lent, not changed."""

from __future__ import annotations

import pytest
import torch

from saccade.runtime.threads import on_threads


def test_threads_are_as_before_afterwards_whatever_happens_inside() -> None:
    before = torch.get_num_threads()
    with on_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with on_threads(before + 2):
            assert torch.get_num_threads() == before + 2
        assert torch.get_num_threads() == before + 1
    with pytest.raises(KeyError), on_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
