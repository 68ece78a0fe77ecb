import io

import pytest
import torch

from saccade.bench.restoration.realbasicvsr import Plain
from saccade.checkpoint import load, save
from saccade.cost import count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.registry import create
from saccade.restoration.realbasicvsr import RealBasicVSR, SPyNet, from_official
from saccade.restoration.realbasicvsr.network import _NAMES
from saccade.restoration.realbasicvsr.streaming import Streamer, window_for


@torch.no_grad()
def filled(model: RealBasicVSR, seed: int = 0) -> RealBasicVSR:
    """Every weight random and large enough that every part is felt."""
    chance = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        drawn = torch.randn(p.shape, generator=chance)
        p.copy_(drawn * (0.7 / p[0].numel() ** 0.5) if p.dim() > 1 else 0.05 * drawn)
    for layer in (*model.flow.levels, model.cleaning):
        if layer is not None:
            (layer.convs[-1] if hasattr(layer, "convs") else layer.last).weight.mul_(0.2)
    return model


def small(seed: int = 0, **options) -> RealBasicVSR:
    given = {"width": 6, "blocks": 1, "cleaning_blocks": 1, "threshold": 255.0, **options}
    return filled(create("realbasicvsr_tiny", weights=None, **given), seed)


def clip(frames: int = 4, height: int = 40, width: int = 36, count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def published_names(model: RealBasicVSR, prefix: str = "") -> dict[str, torch.Tensor]:
    """A state dict under the published names."""
    told = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "cleaning":
            found = "image_cleaning.1." if parts[1] == "last" else "image_cleaning.0.main."
            found += "" if parts[1] == "last" else "0." if parts[2] == "first" else f"2.{parts[3]}.{parts[4]}."
        elif parts[0] == "flow":
            found = "basicvsr.spynet."
            found += f"basic_module.{parts[2]}.basic_module.{parts[4]}.conv." if parts[1] == "levels" else ""
        elif parts[0].endswith("_branch"):
            found = f"basicvsr.{parts[0].replace('branch', 'resblocks')}.main."
            found += "0." if parts[2] == "first" else f"2.{parts[3]}.{parts[4]}."
        else:
            found = (
                "basicvsr."
                + {
                    "fusion": "fusion.",
                    "enlarge1": "upsample1.upsample_conv.",
                    "enlarge2": "upsample2.upsample_conv.",
                    "high": "conv_hr.",
                    "last": "conv_last.",
                }[parts[1]]
            )
        told[prefix + found + parts[-1]] = value
    return told


# -- published counts


def test_parameters_are_the_published_ones():
    with torch.device("meta"):
        model = create("realbasicvsr", weights=None)
    assert count_parameters(model) == 6_294_834
    assert count_parameters(model.cleaning) == 1_480_643
    assert count_parameters(model.flow) == 1_440_300
    tiny = create("realbasicvsr_tiny", weights=None, cleaning_blocks=None)
    assert count_parameters(tiny) - count_parameters(tiny.flow) == 55_187


def test_macs_are_the_published_ones():
    with torch.device("meta"):
        model = create("realbasicvsr", weights=None)
    assert model.cleaning.kernels == 20 * 2 * 36_864 + 1_728 * 2
    assert 2 * model.forward_branch.stack.kernels == 2 * (20 * 73_728 + 38_592)
    assert model.tail.kernels == pytest.approx(1.36e6, rel=0.005)
    assert model.macs(1) == pytest.approx(6.51e6, rel=0.001)
    assert model.macs(1) * 320 * 180 == pytest.approx(0.375e12, rel=0.001)


def test_counted_macs_are_executed():
    from torch.utils.flop_counter import FlopCounterMode

    model = small()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip(3, 64, 64))
    pixels = 3 * 64 * 64
    flows = 2 * model.flow.kernels * sum(0.25**i for i in range(6)) * 2 / 3  # two flows for each of two pairs
    expected = model.macs(1) - model.macs(0) + flows + 2 * model.forward_branch.stack.kernels + model.tail.kernels
    assert counter.get_total_flops() / 2 / pixels == pytest.approx(expected, rel=1e-6)


# -- the network


def test_fast_path_plain_algorithm_and_gradient_path_agree():
    model, x = small(), clip(4, 75, 41)
    with torch.no_grad():
        fast = model(x)
    slow = model(x)  # with gradients: nothing in place, no strips
    assert fast.abs().std() > 0.1
    torch.testing.assert_close(fast, slow.detach(), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(fast, Plain(model)(x), atol=2e-5, rtol=1e-4)


def test_the_gradient_reaches_every_parameter():
    model = small()
    model.train()
    model(clip(3, 32, 32)).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("neighbour", [0, 2])
def test_a_frame_draws_on_both_its_neighbours(neighbour):
    model, x = small(), clip(3)
    other = x.clone()
    other[:, neighbour] = 1 - other[:, neighbour]
    with torch.no_grad():
        assert (model(x) - model(other))[:, 1].abs().max() > 1e-3


def test_one_frame_is_a_picture():
    model, x = small(), clip(1, 70, 33)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:, 0], model(x[:, 0]))
    assert model.flows(x)[0].shape == (1, 0, 2, 70, 33)


def test_pictures_can_be_tiled_with_the_halo():
    model, x = small(), clip(1, 64, 8)[:, 0]
    halo = model.picture_halo
    with torch.no_grad():
        whole, part = model(x), model(x[:, :, 32 - halo : 48 + halo])
    torch.testing.assert_close(part[:, :, 4 * halo : 4 * (halo + 16)], whole[:, :, 128:192], atol=1e-5, rtol=1e-4)


def test_a_mirrored_clip_finds_its_flows_once(monkeypatch):
    model, x = small(), clip(3)
    mirror, calls, between = torch.cat([x, x.flip(1)], 1), [], SPyNet.between
    monkeypatch.setattr(SPyNet, "between", lambda *a: calls.append(1) or between(*a))
    with torch.no_grad():
        short = model.flows(mirror)
        assert len(calls) == 5
        other = mirror.clone()
        other[0, 5, 0, 0, 0] += 1e-3
        long = model.flows(other)
    assert len(calls) == 15
    torch.testing.assert_close(short[1], long[1], atol=0.05, rtol=0.05)


def test_flow_of_any_size_has_that_size():
    net = small().flow
    for height, width in ((64, 64), (1, 1), (33, 70), (17, 96)):
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            assert net(x, x).shape == (2, 2, height, width)
    with pytest.raises(InputError):
        net(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))


# -- cleaning


def test_cleaning_stops_below_the_threshold_and_leaves_the_input_alone():
    model, x = small(), clip()
    before, passes = x.clone(), []
    for threshold in (255.0, 0.0):
        model.threshold = threshold
        with torch.no_grad():
            model(x)
        passes.append(len(model.last_changes))
    assert passes == [1, 3]
    changes = model.last_changes
    model.threshold = changes[0] + 1e-3
    model.clean(x)
    assert len(model.last_changes) == 1
    model.threshold = min(changes) - 1e-3
    model.clean(x)
    assert len(model.last_changes) == 3
    assert torch.equal(x, before)


def test_training_makes_one_pass_whatever_the_threshold():
    model = small(threshold=0.0)
    model.train().clean(clip())
    assert len(model.last_changes) == 1


def test_the_dial_caps_the_passes():
    model = small(threshold=0.0)
    assert model.budgets()[-1] == 1
    found = []
    for budget in (0.01, *model.budgets()):
        model.budget = budget
        model.clean(clip())
        found.append(len(model.last_changes))
    assert found == [1, 1, 2, 3]
    assert model.budget == 1
    with pytest.raises(UsageError):
        model.budget = 0
    assert small(cleaning_blocks=None).budgets() == [1.0]


# -- streaming


@pytest.mark.parametrize(("window", "context"), [(1, 0), (2, 1), (3, 4), (12, 6)])
def test_a_stream_is_the_whole_clip_where_the_context_reaches_its_end(window, context):
    model, x = small(), clip(5)
    streamer = Streamer(model, window, context)
    with torch.no_grad():
        whole = model(x)[0]
    parts = torch.stack(list(streamer(x[0])))
    assert parts.shape == whole.shape
    exact = max(0, 5 - window) <= context
    last = slice(-1, None) if not exact else slice(None)
    torch.testing.assert_close(parts[last], whole[last], atol=1e-5, rtol=1e-4)
    assert exact == bool((parts - whole).abs().max() < 1e-4)


def test_more_context_comes_nearer_to_the_whole_clip():
    model, x = small(), clip(12)
    with torch.no_grad():
        whole = model(x)[0]
    errors = [float((torch.stack(list(Streamer(model, 3, c)(x[0]))) - whole).abs().mean()) for c in (0, 1, 3, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-5
    assert errors[-1] < 1e-6


def test_the_first_window_decides_how_often_all_are_cleaned():
    model = small()
    x = clip(6)[0]
    model.clean(x[None])
    model.threshold = 0.0
    streamer = Streamer(model, 2, 0)
    made = list(streamer(x))
    assert streamer.passes == 3
    assert len(made) == 6
    model.threshold = 255.0
    list(streamer(x))
    assert streamer.passes == 1


def test_frames_come_out_while_others_still_go_in():
    taken = []

    def frames():
        for i in range(40):
            taken.append(i)
            yield torch.rand(3, 16, 16)

    stream = Streamer(small(), 4, 2)(frames())
    for i, _ in enumerate(stream):
        assert len(taken) <= i + 4 + 2 + 1


def test_compiled_parts_are_the_network():
    pytest.importorskip("openvino")
    from saccade.restoration.realbasicvsr.compiled import Compiled

    for options in ({}, {"cleaning_blocks": None}):
        model, x = small(**options), clip(4, 75, 33)
        with torch.no_grad():
            whole = model(x)[0]
        parts = torch.stack(list(Streamer(model, 2, 2, Compiled(model, 1))(x[0])))
        torch.testing.assert_close(parts, whole, atol=3e-5, rtol=1e-4)


def test_windows_shrink_to_fit_memory():
    model = create("realbasicvsr_tiny", weights=None)
    found = [window_for(model, (1080, 1920), gigabytes << 30) for gigabytes in (2, 3, 4, 64)]
    assert found == sorted(found)
    assert found[-1] == (12, 6)
    with pytest.raises(UsageError, match="--max-memory"):
        window_for(model, (1080, 1920), 1 << 30)


@pytest.mark.slow
def test_memory_is_the_same_for_50_and_500_frames():
    from saccade.bench.restoration.realbasicvsr import streaming_peak

    short, long = streaming_peak(50), streaming_peak(500)
    assert long < short + (24 << 20), "the 450 frames more, kept at their new size, would be 84 MiB"


# -- bad input


@pytest.mark.parametrize("shape", [(1, 0, 3, 8, 8), (1, 2, 1, 8, 8), (1, 2, 4, 8, 8), (2, 3, 8), (1, 2, 3, 0, 8)])
def test_what_is_no_clip_is_refused(shape):
    with pytest.raises(InputError):
        small()(torch.zeros(shape))


def test_pixels_of_0_to_255_and_wrong_flows_are_refused():
    with pytest.raises(InputError, match="255"):
        small()(clip() * 255)
    with pytest.raises(InputError, match="flow"):
        small()(clip(3), (torch.zeros(1, 3, 2, 40, 36),) * 2)


def test_streams_name_the_frame_that_is_bad():
    streamer = Streamer(small(), 2, 1)
    with pytest.raises(InputError, match="at least one frame"):
        list(streamer([]))
    with pytest.raises(InputError, match="frame 3"):
        list(streamer([torch.rand(3, 16, 16)] * 3 + [torch.rand(3, 16, 18)]))
    with pytest.raises(InputError, match="frame 2"):
        list(streamer([torch.rand(3, 16, 16)] * 2 + [torch.full((3, 16, 16), torch.nan)]))
    with pytest.raises(UsageError):
        Streamer(small(), 0)


@pytest.mark.parametrize("options", [{"width": 0}, {"blocks": -1}, {"cleaning_blocks": -1}])
def test_networks_that_cannot_be_are_refused(options):
    with pytest.raises(UsageError):
        create("realbasicvsr_tiny", weights=None, **options)


# -- published checkpoints


@pytest.mark.parametrize("wrapping", ["averaged", "plain", "bare"])
def test_published_files_load_by_themselves(tmp_path, wrapping):
    model, other = small(), small(seed=1)
    state = {}
    if wrapping != "bare":
        state |= published_names(other if wrapping == "averaged" else model, "generator.")
        state["step_counter"] = torch.zeros(1)
        state["discriminator.conv_0.weight"] = torch.zeros(1)
    if wrapping == "averaged":
        state |= published_names(model, "generator_ema.")
    if wrapping == "bare":
        state = published_names(model)
    path = tmp_path / "published.pth"
    torch.save({"meta": {"mmedit_version": "0.11", "iter": 150_000}, "state_dict": state}, path)
    loaded = load(path)
    loaded.threshold = 255.0
    assert loaded.saccade_name == "realbasicvsr"
    with torch.no_grad():
        assert torch.equal(loaded(clip()), model(clip()))


def test_the_full_network_is_read_from_shapes():
    with torch.device("meta"):
        model = create("realbasicvsr", weights=None)
        recipe = from_official(published_names(model, "generator."))
        assert recipe.options == {
            "scale": 4,
            "width": 64,
            "blocks": 20,
            "cleaning_blocks": 20,
            "high_width": 64,
            "flow_levels": 6,
        }
    assert set(recipe.state) == set(model.state_dict())
    assert len(_NAMES) == 11


def test_own_files_come_back(tmp_path):
    model = small(threshold=3.0)
    save(model, tmp_path / "own.safetensors")
    loaded = load(tmp_path / "own.safetensors")
    assert loaded.threshold == 3.0
    with torch.no_grad():
        assert torch.equal(loaded(clip()), model(clip()))


def test_half_a_checkpoint_is_refused(tmp_path):
    state = published_names(small())
    for missing in ("basicvsr.fusion.weight", "basicvsr.conv_hr.weight", "basicvsr.spynet.mean"):
        torch.save({k: v for k, v in state.items() if k != missing}, tmp_path / "half.pth")
        with pytest.raises(CheckpointError):
            load(tmp_path / "half.pth")
    cut = io.BytesIO()
    torch.save(state, cut)
    for keep in (0, 10, 1000, len(cut.getvalue()) // 2, len(cut.getvalue()) - 5):
        (tmp_path / "cut.pth").write_bytes(cut.getvalue()[:keep])
        with pytest.raises(CheckpointError):
            load(tmp_path / "cut.pth")
