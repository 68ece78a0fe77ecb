"""BiFormer: attention in which regions first choose regions, then tokens attend to the tokens of the chosen ones.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv:2303.08810.

    picture -- two 3x3, stride 2 -- stage 1 (stride 4) -- 3x3, stride 2 -- stage 2 (8) -- ... -- stage 4 (32) -- head

    block:  x + dw3x3 --> x + attention(LN x) --> x + feed-forward(LN x)
    attention of stages 1 to 3, with 7 x 7 regions whatever the size of the map:
        q, k, v = linear(x);  each region keeps the topk regions of largest <mean q, mean k>
        out = linear(softmax(q k' / sqrt(C)) v' + dw5x5(v))           k', v' of the kept regions alone
    stage 4 attends to everything, with 8 heads.

The dial: ``model.budget = 0.5`` keeps half of the trained ``topk`` in every stage (at least one region); weights stay.
``model.topk = (1, 8, 16)`` sets stages one by one. A network trained with few regions does not get better with more.
"""

from saccade.backbones.biformer.attention import BiLevelRoutingAttention, FullAttention
from saccade.backbones.biformer.network import BiFormer
from saccade.backbones.biformer.published import from_official, from_official_nchw

__all__ = ["BiFormer", "BiLevelRoutingAttention", "FullAttention", "from_official", "from_official_nchw"]
