"""The ledger: counts that can be worked out by hand, published counts, and nothing left changed."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from saccade.checkpoint import save
from saccade.cli.cost import cost as verb
from saccade.cli.cost import parse_size
from saccade.cost import Cost, cost, count_parameters, register_macs
from saccade.errors import UsageError
from saccade.registry import create

META = torch.device("meta")


def espcn(scale: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(),
        nn.Conv2d(64, 32, 3, padding=1), nn.Tanh(),
        nn.Conv2d(32, scale * scale, 3, padding=1), nn.PixelShuffle(scale),
    )  # fmt: skip


def run(*arguments: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(verb)
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize(
    ("scale", "macs", "parameters"), [(2, 21_184, 21_284), (3, 22_624, 22_729), (4, 24_640, 24_752)]
)
def test_espcn_costs_the_published_macs_per_pixel(scale: int, macs: int, parameters: int) -> None:
    counted = cost(espcn(scale), torch.rand(1, 1, 12, 17), timed=False)
    assert counted.macs == macs * 12 * 17
    assert counted.parameters == parameters
    assert counted.activations == (64 + 32 + scale * scale) * 12 * 17


@pytest.mark.parametrize(
    ("name", "x2", "x4"),
    [
        ("sesr_m3", 8_912, 13_712),
        ("sesr_m5", 13_520, 18_320),
        ("sesr_m7", 18_128, 22_928),
        ("sesr_m11", 27_344, 32_144),
        ("sesr_xl", 105_376, 114_976),
    ],
)
def test_sesr_costs_its_published_parameters_at_every_pixel(name: str, x2: int, x4: int) -> None:
    for scale, kernels in ((2, x2), (4, x4)):
        model = create(name, weights=None, scale=scale)
        assert count_parameters(model, kernels_only=True) == kernels
        assert cost(model, torch.rand(1, 1, 9, 11), timed=False).macs == kernels * 9 * 11


@pytest.mark.parametrize(("scale", "macs"), [(2, 21_184), (3, 22_624), (4, 24_640)])
def test_the_library_espcn_costs_the_published_macs(scale: int, macs: int) -> None:
    model = create("espcn", weights=None, scale=scale)
    assert cost(model, torch.rand(1, 1, 8, 8), timed=False).macs == macs * 64


def biased_outputs(model: nn.Module, x: Tensor) -> int:
    """Elements to which convolutions and linear layers add a bias."""
    counts: list[int] = []
    for layer in model.modules():
        if getattr(layer, "bias", None) is not None and isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(lambda layer, inputs, output: counts.append(output.numel()))
    model.eval()(x)
    return sum(counts)


@pytest.mark.parametrize(
    ("name", "macs", "parameters", "activations"),
    [
        ("regnetx_002", "199.04", 2.68, 2.16),
        ("regnetx_004", "397.68", 5.16, 3.14),
        ("regnety_004", "401.85", 4.34, 3.89),
        ("regnety_040", "3973.3", 20.65, 12.29),
        ("efficientnet_b0", "385.83", 5.29, 6.75),
    ],
)
def test_networks_of_the_scaling_paper_have_its_complexity(
    name: str, macs: str, parameters: float, activations: float
) -> None:
    timm = pytest.importorskip("timm")
    x = torch.empty(1, 3, 224, 224, device=META)
    counted = cost(timm.create_model(name), x)
    # Its counter adds one operation for every element with a bias; ours, like the other papers, does not.
    biases = biased_outputs(timm.create_model(name).to(META), x)
    assert f"{(counted.macs + biases) / 1e6:.{len(macs.split('.')[1])}f}" == macs
    assert round(counted.parameters / 1e6, 2) == parameters
    assert round(counted.activations / 1e6, 2) == activations


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    groups=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_convolutions_of_every_kind_are_counted_exactly(
    sides: tuple[int, int], groups: int, widths: tuple[int, int], kernel: int, stride: int, dilation: int, bias: bool,
    transposed: bool,
) -> None:  # fmt: skip
    inputs, outputs = widths[0] * groups, widths[1] * groups
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(inputs, outputs, kernel, stride, padding=1, groups=groups, dilation=dilation, bias=bias)
    x = torch.rand(2, inputs, *sides)
    out = layer(x)
    # A kernel tap is used once for each place it is put at: in the input when transposed, else in the output.
    places = x[0, 0].numel() if transposed else out[0, 0].numel()
    counted = cost(layer, x, timed=False)
    assert counted.macs == 2 * places * kernel * kernel * inputs * outputs // groups
    assert counted.activations == out.numel()


@pytest.mark.parametrize(
    ("function", "shapes", "macs", "activations"),
    [
        (nn.Linear(7, 5), [(3, 4, 7)], 3 * 4 * 7 * 5, 3 * 4 * 5),
        (nn.Linear(7, 5, bias=False), [(7,)], 7 * 5, 5),
        (nn.Conv1d(4, 6, 3), [(2, 4, 9)], 2 * 7 * 3 * 4 * 6, 2 * 7 * 6),
        (nn.Conv3d(2, 3, 2), [(1, 2, 4, 5, 6)], 3 * 4 * 5 * 8 * 2 * 3, 3 * 4 * 5 * 3),
        (torch.matmul, [(2, 3, 4, 5), (5, 6)], 2 * 3 * 4 * 5 * 6, 2 * 3 * 4 * 6),
        (torch.mv, [(4, 5), (5,)], 20, 4),
        (torch.dot, [(5,), (5,)], 5, 1),
        (torch.addmv, [(4,), (4, 5), (5,)], 20, 4),
        (torch.baddbmm, [(2, 3, 5), (2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5, 2 * 3 * 5),
        (lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5, 2 * 3 * 5),
        (F.scaled_dot_product_attention, [(2, 3, 7, 4), (2, 3, 9, 4), (2, 3, 9, 5)], 6 * 7 * 9 * (4 + 5), 6 * 7 * 5),
        (F.relu, [(3, 3)], 0, 0),
        (F.layer_norm, [(3, 4), (4,)], 0, 0),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_and_attention_are_counted_exactly(
    function: Any, shapes: list[tuple[int, ...]], macs: int, activations: int, device: str
) -> None:
    inputs = [torch.ones(shape, device=device) for shape in shapes]
    call = (lambda x, w: F.layer_norm(x, (4,), w)) if function is F.layer_norm else function
    counted = cost(call, *inputs, timed=False)
    assert (counted.macs, counted.activations) == (macs, activations)


def test_attention_with_shared_keys_costs_every_query_head() -> None:
    def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    q, k, v = torch.rand(1, 6, 8, 4), torch.rand(1, 2, 8, 4), torch.rand(1, 2, 8, 4)
    assert cost(grouped, q, k, v, timed=False).macs == 6 * 8 * 8 * (4 + 4)


def test_deformable_convolution_counts_as_the_plain_one() -> None:
    ops = pytest.importorskip("torchvision.ops")
    layer = ops.DeformConv2d(4, 6, 3, padding=1, groups=2)
    x, offset = torch.rand(1, 4, 5, 7), torch.zeros(1, 18, 5, 7)
    assert cost(layer, x, offset, timed=False).macs == 5 * 7 * 9 * 4 * 6 // 2


def test_an_operator_of_our_own_counts_what_it_says() -> None:
    @torch.library.custom_op("saccade_test::scan", mutates_args=())
    def scan(x: Tensor, states: int) -> Tensor:
        return x.cumsum(-1) * states

    @register_macs(torch.ops.saccade_test.scan)
    def scan_macs(x_shape: Any, states: int, *, out_shape: Any = None) -> int:
        return math.prod(x_shape) * states

    def twice(x: Tensor) -> Tensor:
        return scan(scan(x, 3), 4)

    counted = cost(twice, torch.rand(5, 6), timed=False)
    assert (counted.macs, counted.activations) == (5 * 6 * (3 + 4), 2 * 5 * 6)


def test_peak_bytes_hold_weights_input_and_the_two_neighbouring_maps() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    pixels = 10 * 12
    always = count_parameters(model) + pixels
    assert cost(model, torch.rand(1, 1, 10, 12), timed=False).peak_bytes == 4 * (always + 8 * pixels + 8 * pixels)


def test_peak_bytes_follow_what_stays_alive_not_what_was_made() -> None:
    def chain(x: Tensor) -> Tensor:
        for _ in range(5):
            x = x + 1
        return x

    def hoard(x: Tensor) -> Tensor:
        kept = [x + i for i in range(5)]
        return kept[0]

    x = torch.zeros(100)
    assert cost(chain, x, timed=False).peak_bytes == 3 * 400
    assert cost(hoard, x, timed=False).peak_bytes == 6 * 400
    assert cost(lambda x: x.view(10, 10).t().add_(1), x, timed=False).peak_bytes == 400


@settings(max_examples=15, deadline=None)
@given(height=st.integers(4, 40), width=st.integers(4, 40), batch=st.integers(1, 3))
def test_shapes_alone_give_the_figures_of_a_real_run(height: int, width: int, batch: int) -> None:
    model = espcn(2)
    real = cost(model, torch.rand(batch, 1, height, width), timed=False)
    shapes = cost(model, torch.empty(batch, 1, height, width, device=META))
    assert (shapes.macs, shapes.activations, shapes.peak_bytes) == (real.macs, real.activations, real.peak_bytes)


def test_an_8k_input_is_counted_without_computing_it() -> None:
    model = espcn(2)
    counted = cost(model, torch.empty(1, 1, 4320, 7680, device=META))
    assert counted.macs == 21_184 * 4320 * 7680
    assert counted.peak_bytes > 10 * 2**30
    assert (counted.latency_s, counted.threads, counted.device) == (None, None, "meta")
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_a_model_that_reads_values_cannot_be_counted_by_shapes() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UsageError, match="cannot count Router by shapes alone, give it a real input"):
        cost(Router(), torch.empty(3, device=META))
    assert cost(Router(), torch.ones(3), timed=False).macs == 0


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cost(model, torch.rand(2, 3, 8, 8), repeats=1)
    cost(model, torch.empty(2, 3, 8, 8, device=META))
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_shared_parameters_count_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    second.bias.requires_grad_(False)
    assert count_parameters(model) == 16 + 4 + 4
    assert count_parameters(model, kernels_only=True) == 16
    assert count_parameters(model, trainable_only=True) == 20
    assert cost(model, torch.rand(2, 4), timed=False).macs == 2 * 2 * 16


def test_latency_is_a_median_at_the_stated_threads() -> None:
    calls, seen = [], []

    def work(x: Tensor) -> Tensor:
        calls.append(1)
        seen.append(torch.get_num_threads())
        return x @ x

    before = torch.get_num_threads()
    counted = cost(work, torch.rand(64, 64), repeats=3, warmup=2, threads=1)
    assert len(calls) == 1 + 2 + 3
    assert set(seen[1:]) == {1}
    assert torch.get_num_threads() == before
    assert counted.threads == 1
    assert counted.latency_s is not None
    assert 0 < counted.latency_s < 1


def test_a_failing_model_raises_its_own_error_and_threads_come_back() -> None:
    before = torch.get_num_threads()
    model = nn.Linear(3, 3).train()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        cost(model, torch.rand(2, 4), threads=1)
    assert model.training
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("options", [{"repeats": 0}, {"warmup": -1}, {"threads": 0}])
def test_senseless_timing_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        cost(F.relu, torch.rand(2), **options)  # type: ignore[arg-type]


def test_figures_read_well_and_go_to_json() -> None:
    figures = Cost(13_520, 28_034_000_000, 1_500, 2**20, 0.0123, 2, "cpu")
    text = str(figures)
    for part in (
        "13.52 k parameters",
        "28.03 G MACs",
        "1.5 k activations",
        "1.049 MB peak",
        "12.3 ms (cpu, 2 threads)",
    ):
        assert part in text
    assert json.loads(json.dumps(figures.to_dict()))["latency_s"] == 0.0123
    assert "not timed (meta)" in str(Cost(1, 0, 0, 0, None, None, "meta"))


def test_the_package_offers_the_function_however_the_module_was_imported() -> None:
    import saccade.cost

    assert saccade.cost(nn.Linear(2, 3), torch.rand(1, 2), timed=False).macs == 6  # type: ignore[operator]


def test_the_verb_prints_exact_figures_as_json() -> None:
    result = run("sesr_m5", "--scale", "2", "--size", "3x1080x1920", "--meta", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["macs"] == 13_520 * 1080 * 1920
    assert figures["input"] == [1, 1, 1080, 1920]
    assert (figures["model"], figures["scale"], figures["latency_s"]) == ("sesr_m5", 2, None)


def test_the_verb_counts_a_file_of_weights(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save(create("sesr_m3", weights=None, scale=3), path)
    named = run("sesr_m3", "--scale", "3", "--size", "20x30", "--json", "--meta")
    for more in ((), ("--meta",)):
        found = run(str(path), "--size", "20x30", "--json", *more)
        assert found.exit_code == 0, found.output
        assert json.loads(found.stdout)["macs"] == json.loads(named.stdout)["macs"]
    refused = run(str(path), "--size", "9x9", "--scale", "2")
    assert isinstance(refused.exception, UsageError)
    assert "leave --scale out" in str(refused.exception)


def test_the_verb_times_a_real_run_and_says_so() -> None:
    result = run("sesr_m3", "--size", "24x32", "--threads", "1", "--repeats", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("sesr_m3 on 1x1x24x32: ")
    assert "s (cpu, 1 thread)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sesr_m5", "--size", "2x8x8"), "sesr_m5 takes 1 channel, --size 2x8x8 has 2; ask for 1x8x8"),
        (("sesr_m5", "--size", "8"), "--size takes HxW"),
        (("sesr_m5", "--size", "8x8", "--budget", "0.5"), "sesr_m5 has no budget dial"),
        (("sesr_m5", "--size", "8x8", "--scale", "7"), "x7"),
        (("sesr_m55", "--size", "8x8"), "sesr_m5"),
        (("sesr_m5", "--size", "8x8", "--device", "nowhere"), "cannot use the device 'nowhere'"),
        (("sesr_m5", "--size", "8x8", "--threads", "0"), "1 to 1024 threads, not 0"),
        (("sesr_m5", "--size", "8x8", "--threads", "100000"), "1 to 1024 threads, not 100000"),
    ],
)
def test_the_verb_refuses_what_cannot_be(arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UsageError)
    assert words in str(result.exception)


@given(st.lists(st.integers(1, 9999), min_size=2, max_size=4), st.sampled_from("xX×"))
def test_sizes_read_back(sides: list[int], sign: str) -> None:
    assert parse_size(sign.join(map(str, sides))) == tuple(sides)


@given(st.text(max_size=12).filter(lambda text: not re.fullmatch(r"\d+([xX×]\d+){1,3}", text)))
def test_any_other_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--size takes HxW"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0x5", "5x0", "1x2x3x4x5", "-1x5", "08x8", "3 x 4"])
def test_sizes_that_are_no_picture_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--size takes HxW"):
        parse_size(text)
