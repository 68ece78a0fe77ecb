"""What the tests of all claims ask: that every threshold binds, and that a short run has every figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from saccade.reproduce import Data, Figures


@pytest.fixture
def binds() -> Callable[[ModuleType, Figures, Mapping[str, Any]], None]:
    """``binds(claim, good, changes)``: these figures meet the claim, and each change of one of them breaks it."""

    def check(claim: ModuleType, good: Figures, changes: Mapping[str, Any]) -> None:
        assert claim.met(good)
        assert changes.keys() <= good.keys()
        still = [f"{name} = {value}" for name, value in changes.items() if claim.met({**good, name: value})]
        assert not still, "met in spite of these"

    return check


@pytest.fixture
def short_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Figures]:
    """``short_run(claim, STEPS=2, ...)``: the figures of a run, the claim's constants set so; ``data`` if need be."""

    def run(claim: ModuleType, data: Data | None = None, **sizes: Any) -> Figures:
        for name, value in sizes.items():
            monkeypatch.setattr(claim, name, value)
        with data or Data() as given:
            figures: Figures = claim.run(given, 0)
        return figures

    return run
