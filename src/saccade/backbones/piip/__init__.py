"""PIIP: an image pyramid in which the largest picture goes through the smallest network, with exchanges between them.

Zhu et al., "Parameter-Inverted Image Pyramid Networks", NeurIPS 2024, arXiv:2406.04330.

branch.py is a plain vision transformer, interaction.py what neighbours tell each other, network.py the pyramid,
published.py its registered names and the readers of published files.
"""

from __future__ import annotations

from saccade.backbones.piip.branch import Branch
from saccade.backbones.piip.interaction import DeformAttention, Injector, InteractionUnit
from saccade.backbones.piip.network import PIIP, SeparateHeads

__all__ = ["PIIP", "Branch", "DeformAttention", "Injector", "InteractionUnit", "SeparateHeads"]
