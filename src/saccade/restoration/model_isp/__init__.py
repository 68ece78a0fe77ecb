"""Model-based ISP: RAW to RGB and back with learnable dictionaries, interpretable, learnt from few pairs.

Conde, McDonagh, Maggioni, Leonardis and Perez-Pellitero, "Model-Based Image Signal Processors via Learnable
Dictionaries", AAAI 2022, arXiv:2201.03210; canonical operators after Brooks et al., CVPR 2019, arXiv:1811.11127.

    RAW (B,3,H,W) -- lens shading -- white balance -- colour matrix -- gamma -- tone curve --> RGB (B,3,H,W)
         (each stage: a convex mix of a dictionary's atoms; a small CNN gives the weights; the way back is exact)

`operators` holds the fixed pipeline, `stages` the dictionaries, `network` the ISP, `folded` its fast path, `augment`
the sampling of cameras for training denoisers without RAW, `recipe` the training, `denoiser` a small RAW denoiser.
There is no public code of the paper: where it leaves sizes open, ours are marked as such.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["augment", "denoiser", "folded", "network", "operators", "recipe", "stages"],
    submod_attrs={
        "network": ["ModelISP", "Settings"],
        "operators": ["Camera", "average_camera", "random_camera", "process", "unprocess"],
        "augment": ["sample_settings", "noisy_pair"],
        "denoiser": ["RawDenoiser"],
        "recipe": ["Pairs", "fit"],
    },
)
