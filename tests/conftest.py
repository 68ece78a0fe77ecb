"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from saccade.runtime.threads import on_threads


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread, as before afterwards: small cases are faster, and sums have one order."""
    with on_threads(1):
        yield
