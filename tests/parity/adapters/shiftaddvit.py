"""ShiftAddViT's parts against the official code: layers with gradients, codes, hashes, mixtures, gates, losses."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.backbones.shiftaddvit.attention import BinaryAttention, HashAttention, KernelHash
from saccade.backbones.shiftaddvit.layers import MoELinear, ShiftLinear, ShiftLinearQ
from saccade.backbones.shiftaddvit.network import Mlp
from saccade.backbones.shiftaddvit.published import _inner_name
from saccade.nn.moe import NoisyGateV2, cv_squared, probability_in_top
from saccade.ops.shift_add import decomposed, fixed_point

OFFICIAL_LATENCIES = (6.0, 4.0)


def near(found: Tensor, want: Tensor, what: str) -> None:
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4, msg=lambda m: f"{what}: {m}")


def check(vectors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    told = json.loads(metadata["config"])
    cases = {key.split(".")[1] for key in vectors}
    for case in sorted(cases):
        part = {
            kind: {k.split(".", 2)[2]: v for k, v in vectors.items() if k.startswith(f"{kind}.{case}.")}
            for kind in ("input", "output", "state")
        }
        CASES[case](part["input"], part["output"], part["state"], told)


def _filled(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    ours = {name: value for key, value in state.items() if (name := _inner_name(key))}
    module.load_state_dict(ours)
    return module.eval()


def _gradients(module: nn.Module, given: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    x = given["x"].clone().requires_grad_()
    y = module(x)
    near(y, wanted["y"], f"{what}, y")
    parameters = {"x": x, **dict(module.named_parameters())}
    names = [k[1:] for k in wanted if k.startswith("d")]
    for name, found in zip(names, torch.autograd.grad(y, [parameters[n] for n in names], given["dy"]), strict=True):
        near(found, wanted[f"d{name}"], f"{what}, d{name}")


def shift_ps(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    outputs, inputs = state["shift"].shape
    assert (told["shift_ps"]["act_integer_bits"], told["shift_ps"]["act_fraction_bits"]) == (16, 16)
    layer = ShiftLinear(inputs, outputs, "bias" in state, told["shift_ps"]["weight_bits"])
    _gradients(_filled(layer, state), given, wanted, "shift_ps")


def shift_q(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    outputs, inputs = state["weight"].shape
    layer = ShiftLinearQ(inputs, outputs, "bias" in state, told["shift_ps"]["weight_bits"])
    _gradients(_filled(layer, state), given, wanted, "shift_q")


def decomp(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    shift, sign = decomposed(given["w"])
    near(shift, wanted["shift"], "shift")
    near(sign, wanted["sign"], "sign")
    near(sign * torch.exp2(shift), wanted["pow2"], "power of two")
    near(fixed_point(20 * given["w"], 4, 3), wanted["fixed_4_3"], "fixed point")


class Bare(nn.Module):
    """An attention or MLP on a map of one size, called as the vectors' layers were: tokens alone."""

    def __init__(self, inner: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x, self.size)
        return out


def lin_binary(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    c = told["lin_binary"]
    layer = BinaryAttention(c["dim"], c["heads"], kernel=c["res_kernel_size"], compat="official")
    _gradients(Bare(_filled(layer, state), (c["H"], c["W"])), given, wanted, "lin_binary")


def lin_ksh(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    c = told["lin_ksh"]
    layer = HashAttention(c["dim"], c["heads"], bits=c["nbits"], anchors=c["m"], kernel=c["res_kernel_size"])
    _gradients(Bare(_filled(layer, state), (c["H"], c["W"])), given, wanted, "lin_ksh")


def ksh(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    heads, bits, anchors = given["A0"].shape
    layer = KernelHash(heads, given["X"].shape[-1], bits, anchors)
    layer.A.copy_(given["A0"])
    layer.anchor.copy_(given["anchor"])
    layer.fit(given["X"], given["S"], steps=20, rate=0.05, seed=None)
    near(layer.mvec, wanted["mvec"], "mvec")
    near(layer.A, wanted["A"], "A")
    assert torch.equal(layer(given["X"]), wanted["codes"])


@torch.no_grad()
def moe_fc(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    outputs, inputs = state["experts.0.weight"].shape
    layer = _filled(MoELinear(inputs, outputs, gate="naive"), state)
    assert isinstance(layer, MoELinear)
    near(layer(given["x"]), wanted["y"], "moe_fc")
    chosen = layer.gate(given["x"].flatten(0, 1))[0].argmax(1)
    near(F.one_hot(chosen, 2).float(), wanted["gates"], "gates")


@torch.no_grad()
def moe_mlp(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    inner, width = state["fc1.experts.0.weight"].shape
    layer = _filled(Mlp(width, inner / width, lambda i, o: MoELinear(i, o, gate="naive")), state)
    tokens = given["x"].shape[1]
    size = (told["lin_ksh"]["H"], tokens // told["lin_ksh"]["H"])
    near(layer(given["x"], size), wanted["y"], "moe_mlp")


@torch.no_grad()
def noisy_v2(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    width, experts = state["w_gate"].shape
    gate = _filled(NoisyGateV2(width, experts, OFFICIAL_LATENCIES), state)
    assert isinstance(gate, NoisyGateV2)
    logits, values = gate(given["x"])
    near(F.one_hot(logits.argmax(1), experts) * values, wanted["gates"], "gates")
    near(gate.loss_at_rest(given["x"]), wanted["loss_eval"], "loss")


def load(given: dict[str, Tensor], wanted: dict[str, Tensor], state: dict[str, Tensor], told: Any) -> None:
    chances = probability_in_top(given["clean"], given["noisy"], given["noise_std"])
    near(chances, wanted["prob_in_top1"], "chances")
    alpha = torch.tensor(OFFICIAL_LATENCIES) / sum(OFFICIAL_LATENCIES)
    near(cv_squared(alpha * chances.sum(0)), wanted["cv2_weighted_6_4"], "balance")


CASES = {f.__name__: f for f in (shift_ps, shift_q, decomp, lin_binary, lin_ksh, ksh, moe_fc, moe_mlp, noisy_v2, load)}
