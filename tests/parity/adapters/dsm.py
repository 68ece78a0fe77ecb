"""DSM's transform against scipy's: there is no official code, the network is a reconstruction."""

from __future__ import annotations

import torch
from torch import Tensor

from saccade.ops.dct import FORMS, dct2, idct2


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    cases = [k.split(".")[1] for k in vectors if k.startswith("input.") and k.endswith(".x")]
    assert cases
    for case in cases:
        x, gains = vectors[f"input.{case}.x"], vectors[f"input.{case}.band_weight"]
        for form in FORMS:
            f = dct2(x, form=form)
            torch.testing.assert_close(f, vectors[f"output.{case}.dct2_ortho"], rtol=0, atol=1e-5)
            filtered = vectors[f"output.{case}.filtered"]
            torch.testing.assert_close(idct2(f * gains, form=form), filtered, rtol=0, atol=1e-5)
            last = dct2(x.permute(0, 2, 3, 1), form=form, channels_last=True) * gains.permute(0, 2, 3, 1)
            back = idct2(last, form=form, channels_last=True).permute(0, 3, 1, 2)
            torch.testing.assert_close(back, filtered, rtol=0, atol=1e-5)
