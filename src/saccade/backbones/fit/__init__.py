"""FIT: very long sequences, by local layers inside groups and global layers on a few latents of each group, in turns.

Chen and Li, "FIT: Far-reaching Interleaved Transformers", 2023, arXiv:2305.12689.

    tokens (B, t groups, n, c) -- local layers --+-------------- + -- local layers -- ...   -> a feature a token
                                                 v               ^
    latents (B, t, m, d) ------------------ + cross -- global -- cross ---------------- ...  -> latents a group

Attention costs O(n^2) a group and O((t m)^2) among latents, O(L^(4/3)) in all where t and n are chosen so. Encoder,
denoiser (`network.py`) and autoregressive decoder with cache (`decoder.py`) share the blocks; `tokens.py` makes tokens
of pictures. The paper's tables are of generation and detection, and no weights are published: there is no classifier
here, so the tests and tools that all classifiers share (timm's registry, maps at strides) do not apply.
"""

from __future__ import annotations

from saccade.backbones.fit.decoder import Decoding, FITDecoder
from saccade.backbones.fit.keras import load_keras, our_names
from saccade.backbones.fit.layers import block_causal, layer_pattern, sin_cos, sin_cos_2d, sin_cos_table
from saccade.backbones.fit.network import FIT, FITDenoiser, TimeEmbedding
from saccade.backbones.fit.tokens import from_subimages, snake, subimages

__all__ = [
    "FIT",
    "Decoding",
    "FITDecoder",
    "FITDenoiser",
    "TimeEmbedding",
    "block_causal",
    "from_subimages",
    "layer_pattern",
    "load_keras",
    "our_names",
    "sin_cos",
    "sin_cos_2d",
    "sin_cos_table",
    "snake",
    "subimages",
]
