"""VAN's and UniRepLKNet's rows: the plain twins are the same functions by torch's own convolutions."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from saccade.bench.backbones import unireplknet, van
from saccade.bench.large_depthwise import depthwise_rows
from saccade.ops.large_depthwise import LargeDepthwise
from saccade.registry import create


@pytest.mark.parametrize(
    ("suite", "name", "options"),
    [
        (van, "van", {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}),
        (
            unireplknet,
            "unireplknet",
            {"widths": (8, 8, 8, 8), "depths": (1,) * 4, "kernels": ((3,), (13,), (13,), (7,))},
        ),
    ],
)
def test_the_plain_twin_is_the_same_function(suite: ModuleType, name: str, options: dict[str, object]) -> None:
    model, x = create(name, weights=None, **options), torch.randn(1, 3, 224, 224)
    twin = suite.plain(model)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-4)
    assert {m.path for m in twin.modules() if isinstance(m, LargeDepthwise)} == {"torch"}
    assert {m.path for m in model.modules() if isinstance(m, LargeDepthwise)} == {"auto"}


def test_a_case_gives_a_row_for_each_layout_and_job() -> None:
    rows = depthwise_rows([((1, 4, 20, 20), 17, 1)], "van", "saccade bench backbones --system van", 1, 1)
    assert [r.what.split(", ", 2)[2] for r in rows] == [
        f"{layout}, {job}" for layout in ("planes", "channels last") for job in ("forward", "forward and gradients")
    ]
    assert all(r.ours_ms > 0 and r.peer == "torch conv2d" for r in rows)
