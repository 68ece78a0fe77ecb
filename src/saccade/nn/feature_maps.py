"""A backbone's maps alone: timm's wrapper, on which the dial of the network inside works too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from timm.models._features import FeatureGetterNet

from saccade.errors import UsageError

__all__ = ["FeatureMaps"]


class FeatureMaps(FeatureGetterNet):
    """What ``features_only=True`` gives: (B, in_chans, H, W) -> a list of (B, C_i, H/r_i, W/r_i), finest first.

    ``budget`` and ``budgets`` are those of the network inside, where it has them.
    """

    @property
    def budget(self) -> float:
        """The dial of the network inside."""
        model: Any = self.model
        told: float = model.budget
        return told

    @budget.setter
    def budget(self, value: float) -> None:
        model: Any = self.model
        if not hasattr(model, "budgets"):
            raise UsageError(f"{type(model).__name__} has no budget dial")
        model.budget = value

    @property
    def budgets(self) -> Callable[[], Sequence[float]]:
        """Settings worth trying, of the network inside."""
        model: Any = self.model
        told: Callable[[], Sequence[float]] = model.budgets
        return told
