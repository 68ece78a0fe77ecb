"""Contests of classifiers."""

from __future__ import annotations

import pytest

from saccade.bench.classify import beside_timm

pytest.importorskip("openvino", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def test_a_network_stands_beside_another_design_in_both_engines() -> None:
    rows, _ = beside_timm("shvit", ("shvit_s1", 64), ("test_convnext", 96), threads=1, rounds=1)
    assert {row.ours for row in rows} == {"shvit_s1 at 64 px (openvino)"}
    assert [row.peer for row in rows] == [
        "shvit_s1 at 64 px (torch)",
        "timm test_convnext at 96 px (openvino)",
        "timm test_convnext at 96 px (torch)",
    ]
    assert {row.size for row in rows} == {"64 and 96 px"}
