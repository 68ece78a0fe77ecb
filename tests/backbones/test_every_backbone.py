"""What holds of every backbone: timm's contract, fusing, compilation, export, and what is refused."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from saccade.budget import has_budget
from saccade.cost import count_parameters
from saccade.errors import CheckpointError, InputError, UsageError
from saccade.nn.fuse import fuse
from saccade.registry import create, entry, list_models

SYSTEMS = sorted(zoo.SMALL)
WITH_OPTION = ("unireplknet",)  # an option makes the fused form, so it can be saved
SLICED = ("elasticvit",)  # norms of which a slice runs, of a class of their own
NAMES = zoo.names()
SMALLEST = {}
for _name in NAMES:
    SMALLEST.setdefault(entry(_name).system, _name)
#: by default the first of every system, the others among the slow tests; the smallest PIIP has 144 M parameters
EACH = [
    pytest.param(n, marks=[] if n in SMALLEST.values() and not n.startswith("piip") else pytest.mark.slow)
    for n in NAMES
]
LARGE = 120_000_000  # parameters; with gradients and the maps of a step up to 11 bytes for each: 5.4 GB for PIIP-SBL


def counted(name: str) -> int:
    """Parameters of a registered network, on shapes alone where it can be made so."""
    with suppress(RuntimeError), torch.device("meta"):  # a network that needs values to be made is a small one
        return count_parameters(create(name, weights=None))
    return count_parameters(create(name, weights=None))


@pytest.fixture
def alone_if_large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Large networks one at a time, whatever the number of test processes: that bounds the memory that they take."""
    if counted(request.getfixturevalue("name")) <= LARGE:
        yield
        return
    import fcntl

    with (tmp_path_factory.getbasetemp().parent / "large.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or its process ends
        yield
        gc.collect()


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.abs().max())))


def test_every_system_of_backbones_is_in_the_zoo() -> None:
    have = {entry(n).system for n in list_models(task="classification")} - {""}
    assert have == set(zoo.SMALL)


@pytest.mark.timeout(900)  # a large one may wait for another
@pytest.mark.usefixtures("alone_if_large")
@pytest.mark.parametrize("name", EACH)
def test_timm_makes_it_and_its_contract_holds(name: str) -> None:
    import timm

    import saccade.timm  # noqa: F401

    config = timm.get_pretrained_cfg(f"saccade_{name}")
    assert config is not None
    made = timm.create_model(f"saccade_{name}", num_classes=42)
    assert made.training, "as timm's own come"
    assert count_parameters(made) < counted(name)
    side = config.input_size[-1] if config.fixed_input_size else min(config.input_size[-1], 128)
    x = torch.randn(2, 3, side, side)
    out = made(x)
    assert out.shape == (2, 42)
    out.mean().backward()
    assert not [n for n, p in made.named_parameters() if p.grad is None], "every parameter has a gradient"
    keys = made.state_dict().keys()
    assert made.default_cfg["classifier"] + ".weight" in keys
    assert made.default_cfg["first_conv"] is None or made.default_cfg["first_conv"] + ".weight" in keys
    made = made.eval()
    with torch.no_grad():
        last = made.forward_features(x)
        assert last.shape[1] == made.num_features
        assert tuple(last.shape[2:]) == tuple(-(-side // made.feature_info[-1]["reduction"]) for _ in "hw")
        made.reset_classifier(0)
        assert made(x).shape == (2, made.num_features)
        made.reset_classifier(0, "")
        near(made(x), last)
        made.reset_classifier(7, "avg")
        assert made(x).shape == (2, 7)
        assert isinstance(made.get_classifier(), nn.Module)


@pytest.mark.timeout(900)  # a large one may wait for another
@pytest.mark.usefixtures("alone_if_large")
@pytest.mark.parametrize("name", EACH)
def test_its_maps_are_what_they_say(name: str) -> None:
    import timm

    import saccade.timm  # noqa: F401

    side = entry(name).facts.get("size", 224) if entry(name).facts.get("fixed_size") else 128
    maps = timm.create_model(f"saccade_{name}", features_only=True).eval()
    with torch.no_grad():
        found = maps(torch.randn(1, 3, side, side))
    assert [m.shape[1] for m in found] == maps.feature_info.channels()
    assert [-(-side // r) for r in maps.feature_info.reduction()] == [m.shape[-1] for m in found]


@pytest.mark.parametrize("system", SYSTEMS)
def test_intermediates_are_the_maps_on_the_way(system: str) -> None:
    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert len(maps) == small.maps == len(model.feature_info)
        near(last, model.forward_features(x))
        for index in (0, -1):
            near(model.forward_intermediates(x, [index], stop_early=True, intermediates_only=True)[0], maps[index])
        only = small.make(features_only=True, out_indices=(-1,))
        only.model.load_state_dict(model.state_dict(), strict=False)
        near(only(x)[0], maps[-1])
    with pytest.raises(UsageError, match="maps"):
        model.forward_intermediates(x, [small.maps])


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpointed_gradients_are_the_same(system: str) -> None:
    small = zoo.SMALL[system]
    found = []
    for enable in (False, True):
        model = small.make().train()
        for module in model.modules():  # statistics of a batch are taken twice under checkpointing: keep them still
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        model.set_grad_checkpointing(enable)
        x = small.picture().requires_grad_()
        torch.manual_seed(0)
        model(x).square().mean().backward()
        found.append([x.grad, *(p.grad for p in model.parameters())])
    for plain, saved in zip(*found, strict=True):
        near(saved, plain)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_takes_other_sizes_or_says_which(system: str) -> None:
    small = zoo.SMALL[system]
    model = small.make()
    if small.other is None:
        with pytest.raises(InputError, match=str(small.side)):
            model(small.picture(size=(small.side + 16, small.side + 16)))
        return
    with torch.no_grad():
        assert model(small.picture(size=small.other)).isfinite().all()


@pytest.mark.parametrize("system", SYSTEMS)
def test_fused_it_is_the_same_function(system: str) -> None:
    from timm.utils.model import reparameterize_model

    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    with pytest.raises(UsageError, match="eval"):
        fuse(small.make().train())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        want = model(x)
        fused = fuse(model)
        near(fused(x), want, 2e-5)
        near(fuse(fused)(x), fused(x), 1e-6)
        near(reparameterize_model(model)(x), want, 2e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), "the original stays as it was"


@pytest.mark.parametrize("change", ["frozen", "synchronised"])
@pytest.mark.parametrize("system", [s for s in SYSTEMS if s not in SLICED])
def test_norms_that_tools_exchanged_fuse_all_the_same(system: str, change: str) -> None:
    """timm freezes batch norms for tuning, torch synchronises them over devices: neither leaves a BatchNorm2d."""
    from timm.utils.model import freeze_batch_norm_2d

    small = zoo.SMALL[system]
    x = small.picture()
    with torch.no_grad():
        want = small.make()(x)
        exchange = freeze_batch_norm_2d if change == "frozen" else nn.SyncBatchNorm.convert_sync_batchnorm
        near(fuse(exchange(small.make()).eval())(x), want, 2e-5)


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")  # of the batch without pictures
@pytest.mark.parametrize("system", SYSTEMS)
def test_any_layout_number_format_and_count_of_pictures(system: str) -> None:
    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    with torch.no_grad():
        want = model(x)
        near(model(x.mT.contiguous().mT), want)
        near(model(torch.cat([x, x], 1)[:, :3]), want)
        assert model(x[:0]).shape == (0, *want.shape[1:])
        near(small.make().to(memory_format=torch.channels_last)(x), want)
        doubled = small.make().double()(x.double())
        assert doubled.dtype == torch.float64
        near(doubled.float(), want, 1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_it_compiles_without_breaks(system: str) -> None:
    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    torch._dynamo.reset()
    with torch.no_grad():
        near(torch.compile(model, backend="aot_eager", fullgraph=True)(x), model(x))


def _graph(small: zoo.Small, model: nn.Module, path: Path) -> None:
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes: Any = None if small.other is None else (free,)
    program = torch.onnx.export(model, (small.picture(1),), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(str(path))


@pytest.mark.parametrize("system", [s for s in SYSTEMS if zoo.SMALL[s].exports])
def test_onnx_runtime_and_openvino_give_the_same_numbers(system: str, tmp_path: Path) -> None:
    import onnxruntime
    import openvino

    small = zoo.SMALL[system]
    model = fuse(small.make(**small.graph))
    _graph(small, model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    core = openvino.Core()
    compiled = core.compile_model(str(tmp_path / "net.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for size in ((small.side, small.side), small.other):
        if size is None:
            continue
        x = small.picture(1, size=size)
        with torch.no_grad():
            want = model(x)
        near(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), want, 1e-4)
        near(torch.from_numpy(compiled(x.numpy())[0]), want, 1e-4)


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_no_picture_for_it_is_refused(system: str) -> None:
    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    for wrong, says in (
        (x[0], "float pictures"),
        (x[:, :1], "1 channels"),
        ((x * 9).to(torch.uint8), "uint8"),
        *([(x[:, :, :3, :3], "3 x 3")] if small.smallest else []),
        (x[:, :, :0], "0"),
    ):
        with pytest.raises(InputError, match=says):
            model(wrong)
    for options in ({"num_classes": -1}, {"in_chans": 0}, {"global_pool": "max"}, {"widht": 3}, {"out_indices": (1,)}):
        with pytest.raises(UsageError):
            create(small.name, weights=None, **{**small.options, **options})


@pytest.mark.parametrize("system", SYSTEMS)
def test_saved_and_loaded_it_is_the_same(system: str, tmp_path: Path) -> None:
    import saccade

    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    saccade.save(model, tmp_path / "net.safetensors")
    with torch.no_grad():
        near(saccade.load(tmp_path / "net.safetensors")(x), model(x), 0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_file_fills_a_network_whose_head_was_dropped_on_purpose(system: str, tmp_path: Path) -> None:
    import saccade

    small = zoo.SMALL[system]
    model, x = small.make(num_classes=5), small.picture()
    saccade.save(model, tmp_path / "net.safetensors")
    with torch.no_grad():
        maps = create(small.name, tmp_path / "net.safetensors", **small.options, features_only=True)
        for found, want in zip(maps(x), model.forward_intermediates(x, intermediates_only=True), strict=True):
            near(found, want)
        saccade.save(maps, tmp_path / "maps.safetensors")
        near(saccade.load(tmp_path / "maps.safetensors")(x)[-1], maps(x)[-1], 0)
        trunk = create(small.name, tmp_path / "net.safetensors", **{**small.options, "num_classes": 0})
        model.reset_classifier(0)
        near(trunk(x), model(x))
    with pytest.raises(CheckpointError, match=r"5.*7|7.*5"):
        create(small.name, tmp_path / "net.safetensors", **{**small.options, "num_classes": 7})


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_head_that_was_reset_is_saved_and_a_fused_network_is_not(system: str, tmp_path: Path) -> None:
    import saccade

    small = zoo.SMALL[system]
    model, x = small.make(), small.picture()
    model.reset_classifier(7)
    model.eval()
    saccade.save(model, tmp_path / "net.safetensors")
    with torch.no_grad():
        near(saccade.load(tmp_path / "net.safetensors")(x), model(x), 0)
        fused = fuse(model)
        if fused.state_dict().keys() == model.state_dict().keys() or system in WITH_OPTION:
            saccade.save(fused, tmp_path / "fused.safetensors")
            near(saccade.load(tmp_path / "fused.safetensors")(x), fused(x), 0)
            return
    with pytest.raises(UsageError, match=r"save it before saccade\.fuse"):
        saccade.save(fused, tmp_path / "fused.safetensors")
    assert not (tmp_path / "fused.safetensors").exists()


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_dial_works_on_maps_too(system: str) -> None:
    small = zoo.SMALL[system]
    model, maps = small.make(), small.make(features_only=True)
    assert has_budget(maps) == has_budget(model)
    if not has_budget(model):
        with pytest.raises(UsageError, match="no budget dial"):
            maps.budget = 0.5
        return
    assert list(maps.budgets()) == list(model.budgets())
    maps.budget = budget = min(model.budgets())
    assert maps.budget == maps.model.budget == budget


@pytest.mark.parametrize("system", SYSTEMS)
def test_other_channels_and_no_classes(system: str) -> None:
    small = zoo.SMALL[system]
    model = small.make(in_chans=1, num_classes=0)
    with torch.no_grad():
        assert model(small.picture()[:, :1]).shape == (2, model.num_features)
