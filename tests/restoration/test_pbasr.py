from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import saccade
from saccade.checkpoint import save
from saccade.cli import main
from saccade.data.intended_blur import disc_kernel, intended_blur, line_kernel, soft_masks
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.discriminator import UNetDiscriminator
from saccade.quality.adversarial import adversarial_loss, masked_mean
from saccade.restoration.pbasr import RRDBNet, from_official, from_rrdbnet, load_branch, merge_files, mirrored
from saccade.training.dual_branch import adaptive_decay, dual_branch, exchange, merge_into, merged, similarity

SMALL = {"blocks": 1, "width": 8, "growth": 4}


def drawn(seed: int = 0, **options: object) -> RRDBNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return RRDBNet(**{**SMALL, **options}).eval()  # type: ignore[arg-type]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["merge", *arguments])
    return int(ended.value.code or 0)


def test_the_published_network_has_its_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in RRDBNet().parameters()) == 16_697_987


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4]))
@settings(max_examples=15, deadline=None)
def test_any_size_goes_in_and_comes_out_enlarged(height: int, width: int, scale: int) -> None:
    with torch.no_grad():
        made = drawn(scale=scale)(torch.rand(2, 3, height, width))
    assert made.shape == (2, 3, scale * height, scale * width)


@pytest.mark.parametrize("scale", [4, 2, 1])
def test_an_output_pixel_sees_no_further_than_the_halo(scale: int) -> None:
    network, side = drawn(scale=scale), 161
    x = torch.rand(1, 3, side, side, requires_grad=True)
    network(x)[0, :, side // 2 * scale, side // 2 * scale].sum().backward()
    assert x.grad is not None
    seen = (x.grad.abs().sum((0, 1)) > 0).nonzero() - side // 2
    assert int(seen.abs().max()) <= network.halo


@pytest.mark.parametrize("scale", [4, 2])
def test_a_file_alone_tells_its_network(tmp_path: Path, scale: int) -> None:
    network = drawn(scale=scale, blocks=2)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "esrgan.pth")
    loaded = saccade.load(tmp_path / "esrgan.pth")
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded(x), network(x))


def test_a_file_with_both_branches_is_their_mean_and_a_stale_mixture_is_not_believed(tmp_path: Path) -> None:
    general, blur, stale = (drawn(seed).state_dict() for seed in range(3))
    both = {f"general_branch.{k}": v for k, v in general.items()} | {f"defocus_branch.{k}": v for k, v in blur.items()}
    torch.save({"params": both | {f"combinet.{k}": v for k, v in stale.items()}}, tmp_path / "pbasr.pth")
    loaded = saccade.load(tmp_path / "pbasr.pth")
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, (general[name] + blur[name]) / 2)
    torch.save({f"combinet.{k}": v for k, v in stale.items()}, tmp_path / "combined.pth")
    torch.testing.assert_close(saccade.load(tmp_path / "combined.pth").state_dict(), stale)
    recipe = from_official({**both}, alpha=0.25)
    assert recipe is not None
    wanted = general["conv_last.bias"].lerp(blur["conv_last.bias"], 0.25)
    torch.testing.assert_close(recipe.state["conv_last.bias"], wanted)


def test_a_branch_of_a_file_is_had_by_its_name_and_every_alpha_by_its_number(tmp_path: Path) -> None:
    general, blur = (drawn(seed).state_dict() for seed in range(2))
    both = {f"general_branch.{k}": v for k, v in general.items()} | {f"defocus_branch.{k}": v for k, v in blur.items()}
    torch.save({"params": both}, tmp_path / "pbasr.pth")
    torch.save({f"combinet.{k}": v for k, v in blur.items()}, tmp_path / "combined.pth")
    torch.save(general, tmp_path / "plain.pth")
    file, name = tmp_path / "pbasr.pth", "conv_hr.weight"
    torch.testing.assert_close(load_branch(file, "general").state_dict(), general)
    torch.testing.assert_close(load_branch(file, "blur").state_dict(), blur)
    torch.testing.assert_close(load_branch(file).state_dict()[name], (general[name] + blur[name]) / 2)
    torch.testing.assert_close(load_branch(file, alpha=0.25).state_dict()[name], general[name].lerp(blur[name], 0.25))
    torch.testing.assert_close(load_branch(tmp_path / "combined.pth").state_dict(), blur)
    torch.testing.assert_close(load_branch(tmp_path / "plain.pth").state_dict(), general)
    for options in ({"branch": "blur"}, {"alpha": 0.2}):
        with pytest.raises(CheckpointError, match="holds one network"):
            load_branch(tmp_path / "plain.pth", **options)
    with pytest.raises(UsageError, match="general, blur and combined"):
        load_branch(file, "defocus")
    with pytest.raises(UsageError, match="outside"):
        load_branch(file, alpha=1.5)
    save(saccade.create("cleaner_small", weights=None), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no RRDBNet"):
        load_branch(tmp_path / "other.safetensors")


def test_files_of_other_networks_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="another network than RRDBNet"):
        from_official({"general_branch.x.weight": torch.zeros(1), "defocus_branch.x.weight": torch.zeros(1)})
    state = drawn(blocks=2).state_dict()
    with pytest.raises(CheckpointError, match="lacks a block"):
        from_rrdbnet({k.replace("body.1", "body.7"): v for k, v in state.items()})
    state["conv_first.weight"] = torch.zeros(8, 5, 3, 3)
    with pytest.raises(CheckpointError, match="takes 5 channels"):
        from_rrdbnet(state)


def test_impossible_networks_are_refused() -> None:
    for options, says in (({"scale": 3}, "by 4, 2 or 1"), ({"blocks": 0}, "blocks and channels")):
        with pytest.raises(UsageError, match=says):
            drawn(**options)
    with pytest.raises(InputError, match="divide by 255"):
        drawn()(torch.full((1, 3, 4, 4), 200.0))


@pytest.mark.parametrize("scale", [4, 2])
def test_an_empty_batch_is_refused_in_training_too(scale: int) -> None:
    with pytest.raises(InputError, match="empty"):
        drawn(scale=scale).train()(torch.zeros(0, 3, 8, 8))


@pytest.mark.parametrize("scale", [4, 2])
def test_it_exports_with_free_height_and_width(scale: int) -> None:
    network = drawn(scale=scale)
    sizes = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    with torch.no_grad():
        exported = torch.export.export(network, (torch.rand(1, 3, 12, 16),), dynamic_shapes=(sizes,)).module()
        for shape in ((12, 16), (20, 9 if scale == 4 else 10)):
            x = torch.rand(1, 3, *shape)
            torch.testing.assert_close(exported(x), network(x))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [4, 2, 1])
def test_it_compiles_once_for_sizes_that_change_odd_ones_too(scale: int) -> None:
    network = drawn(scale=scale, blocks=1, width=4, growth=2)
    compiled = torch.compile(network, fullgraph=True)
    with torch.inference_mode():
        for shape in ((8, 10), (9, 11), (12, 8)):  # from the second on, sizes are free
            x = torch.rand(1, 3, *shape)
            torch.testing.assert_close(compiled(x), network(x), rtol=1e-5, atol=1e-6)


def test_mirrored_inference_keeps_the_size_and_refuses_what_is_too_small() -> None:
    network = drawn()
    assert mirrored(network, torch.rand(1, 3, 16, 24)).shape == (1, 3, 64, 96)
    with pytest.raises(InputError, match="too small to be mirrored"):
        mirrored(network, torch.rand(1, 3, 5, 30))


def test_an_exchange_uses_the_old_values_of_both() -> None:
    general, blur = nn.Linear(3, 2), nn.Linear(3, 2)
    old = [p.detach().clone() for p in (*general.parameters(), *blur.parameters())]
    exchange(general, blur, 0.9)
    for p, mine, its in zip(general.parameters(), old[:2], old[2:], strict=True):
        torch.testing.assert_close(p.detach(), 0.9 * mine + 0.1 * its)
    for p, mine, its in zip(blur.parameters(), old[2:], old[:2], strict=True):
        torch.testing.assert_close(p.detach(), 0.9 * mine + 0.1 * its)
    with pytest.raises(UsageError, match="decay of the exchange"):
        exchange(general, blur, 1.5)


def test_alike_branches_mix_less() -> None:
    assert adaptive_decay(1.0) == pytest.approx(1.0)
    assert adaptive_decay(0.0) == pytest.approx(0.995)
    state = {"a": torch.ones(3), "b": torch.tensor([1.0, 0.0])}
    assert similarity(state, state) == pytest.approx(1.0)
    assert similarity(state, {"a": -torch.ones(3), "b": torch.tensor([0.0, 1.0])}) == pytest.approx(-0.5)
    assert similarity({"zero": torch.zeros(3), **state}, {"zero": torch.zeros(3), **state}) == pytest.approx(1.0)
    assert similarity({"zero": torch.zeros(3)}, {"zero": torch.ones(3)}) == 0


def test_counters_are_not_averaged_and_statistics_only_when_asked() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train() for _ in range(2)]
        for i, net in enumerate(nets):
            for _ in range(i + 1):
                net(torch.rand(2, 3, 5, 5))
    states = [net.state_dict() for net in nets]
    learnt = {name for name, _ in nets[0].named_parameters()}
    kept, mixed = (merged(*states, 0.5, parameters=learnt, buffers=b) for b in ("general", "average"))
    assert int(kept["1.num_batches_tracked"]) == int(mixed["1.num_batches_tracked"]) == 1
    torch.testing.assert_close(kept["1.running_mean"], states[0]["1.running_mean"])
    torch.testing.assert_close(mixed["1.running_mean"], (states[0]["1.running_mean"] + states[1]["1.running_mean"]) / 2)
    torch.testing.assert_close(kept["0.weight"], (states[0]["0.weight"] + states[1]["0.weight"]) / 2)
    with pytest.raises(UsageError, match="buffers are taken"):
        merged(*states, buffers="blur")


def test_the_first_difference_of_two_branches_is_named() -> None:
    with pytest.raises(CheckpointError, match="conv is in one"):
        merged({"conv": torch.ones(1)}, {})
    with pytest.raises(CheckpointError, match=r"conv has the shapes \(1,\) and \(2,\)"):
        merged({"conv": torch.ones(1)}, {"conv": torch.ones(2)})


def test_files_are_merged_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("a", "b")):
        model = saccade.create("rrdbnet", weights=None, **SMALL)
        model.load_state_dict(drawn(seed).state_dict())
        save(model, tmp_path / f"{name}.safetensors")
    a, b, out = (str(tmp_path / f"{n}.safetensors") for n in ("a", "b", "out"))
    assert run(a, b, "--alpha", "0.25", "-o", out) == 0
    assert "do not use it" in capsys.readouterr().err  # two starts
    made = saccade.load(out).state_dict()
    parts = [drawn(seed).conv_hr.weight.detach() for seed in (0, 1)]
    torch.testing.assert_close(made["conv_hr.weight"], parts[0].lerp(parts[1], 0.25))
    assert run(a, b, "-o", out) == 1
    assert "exists" in capsys.readouterr().err
    assert run(a, b, "-o", out, "--alpha", "1.5", "--overwrite") == 2
    assert run(a, b, "-o", out, "--alpha", "1.5", "--extrapolate", "--overwrite", "--json") == 0
    assert '"alpha": 1.5' in capsys.readouterr().out
    assert run(a, "-o", out, "--overwrite") == 1
    assert "does not hold two branches" in capsys.readouterr().err


def test_files_of_different_networks_are_not_merged(tmp_path: Path) -> None:
    for name, options in (("a", SMALL), ("b", {**SMALL, "growth": 5})):
        save(saccade.create("rrdbnet", weights=None, **options), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="hold different networks"):
        merge_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_a_published_file_and_one_of_ours_are_merged_whatever_of_their_options_is_said(tmp_path: Path) -> None:
    ours = saccade.create("rrdbnet", weights=None, blocks=1, width=8, growth=4)  # the scale is not said
    save(ours, tmp_path / "a.safetensors")
    torch.save(drawn(1).state_dict(), tmp_path / "b.pth")
    told = merge_files(tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c.safetensors")
    wanted = (ours.conv_hr.weight + drawn(1).conv_hr.weight).detach() / 2
    torch.testing.assert_close(saccade.load(tmp_path / "c.safetensors").conv_hr.weight.detach(), wanted)
    assert told["parameters"] == sum(p.numel() for p in ours.parameters())
    bilinear = saccade.create("rrdbnet", weights=None, **SMALL, bilinear=True)  # shapes alone would not tell
    save(bilinear, tmp_path / "d.safetensors")
    with pytest.raises(CheckpointError, match="different networks"):
        merge_files(tmp_path / "d.safetensors", tmp_path / "b.pth", tmp_path / "e.safetensors")


def test_networks_with_values_that_are_not_finite_are_not_merged(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", float("nan"))):
        model = saccade.create("rrdbnet", weights=None, **SMALL)
        torch.nn.init.constant_(model.conv_hr.bias, value)
        save(model, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        merge_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_the_merge_in_place_is_the_merge_and_other_kinds_of_numbers_are_refused() -> None:
    states = [dict(drawn(seed).state_dict()) for seed in range(2)]
    wanted = merged(*states, 0.3)
    merge_into(states[0], states[1], 0.3)
    torch.testing.assert_close(states[0], wanted)
    with pytest.raises(CheckpointError, match="conv is float32 and int64"):
        merged({"conv": torch.ones(1)}, {"conv": torch.ones(1, dtype=torch.int64)})


@pytest.mark.slow
def test_merging_takes_no_more_memory_than_three_files(tmp_path: Path) -> None:
    """Of RRDBNets of the published size, 67 MB each; a merge of small ones comes first, for what is imported."""
    script = (
        "import re, torch, saccade\n"
        "from saccade.restoration.pbasr import merge_files\n"
        "def held(what): return int(re.search(what + r':\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "for names, options in (('xy', dict(blocks=1, width=8, growth=4)), ('ab', {})):\n"
        "    for name in names:\n"
        "        saccade.save(saccade.create('rrdbnet', weights=None, **options), f'{name}.safetensors')\n"
        "    open('/proc/self/clear_refs', 'w').write('5')\n"  # forget the peak so far
        "    before = held('VmRSS')\n"
        "    merge_files(*(f'{n}.safetensors' for n in names), f'{names}.safetensors')\n"
        "print(held('VmHWM') - before)\n"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert int(made.stdout) <= 3 * (tmp_path / "a.safetensors").stat().st_size


class _Pairs:
    def __init__(self, offset: float) -> None:
        self.offset = offset

    def batch(self, size: int, seed: int, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        x = torch.from_numpy(np.random.default_rng((seed, step)).random((size, 4), np.float32))
        return x, x.sum(1, keepdim=True) + self.offset


def test_two_branches_learn_their_own_kind_and_the_mixture_lies_between() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Linear(4, 1)
    start = network.weight.detach().clone()
    seen: list[int] = []
    made = dual_branch(
        network, _Pairs(0.0), _Pairs(0.4), steps=150, rate=0.05, decay=None, after=lambda step, *_: seen.append(step)
    )
    assert torch.equal(network.weight, start), "the start is not changed"
    assert seen == list(range(150))
    x = torch.full((1, 4), 0.5)
    general, blur, combined = (float(net(x).detach()) for net in (made.general, made.blur, made.combined))
    assert general == pytest.approx(2.0, abs=0.05)
    assert blur == pytest.approx(2.4, abs=0.05)
    assert combined == pytest.approx((general + blur) / 2, abs=1e-5)
    tied = dual_branch(network, _Pairs(0.0), _Pairs(0.4), steps=150, rate=0.05, decay=0.9, adaptive=True)
    assert tied.similarity >= made.similarity


def test_a_mask_chooses_what_counts() -> None:
    values, mask = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert float(masked_mean(values, mask)) == 3
    assert float(masked_mean(values, torch.zeros(1, 2))) == 2, "an empty mask counts all"
    assert float(masked_mean(values, None)) == 2
    for bad, says in ((torch.full((1, 2), 2.0), r"lies in \[0, 1\]"), (torch.ones(3, 2), "does not go with")):
        with pytest.raises(InputError, match=says):
            masked_mean(values, bad)
    with pytest.raises(UsageError, match="vanilla, lsgan, hinge"):
        adversarial_loss(values, True, kind="wgan")


@pytest.mark.parametrize("kind", ["vanilla", "lsgan", "hinge"])
def test_adversarial_losses_have_finite_gradients_with_an_empty_mask(kind: str) -> None:
    logits = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    adversarial_loss(logits, False, kind=kind, mask=torch.zeros(1, 1, 3, 3)).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("condition", ["none", "joint", "late"])
def test_a_discriminator_judges_every_pixel(condition: str) -> None:
    judge = UNetDiscriminator(8, condition)  # type: ignore[arg-type]
    picture = torch.rand(2, 3, 17, 24)
    mask = None if condition == "none" else torch.rand(2, 1, 17, 24)
    assert judge(picture, mask).shape == (2, 1, 17, 24)
    with pytest.raises(InputError, match="condition"):
        judge(picture, torch.rand(2, 1, 17, 24) if mask is None else None)


def test_a_late_condition_is_ignored_at_first() -> None:
    judge, picture = UNetDiscriminator(8, "late").eval(), torch.rand(1, 3, 16, 16)
    one, other = (judge(picture, torch.full((1, 1, 16, 16), v)) for v in (0.0, 1.0))
    torch.testing.assert_close(one, other)
    with pytest.raises(UsageError, match="none, joint or late"):
        UNetDiscriminator(8, "early")  # type: ignore[arg-type]


def test_intended_blur_keeps_what_is_outside_its_mask() -> None:
    chance = np.random.default_rng(0)
    sharp = torch.rand(3, 3, 40, 44, generator=torch.Generator().manual_seed(0))
    made, mask = intended_blur(sharp, chance)
    assert made.shape == sharp.shape
    assert mask.shape == (3, 1, 40, 44)
    outside, inside = (mask == 0).expand_as(sharp), (mask == 1).expand_as(sharp)
    torch.testing.assert_close(made[outside], sharp[outside])
    assert made[inside].var() < 0.3 * sharp[inside].var()
    assert 0.3 < float(soft_masks(8, 30, 30, chance).mean()) < 0.7
    for kernel in (disc_kernel(3, 13), line_kernel(9, 0.7, 13)):
        assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="blur is put on pictures"):
        intended_blur(torch.zeros(3, 4, 4), chance)


def test_macs_are_counted_where_they_are_done() -> None:
    for scale in (4, 2):
        network = drawn(scale=scale)
        counted = saccade.cost(network, torch.zeros(1, 3, 16, 16)).macs
        assert network.kernels * 256 == pytest.approx(counted)
