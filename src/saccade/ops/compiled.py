"""Loops that Numba compiles, as the operators' numba.py use it: kept for the next process, shared out among threads."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["FUSED", "SUMMED", "compiled", "on_all_threads", "works"]

#: products and sums may be fused; nothing may be reordered
FUSED = frozenset({"contract"})
#: sums may be taken in any order
SUMMED = frozenset({"contract", "reassoc"})


def compiled(fastmath: frozenset[str]) -> Callable[[Any], Any]:
    """Compile at the first call, outside of Python's lock, and keep the code for the next process.

    It is kept beside the function's file, else in the user's folder for caches, or where ``NUMBA_CACHE_DIR`` says;
    where none can be written, it is compiled anew in each process.
    """
    import numba

    def decorate(function: Any) -> Any:
        compile_ = functools.partial(numba.njit, fastmath=set(fastmath), nogil=True, error_model="numpy")
        try:
            return compile_(cache=True)(function)
        except RuntimeError:  # no place to keep it
            return compile_()(function)

    return decorate


def on_all_threads(kernel: Callable[..., Any], most: int, *arguments: Any) -> None:
    """``kernel(i, threads, *arguments)`` for each i below threads, which are PyTorch's number or ``most`` if fewer.

    They are started for the call: a pool of Numba's own would count its threads beside PyTorch's, and some of its
    kinds end the process on a fork or when two threads enter.
    """
    import torch

    threads = max(1, min(torch.get_num_threads(), most))
    if threads == 1:
        kernel(0, 1, *arguments)
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(kernel, i, threads, *arguments) for i in range(1, threads)]
        kernel(0, threads, *arguments)
        for other in others:
            other.result()


@functools.cache
def works(operator: str) -> bool:
    """Whether the compiled path of an operator can be used: Numba is here and takes this NumPy, not a newer one."""
    try:
        importlib.import_module(f"saccade.ops.{operator}.numba")
    except ImportError:
        return False
    return True
