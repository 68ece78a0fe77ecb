"""What a process may ask for, and how it ends when it asks for more."""

from __future__ import annotations

import subprocess
import sys

from saccade.bench.memory import available, held


def test_what_is_there_is_less_than_everything() -> None:
    assert 0 < available() < 2**50
    assert 0 < held("VmRSS") <= held("VmHWM")


def test_memory_that_is_not_there_ends_the_process_with_an_error() -> None:
    code = (
        "import torch; from saccade.bench.memory import available, bound; bound(0.5);"
        "torch.ones(1000); print('lives'); torch.empty(available(), dtype=torch.uint8)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "lives"
    assert done.returncode == 1
    assert "rror" in done.stderr.strip().splitlines()[-1]
