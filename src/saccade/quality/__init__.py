"""How good a picture is, by the field's protocols.

psnr, ssim, ms_ssim           per picture, on RGB or on BT.601 luma, with a border left out
MSSSIMLoss                    the last of them as a loss to train with
pearson_loss                  correlation as a loss
luma, rgb_to_ycbcr, ...       the luma that figures are given on
benchmark_super_resolution    a folder of pictures: reduced, enlarged, compared
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "colour": ["luma", "rgb_to_ycbcr", "ycbcr_to_rgb"],
        "fidelity": ["psnr", "quantise8"],
        "pearson": ["pearson_loss"],
        "structure": ["MSSSIMLoss", "for_size", "ms_ssim", "ssim"],
        "super_resolution": [
            "LumaEnlarger",
            "benchmark_super_resolution",
            "luma_enlarger",
            "super_resolution_pairs",
        ],
    },
)
