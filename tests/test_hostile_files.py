"""Mangled weights and impossible arrays: what comes out is a result of the right kind or a SaccadeError."""

from __future__ import annotations

import functools
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import saccade
from saccade.checkpoint import load, read_header, read_state
from saccade.errors import SaccadeError, UsageError
from saccade.restoration.given import _array_like, _tensor_like
from saccade.restoration.upscale import Upscaler
from saccade.runtime.graphs import told_by

quick = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = ("safetensors", "zip", "legacy", "nested")


@functools.cache
def sample(kind: str) -> bytes:
    """A small valid file of weights of each kind."""
    model = saccade.create("sesr_m3", weights=None)
    state: Any = model.state_dict()
    buffer = io.BytesIO()
    if kind == "safetensors":
        with tempfile.TemporaryDirectory() as folder:
            saccade.save(model, Path(folder) / "a.safetensors")
            return (Path(folder) / "a.safetensors").read_bytes()
    if kind == "nested":
        state = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3, "name": "x"}
    torch.save(state, buffer, _use_new_zipfile_serialization=kind != "legacy")
    return buffer.getvalue()


def refused(call: Callable[..., Any], *arguments: Any) -> str | None:
    """What our error says, or None where there was none; any other error fails the test."""
    try:
        call(*arguments)
    except SaccadeError as error:
        return str(error)
    return None


@st.composite
def mangled(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file with bytes changed (most often where its structure stands), cut, spliced or grown; and a suffix."""
    kind = draw(st.sampled_from(KINDS))
    data = bytearray(sample(kind))
    ends = st.one_of(st.integers(0, 1200), st.integers(len(data) - 1200, len(data) - 1), st.integers(0, len(data) - 1))
    for _ in range(draw(st.integers(0, 6))):
        place = min(draw(ends), len(data) - 1)
        match draw(st.sampled_from(["set", "flip", "cut", "copy", "insert", "zero"])):
            case "set":
                data[place] = draw(st.integers(0, 255))
            case "flip":
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[max(place, 1) :]
            case "copy":
                start = draw(ends)
                data[place : place + 40] = data[start : start + 40]
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=40))
            case "zero":
                data[place : place + 8] = bytes(8)
    return draw(st.sampled_from([".safetensors", ".pth", ".ckpt", ".bin"])), bytes(data)


@quick
@given(mangled())
def test_mangled_weights_load_or_are_refused(file: tuple[str, bytes]) -> None:
    suffix, data = file
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(data)
        for read in (load, read_state, read_header, told_by):
            said = refused(read, path)
            assert said is None or 0 < len(said) < 1000


@quick
@given(st.binary(max_size=400), st.sampled_from([".safetensors", ".pth", ".bin"]))
def test_any_bytes_at_all_are_refused(data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / f"a{suffix}"
        path.write_bytes(data)
        with pytest.raises(SaccadeError):
            load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["F32", "sesr_m3"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries({}, optional={"dtype": json_values, "shape": json_values, "data_offsets": json_values})


@quick
@given(
    st.dictionaries(st.sampled_from(["__metadata__", "a", "b"]), entries | json_values, max_size=3), st.integers(0, 64)
)
def test_any_header_at_all_is_read_or_refused(header: dict[str, Any], tail: int) -> None:
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(tail))
        for read in (read_header, load, Upscaler):
            assert "\n" not in (refused(read, path) or "")


@functools.cache
def worker() -> Upscaler:
    return Upscaler("sesr_m5", 2, threads=1)


shapes = arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6)
dtypes = st.one_of(
    arrays.integer_dtypes(), arrays.unsigned_integer_dtypes(), arrays.floating_dtypes(), arrays.boolean_dtypes(),
    arrays.complex_number_dtypes(), arrays.unicode_string_dtypes(max_len=3), arrays.datetime64_dtypes(),
    st.sampled_from([np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.uint16), np.dtype(object)]),
)  # fmt: skip


@quick
@given(dtypes.flatmap(lambda dtype: arrays.arrays(dtype, shapes, elements=st.none() if dtype.kind == "O" else None)))
def test_any_array_is_enlarged_or_refused(pixels: np.ndarray) -> None:
    said = refused(_array_like, pixels, worker())
    if said is None:
        made = _array_like(pixels, worker())
        assert made.dtype == pixels.dtype
        assert made.shape == (2 * pixels.shape[0], 2 * pixels.shape[1], *pixels.shape[2:])


@quick
@given(
    st.lists(st.integers(0, 5), max_size=5),
    st.sampled_from(
        [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool]
    ),
    st.sampled_from([0.0, 0.5, 1.0, -1.0, 300.0, float("nan"), float("inf")]),
)
def test_any_tensor_is_enlarged_or_refused(shape: list[int], dtype: torch.dtype, value: float) -> None:
    finite = value if dtype.is_floating_point or value in (0, 1) else 1
    tensor = torch.full(shape, finite, dtype=dtype)
    said = refused(_tensor_like, tensor, worker())
    if said is None:
        made = _tensor_like(tensor, worker())
        assert made.dtype == dtype
        assert made.shape == (*shape[:-2], 2 * shape[-2], 2 * shape[-1])
        assert (made.float() - value).abs().max() < 0.1


@quick
@given(
    st.text(max_size=20) | st.sampled_from(["sesr_m5", "auto", "sesr_m5.pth", ".", "..", "/", "pcsr_small"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=3),
    st.none() | st.floats() | st.integers() | st.text(max_size=3),
)
def test_any_choice_of_model_scale_and_budget_is_made_or_refused(model: str, scale: Any, budget: Any) -> None:
    try:
        made = Upscaler(model, scale, budget=budget, backend="openvino")
    except SaccadeError:
        return
    assert made.choice.scale == (2 if scale is None else scale)


def test_a_scale_that_is_no_number_is_misuse() -> None:
    for scale in ("2", 2.5, float("nan"), -1, 10**30):
        with pytest.raises(UsageError):
            Upscaler("sesr_m5", scale)  # type: ignore[arg-type]
