"""Weights under the names and in the layouts of the published (Keras) code; none of FIT were published."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from saccade.checkpoint import StateDict
from saccade.checkpoint import fit as fit_state
from saccade.errors import CheckpointError

__all__ = ["load_keras", "our_names"]

_STACK = re.compile(r"([xl])_network(?:_(\d+))?/transformer_(?:encoder|decoder_layer)(?:_(\d+))?/(.*)")
_CROSS = re.compile(r"(l2x|x2l|l2c)_cross_attn(?:_(\d+))?/(.*)")
_INNER = (("self_mha/", "mha/"), ("cross_mha/", "mha/"), ("mlp/ffn/", "ffn/"))
_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias"}
_PLAIN = {
    "latent_pos_emb/kernel/vis_pos_embedding": "latent_table",
    "x_pos_emb/kernel/vis_pos_embedding": "x_table",
    "token_embedding": "token_embedding",
    "inp_token_embedding": "token_embedding",
    "outp_token_embedding": "outp_embedding",
    "outp_bias": "outp_bias",
}


def _our_name(name: str) -> str:
    if name in _PLAIN:
        return _PLAIN[name]
    if found := _STACK.fullmatch(name):
        which, block, layer, rest = found.groups()
        rest = f"{which}_network/{block or 0}/{layer or 0}/{rest}"
    elif found := _CROSS.fullmatch(name):
        rest = f"{found[1]}/{found[2] or 0}/{found[3]}"
    else:
        rest = name.replace("latent_prev_proj/ffn/", "latent_prev_proj/")
    for theirs, ours in _INNER:
        rest = rest.replace(theirs, ours)
    path, _, leaf = rest.rpartition("/")
    return f"{path}/{_LEAVES.get(leaf, leaf)}".replace("/", ".")


def our_names(state: StateDict) -> StateDict:
    """The state in our names and layouts: matrices turned, heads joined.

    Kernels of queries, keys and values are (in, heads, width of a head), of outputs (heads, width of a head, out).
    """
    made = {}
    for key, value in state.items():
        name = _our_name(key.partition("/")[2])
        if key.endswith("kernel"):
            joined = value.flatten(0, 1) if "attention_output" in key and value.ndim == 3 else value.flatten(1)
            value = joined.mT.contiguous()
        elif key.endswith("bias") and value.ndim == 2:
            value = value.flatten()
        made[name] = value
    return made


def load_keras(model: nn.Module, state: StateDict, source: str = "the file") -> Any:
    """Copy weights of the published layout into a network of ours; returns it.

    The layout does not tell the number of groups, so the network is made first.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    if not any("/" in key for key in state):
        raise CheckpointError(f"{source} has no Keras names (fit/stem/kernel, ...)")
    fit_state(model, our_names(state), source)
    return model
