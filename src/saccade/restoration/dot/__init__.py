"""DOT: the balance of perception and distortion of any restorer, turned at run time, from a dozen pictures.

Adrai, Ohayon, Michaeli, Elad, "Deep Optimal Transport: A Practical Algorithm for Photo-realistic Image Restoration",
NeurIPS 2023, arXiv:2306.02342.

    degraded -- restorer -- x (B,3,H,W) -- [encode] -- patches, T (. - m_s) + m_t, averaged -- [decode] -- x_0
                                |                                                                          |
                                +--------------------- a x + (1 - a) x_0 ----------------------------------+

T maps the patches of restored pictures, taken for a Gaussian, onto those of natural ones with the least mean squared
displacement (closed form); perception = 1 - a is the dial. Without an autoencoder the patches are the pixels' own.

    gaussian.py     the map and the distance, float64
    patches.py      all overlapping patches through the map; in the interior one convolution
    latents.py      pixels, our own autoencoder, or diffusers' AutoencoderKL
    network.py      statistics, state, pictures through it
    perceptual.py   the dial around a restorer; `fit`
"""

from __future__ import annotations

from saccade.restoration.dot.latents import PIXELS, Latent, identity, open_autoencoder
from saccade.restoration.dot.network import DeepOptimalTransport, from_official
from saccade.restoration.dot.perceptual import Perceptual, fit, wrap

__all__ = [
    "PIXELS",
    "DeepOptimalTransport",
    "Latent",
    "Perceptual",
    "fit",
    "from_official",
    "identity",
    "open_autoencoder",
    "wrap",
]
