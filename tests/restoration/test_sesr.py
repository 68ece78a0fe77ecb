"""SESR: the collapse is exact, counts are the published ones, published files load, bad input is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saccade.checkpoint import fit, load, load_into, save
from saccade.cost import cost, count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import create
from saccade.restoration.sesr import (
    SESR,
    VARIANTS,
    AnchoredSESR,
    LinearBlock,
    collapse_pair,
    from_aimet,
    from_official,
    twice_by_two,
)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Every parameter away from its start, which makes wrong code pass."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            fan = p[0].numel() if p.dim() > 1 else 4
            p.copy_(torch.randn(p.shape, generator=generator) / fan**0.5)


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# -- the block


@given(
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    size=st.sampled_from([1, 3, 5, 7]),
    expansion=st.integers(1, 12),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bias=st.sampled_from(["none", "output"]),
)
@settings(max_examples=60, deadline=None)
def test_a_collapsed_block_is_the_expanded_one_borders_included(
    inputs: int, outputs: int, size: int, expansion: int, height: int, width: int, bias: str
) -> None:
    block = LinearBlock(inputs, outputs, size, expansion, bias).double()
    randomise(block)
    x = picture(2, inputs, height, width).double()
    torch.testing.assert_close(block(x), block.forward_expanded(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("bias", ["none", "output"])
def test_gradients_reach_the_pair_as_in_the_expanded_form(bias: str) -> None:
    block = LinearBlock(4, 4, 3, 32, bias).double()
    randomise(block)
    x = picture(2, 4, 8, 7).double().requires_grad_()
    weight = picture(2, 4, 8, 7, seed=1).double()
    grads = [
        torch.autograd.grad((form(x) * weight).sum(), [x, *block.parameters()])
        for form in (block.forward, block.forward_expanded)
    ]
    for collapsed, expanded in zip(*grads, strict=True):
        torch.testing.assert_close(collapsed, expanded, rtol=0, atol=1e-10)


def test_the_collapse_is_the_convolution_of_a_delta_image() -> None:
    """Algorithm 1 of the paper, word for word: convolve an impulse with both kernels, then flip."""
    expand, project = picture(24, 3, 5, 5), picture(6, 24, seed=1)
    delta = F.pad(torch.eye(3)[:, :, None, None], (4,) * 4)
    seen = F.conv2d(F.conv2d(delta, expand), project[:, :, None, None])
    torch.testing.assert_close(collapse_pair(expand, project), seen.flip(2, 3).transpose(0, 1), rtol=1e-5, atol=1e-5)


def test_kernel_biases_exist_in_the_collapsed_form_only() -> None:
    block = LinearBlock(2, 3, 3, 8, "kernel")
    randomise(block)
    offset = block.project @ block.expand_bias + block.project_bias
    kernel, bias = block.collapsed()
    assert bias is None
    torch.testing.assert_close(kernel, collapse_pair(block.expand, block.project) + offset[:, None, None, None])
    with pytest.raises(UsageError, match="collapsed form only"):
        block.forward_expanded(picture(1, 2, 4, 4))


@pytest.mark.parametrize("size", [0, 2, 4, -3])
def test_even_kernels_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="odd kernel"):
        LinearBlock(1, 1, size, 8)


# -- the network


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_collapse_keeps_the_function_of_every_variant(name: str, scale: int) -> None:
    model = create(name, weights=None, scale=scale, expansion="paper").double()
    assert isinstance(model, SESR)
    randomise(model)
    x = picture(1, 1, 11, 9).double()
    for mode in (True, False):
        model.train(mode)
        small = model.collapse()
        assert small.training == mode
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-9)
    assert small.state_dict().keys() == create(name, weights=None, scale=scale).state_dict().keys()


@pytest.mark.parametrize("bias", ["none", "output"])
def test_expand_keeps_the_function(bias: str) -> None:
    small = SESR(3, 8, 2, None, bias).double()
    randomise(small)
    x = picture(2, 1, 10, 12).double()
    wide = small.expand(48)
    assert wide.expansion == 48
    torch.testing.assert_close(wide(x), small(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(wide.collapse()(x), small(x), rtol=0, atol=1e-10)


def test_an_expansion_too_narrow_for_the_kernels_is_refused() -> None:
    with pytest.raises(UsageError, match="expansion 4 is below the 8 outputs"):
        SESR(2, 8).expand(4)


def test_collapsing_twice_changes_nothing() -> None:
    model = SESR(2, 8, 2, 16)
    once = model.collapse()
    assert once.collapse() is once


def test_a_training_step_on_collapsed_blocks_is_a_step_on_expanded_ones() -> None:
    """Two SGD steps of both forms from the same start end in the same weights (section 3.2)."""
    ends = []
    low, high = picture(2, 1, 12, 12).double(), picture(2, 1, 24, 24, seed=1).double()
    for expanded in (False, True):
        model = SESR(2, 6, 2, 20).double().train()
        randomise(model)
        if expanded:
            for block in model.linear_blocks():
                block.forward = block.forward_expanded  # type: ignore[method-assign]
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2)
        for _ in range(2):
            optimiser.zero_grad()
            F.l1_loss(model(low), high).backward()
            optimiser.step()
        ends.append([p.detach() for p in model.parameters()])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


COUNTS = {
    "sesr_m3": (8_912, 13_712, 2.05, 0.79),
    "sesr_m5": (13_520, 18_320, 3.11, 1.05),
    "sesr_m7": (18_128, 22_928, 4.18, 1.32),
    "sesr_m11": (27_344, 32_144, 6.30, 1.85),
    "sesr_xl": (105_376, 114_976, 24.27, 6.62),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    for which, scale in enumerate((2, 4)):
        model = create(name, weights=None, scale=scale)
        parameters, gigas = COUNTS[name][which], COUNTS[name][2 + which]
        assert count_parameters(model, kernels_only=True) == model.kernels == parameters
        found = cost(model, torch.empty(1, 1, 720 // scale, 1280 // scale, device="meta")).macs
        assert found == parameters * (720 // scale) * (1280 // scale)
        # 24.27: the paper's table truncates where 24.28 would be rounded
        assert abs(found / 1e9 - gigas) <= 0.01


def test_the_output_is_clamped_in_evaluation_only() -> None:
    model = SESR(1, 8)
    randomise(model)
    x = picture(1, 1, 8, 8)
    assert float(model.train()(x).detach().abs().max()) > 1
    clamped = model.eval()(x).detach()
    assert 0 <= float(clamped.min()) <= float(clamped.max()) <= 1


def test_the_halo_is_what_an_output_pixel_sees() -> None:
    model = SESR(3, 8).double()
    randomise(model)
    x = picture(1, 1, 41, 41).double().requires_grad_()
    y = model.train()(x)
    (seen,) = torch.autograd.grad(y[0, 0, 40:42, 40:42].sum(), x)
    rows = seen[0, 0].abs().sum(1).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (20 - model.halo, 20 + model.halo)


def test_saved_and_loaded_again_expanded_or_collapsed(tmp_path: Path) -> None:
    model = create("sesr_m3", weights=None, scale=2, expansion=32)
    randomise(model)
    x = picture(1, 1, 9, 9)
    for form, file in ((model, "wide"), (model.collapse(), "small")):
        save(form, tmp_path / file)
        again = load(tmp_path / file)
        assert again.expansion == form.expansion
        torch.testing.assert_close(again(x), model(x))


def test_collapsed_weights_are_refused_for_training_and_can_be_expanded(tmp_path: Path) -> None:
    save(create("sesr_m3", weights=None, scale=2), tmp_path / "small.safetensors")
    wide = create("sesr_m3", weights=None, scale=2, expansion="paper")
    with pytest.raises(CheckpointError, match=r"missing first\.expand"):
        load_into(wide, tmp_path / "small.safetensors")
    fit(wide, load(tmp_path / "small.safetensors").expand(256).state_dict(), "expanded")


# -- bad input


@pytest.mark.parametrize("scale", [0, 1, 5, 8, 2.5])
def test_other_scales_are_refused(scale: float) -> None:
    with pytest.raises(UsageError):
        create("sesr_m5", weights=None, scale=scale)
    with pytest.raises(UsageError, match="2, 3 or 4"):
        SESR(5, 16, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(1, 3, 8, 8), "3 channels; give its luma"),
        (torch.full((1, 1, 8, 8), 200.0), "divide by 255"),
        (torch.full((1, 1, 8, 8), -0.9), r"\[-0\.9, -0\.9\]"),
        (torch.full((1, 1, 8, 8), float("nan")), "nan"),
        (torch.zeros(1, 1, 0, 8), "empty"),
        (torch.zeros(8, 8), r"\(8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_what_is_no_luma_picture_is_refused(x: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        create("sesr_m3", weights=None)(x)


# -- published files


def official(blocks: int, width: int, scale: int, expansion: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the official names."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    sides = {"input_block": (1, width, 5), "output_block": (width, scale**2, 5)}
    sides |= {f"linear_blocks.{i}": (width, width, 3) for i in range(blocks)}
    for name, (i, o, k) in sides.items():
        for part, shape in (("expand", (k, k, i, expansion)), ("project", (1, 1, expansion, o))):
            made[f"{name}.{part}.kernel"] = torch.randn(shape, generator=generator) / (shape[2] * k * k) ** 0.5
            made[f"{name}.{part}.bias"] = torch.randn(shape[3:], generator=generator) / 50
    for i in range(blocks):
        made[f"activations.{i}.alpha"] = torch.rand(1, 1, width, generator=generator)
    return made


def depth_to_space(x: Tensor, size: int) -> Tensor:
    """TensorFlow's, on (B, C, h, w): the sub-pixel is the slower part of the channel index."""
    b, c, h, w = x.shape
    return x.view(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, -1, h * size, w * size)


def run_official(state: dict[str, Tensor], x: Tensor, expanded: bool) -> Tensor:
    """The official network, written out from the card."""
    blocks = sum(k.endswith("alpha") for k in state)

    def block(name: str, x: Tensor, short: bool) -> Tensor:
        e, p = (state[f"{name}.{part}.kernel"].permute(3, 2, 0, 1) for part in ("expand", "project"))
        be, bp = (state[f"{name}.{part}.bias"] for part in ("expand", "project"))
        if expanded:
            y = F.conv2d(F.conv2d(x, e, be, padding=e.shape[-1] // 2), p, bp)
            return y + x if short else y
        size = e.shape[-1]
        delta = F.pad(torch.eye(e.shape[1])[:, :, None, None], (size - 1,) * 4)
        kernel = F.conv2d(F.conv2d(delta, e, be), p, bp).flip(2, 3).transpose(0, 1).clone()
        if kernel.shape[0] == kernel.shape[1]:  # so also the last block of a width of 16 at x4
            for i in range(len(kernel)):
                kernel[i, i, size // 2, size // 2] += 1
        return F.conv2d(x, kernel, padding=size // 2)

    first = y = block("input_block", x - 0.5, False)
    for i in range(blocks):
        y = F.prelu(block(f"linear_blocks.{i}", y, True), state[f"activations.{i}.alpha"].flatten())
    y = block("output_block", y + first, False) + x
    for _ in range(1 if y.shape[1] == 4 else 2):
        y = depth_to_space(y, 2)
    return y.clamp(0, 1)


@pytest.mark.parametrize("bias", ["kernel", "output"])
@pytest.mark.parametrize(
    ("blocks", "width", "scale", "name"),
    [(2, 8, 2, "sesr"), (2, 8, 4, "sesr"), (5, 16, 4, "sesr_m5"), (3, 16, 2, "sesr_m3"), (1, 4, 2, "sesr")],
)
def test_official_weights_give_the_official_output(blocks: int, width: int, scale: int, name: str, bias: str) -> None:
    state = official(blocks, width, scale, 24)
    recipe = from_official(state, bias=bias)  # type: ignore[arg-type]
    assert recipe is not None
    assert recipe.model == name
    model = create(recipe.model, weights=None, **recipe.options)
    fit(model, recipe.state, "official")
    x = picture(2, 1, 9, 7)
    want = run_official(state, x, expanded=bias == "output")
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.collapse()(x), want, rtol=0, atol=1e-5)


def test_an_official_file_is_recognised_alone(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = official(5, 16, 2, 32)
    save_file(state, tmp_path / "exported.safetensors")
    model = load(tmp_path / "exported.safetensors")
    assert (model.saccade_name, model.saccade_options["scale"], model.expansion) == ("sesr_m5", 2, 32)
    x = picture(1, 1, 8, 8)
    torch.testing.assert_close(model(x), run_official(state, x, expanded=False), rtol=0, atol=1e-5)
    small = model.collapse()
    save(small, tmp_path / "small.safetensors")
    torch.testing.assert_close(load(tmp_path / "small.safetensors")(x), model(x), rtol=0, atol=1e-5)


def test_slopes_that_are_absent_mean_relu() -> None:
    state = {k: v for k, v in official(2, 8, 2, 16).items() if "alpha" not in k}
    recipe = from_official(state)
    assert recipe is not None
    assert not recipe.state["slopes.0"].any()


def test_the_x4_order_is_two_shuffles_by_two() -> None:
    x = picture(1, 16, 3, 2)
    torch.testing.assert_close(F.pixel_shuffle(x[:, twice_by_two(4)], 4), depth_to_space(depth_to_space(x, 2), 2))


@pytest.mark.parametrize(
    ("lose", "says"),
    [
        ("linear_blocks.0", "lacks linear block 0"),
        ("linear_blocks.1.project.bias", r"linear_blocks\.1\.project\.bias"),
        ("output_block.expand.kernel", r"output_block\.expand\.kernel"),
    ],
)
def test_an_incomplete_official_file_names_what_it_lacks(lose: str, says: str) -> None:
    state = {k: v for k, v in official(2, 8, 2, 16).items() if not k.startswith(lose)}
    with pytest.raises(CheckpointError, match=says):
        from_official(state)


def test_an_official_file_of_another_scale_is_refused() -> None:
    state = official(1, 8, 2, 16)
    state["output_block.project.kernel"] = torch.zeros(1, 1, 16, 25)
    with pytest.raises(CheckpointError, match="25 channels"):
        from_official(state)


# -- the AIMET form


def aimet(blocks: int, width: int, scale: int, collapsed: bool) -> tuple[dict[str, Tensor], torch.nn.Module]:
    """Random weights under AIMET's names, and the network that they make, out of torch's own layers."""
    generator = torch.Generator().manual_seed(0)

    def convolution(i: int, o: int, k: int, bias: bool) -> torch.nn.Conv2d:
        made = torch.nn.Conv2d(i, o, k, padding=k // 2, bias=bias)
        for p in made.parameters():
            p.data = torch.randn(p.shape, generator=generator) / (i * k * k) ** 0.5
        return made

    class Block(torch.nn.Module):
        def __init__(self, i: int, o: int, k: int, short: bool, relu: bool) -> None:
            super().__init__()
            self.short, self.relu = short and not collapsed, relu
            self.conv_expand = convolution(i, o if collapsed else 40, k, collapsed)
            self.conv_squeeze = torch.nn.Identity() if collapsed else convolution(40, o, 1, True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv_squeeze(self.conv_expand(x))
            y = y + x if self.short else y
            return F.relu(y) if self.relu else y

    class Zoo(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.anchor = torch.nn.ModuleDict({"net": torch.nn.Conv2d(3, 3 * scale**2, 1)})
            eye = torch.eye(3).repeat_interleave(scale**2, 0)[:, :, None, None]
            self.anchor["net"].weight.data, self.anchor["net"].bias.data = eye, torch.zeros(3 * scale**2)
            self.conv_first = Block(3, width, 5, False, True)
            self.residual_block = torch.nn.Sequential(*(Block(width, width, 3, True, True) for _ in range(blocks)))
            self.conv_last = Block(width, 3 * scale**2, 5, False, False)

        def forward(self, x: Tensor) -> Tensor:
            first = self.conv_first(x)
            y = self.conv_last(self.residual_block(first) + first) + self.anchor["net"](x)
            return F.pixel_shuffle(y, scale).clamp(0, 1)

    model = Zoo()
    return model.state_dict(), model


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_aimet_weights_give_the_aimet_output(collapsed: bool, scale: int, tmp_path: Path) -> None:
    state, zoo = aimet(2, 8, scale, collapsed)
    torch.save({"state_dict": state}, tmp_path / "zoo.pth")
    model = load(tmp_path / "zoo.pth")
    assert isinstance(model, AnchoredSESR)
    assert (model.expansion is None) == collapsed
    x = picture(2, 3, 9, 11)
    with torch.no_grad():
        want = zoo(x)
        torch.testing.assert_close(model(x), want, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.collapse()(x), want, rtol=0, atol=1e-5)
    save(model.collapse(), tmp_path / "small.safetensors")
    assert load(tmp_path / "small.safetensors").expansion is None


def test_a_tensor_unknown_to_aimets_form_is_reported(tmp_path: Path) -> None:
    state, _ = aimet(1, 8, 2, True)
    torch.save({**state, "conv_first.quantiser": torch.zeros(1)}, tmp_path / "zoo.pth")
    with pytest.raises(CheckpointError, match=r"not expected conv_first\.quantiser"):
        load(tmp_path / "zoo.pth")
    assert from_aimet(state) is not None


@pytest.mark.parametrize("name", ["sesr", "sesr_rgb", "sesr_m5"])
def test_the_papers_expansion_can_be_asked_for_by_name(name: str) -> None:
    assert create(name, weights=None, expansion="paper").expansion == 256


def test_a_network_that_the_aimet_form_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="12 wide at x2"):
        AnchoredSESR(1, 12, 2)


@pytest.mark.parametrize("name", ["sesr", "sesr_rgb"])
@pytest.mark.parametrize(
    "options", [{"width": 0}, {"width": -3}, {"blocks": -1}, {"expansion": 0}, {"expansion": -1}], ids=str
)
def test_options_that_make_no_network_are_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"SESR needs at least one channel|a collapsible block needs channels"):
        create(name, weights=None, **options)
