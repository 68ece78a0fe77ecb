"""FIT: very long sequences, by local layers inside groups and global layers on a few latents of each group, in turns.

Chen and Li, "FIT: Far-reaching Interleaved Transformers", 2023, arXiv:2305.12689.

    tokens (B, t groups, n, c) -- local layers --+-------------- + -- local layers -- ...   -> a feature a token
                                                 v               ^
    latents (B, t, m, d) ------------------ + cross -- global -- cross ---------------- ...  -> latents a group

Attention costs O(n^2) a group and O((t m)^2) among latents, O(L^(4/3)) in all where t and n are chosen so. Encoder,
denoiser (`network.py`) and autoregressive decoder with cache (`decoder.py`) share the blocks; `tokens.py` makes tokens
of pictures, `diffusion.py` trains the denoiser and samples. The paper's tables are of generation and detection and no
weights are published; `classifier.py` makes the encoder one of the backbones, with sizes of ours.
"""

from __future__ import annotations

from saccade.backbones.fit.classifier import FITClassifier
from saccade.backbones.fit.decoder import Decoding, FITDecoder
from saccade.backbones.fit.diffusion import generate, noised, signal
from saccade.backbones.fit.diffusion import loss as diffusion_loss
from saccade.backbones.fit.keras import load_keras, our_names
from saccade.backbones.fit.layers import block_causal, layer_pattern, sin_cos, sin_cos_2d, sin_cos_table
from saccade.backbones.fit.network import FIT, FITDenoiser, TimeEmbedding
from saccade.backbones.fit.tokens import from_subimages, glimpses, snake, subimages

__all__ = [
    "FIT",
    "Decoding",
    "FITClassifier",
    "FITDecoder",
    "FITDenoiser",
    "TimeEmbedding",
    "block_causal",
    "diffusion_loss",
    "from_subimages",
    "generate",
    "glimpses",
    "layer_pattern",
    "load_keras",
    "noised",
    "our_names",
    "signal",
    "sin_cos",
    "sin_cos_2d",
    "sin_cos_table",
    "snake",
    "subimages",
]
