"""Triton's kernels where there is no GPU: run by its interpreter, and compiled for a GPU that is not here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

Check = Callable[[], None]

#: compiles what a call launches, down to machine code, and launches nothing
ABSENT_GPU = """
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

class Absent:
    def get_current_target(self): return GPUTarget("cuda", 80, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device=None): return 0

driver.set_active(Absent())
launch = jit.JITFunction.run

def compile_only(kernel, *arguments, **options):
    made = launch(kernel, *arguments, **{**options, "warmup": True})
    assert made.asm["cubin"]

jit.JITFunction.run = compile_only
"""


@pytest.fixture
def in_interpreter() -> Callable[..., None]:
    """Call functions of a test module in a process of their own, in which Triton interprets its kernels."""

    def run(*checks: Check) -> None:
        told = _called(checks, "", TRITON_INTERPRET="1")
        if "TRITON_INTERPRET" in told.stderr or "0 active drivers" in told.stderr:
            pytest.skip(f"Triton's interpreter does not run here: {told.stderr.strip().splitlines()[-1]}")
        assert told.stdout.strip() == "done", told.stderr

    return run


@pytest.fixture
def for_absent_gpu(tmp_path: Path) -> Callable[..., None]:
    """The same, but kernels are compiled for an A100 and not run: what comes out means nothing."""

    def run(*checks: Check) -> None:
        told = _called(checks, ABSENT_GPU, TRITON_CACHE_DIR=str(tmp_path))
        if "Cannot find ptxas" in told.stderr:
            pytest.skip("Triton comes without an assembler here")
        assert told.stdout.strip() == "done", told.stderr

    return run


def _called(checks: tuple[Check, ...], before: str, **environment: str) -> subprocess.CompletedProcess[str]:
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    source = Path(checks[0].__code__.co_filename)
    calls = "\n".join(f"module.{check.__name__}()" for check in checks)
    code = f"{before}\nimport {source.stem} as module\n{calls}\nprint('done')"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=source.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
