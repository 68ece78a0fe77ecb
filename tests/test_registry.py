"""The registry: every model by its name, found in the source text without importing torch."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import pytest

import saccade
from saccade import registry
from saccade.errors import CheckpointError, UsageError
from saccade.systems import all_systems


def test_listing_imports_neither_torch_nor_any_model() -> None:
    code = """
        import sys, saccade
        names = saccade.list_models()
        assert "sesr_m5" in names and len(names) > 10, names
        assert saccade.list_models("sesr_*", task="super-resolution") == [n for n in names if n.startswith("sesr_")]
        assert not {"torch", "numpy", "saccade.restoration.sesr"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_every_entry_names_a_function_that_exists_and_a_system_of_the_house() -> None:
    slugs = {system.slug for system in all_systems()}
    for name in saccade.list_models():
        found = registry.entry(name)
        assert callable(registry.load_function(found.module, found.function)), name
        assert found.system in slugs | {""}, name  # "": a network of our own, no published system
        assert found.task
    for reader in registry.recognisers():
        assert callable(registry.load_function(reader.module, reader.function))
        assert reader.system in slugs
        assert reader.keys


def test_variants_are_names_of_one_function_small_ones_first() -> None:
    small, general = registry.entry("shvit_s1"), registry.entry("shvit")
    assert (small.function, small.variant, general.variant) == (general.function, True, False)
    assert "6.3 M parameters" in small.about
    assert registry.variants("shvit") == ["shvit_s1", "shvit_s2", "shvit_s3", "shvit_s4", "shvit"]
    assert "timm" not in small.facts
    assert general.facts["timm"] is False
    assert registry.entry("shvit_s4").facts == {"size": 256}
    made = saccade.create("shvit_s1", weights=None)
    assert sum(p.numel() for p in made.parameters()) < sum(
        p.numel() for p in saccade.create("shvit_s2", weights=None).parameters()
    )
    with pytest.raises(UsageError, match="shvit has no option 'variant'"):
        saccade.create("shvit", weights=None, variant="shvit_s1")


def test_the_largest_network_is_counted_without_its_memory() -> None:
    model = registry.shaped("piip_h6b_512")
    assert sum(p.numel() for p in model.parameters()) > 7e9
    assert all(p.is_meta for p in model.parameters())


def test_lists_are_sorted_and_filtered() -> None:
    everything = saccade.list_models()
    assert everything == sorted(set(everything))
    assert saccade.list_models("sesr_m?") == ["sesr_m3", "sesr_m5", "sesr_m7"]
    assert set(saccade.list_models(system="pcsr")) < set(saccade.list_models(task="super-resolution"))
    assert saccade.list_models("nothing*") == []


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("sesr_m55", "sesr_m5"), ("sesr_", "sesr_m"), ("SESR_XL", "sesr_xl"), ("pcsr_fsrcn", "pcsr_fsrcnn")],
)
def test_a_wrong_name_suggests_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"no model named '{wrong}'.*{near}"):
        registry.entry(wrong)


@pytest.mark.parametrize("wrong", ["", "zzzz", "x" * 500, "two\nlines", "../sesr_m5", "sesr_m5\0"])
def test_any_name_at_all_gives_one_of_our_errors(wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        saccade.create(wrong)
    assert "\n" not in str(caught.value)


def test_scales_that_a_model_lacks_name_those_that_have_it() -> None:
    with pytest.raises(UsageError, match="sesr_m5 has no x9, it enlarges by x2, x3, x4"):
        saccade.create("sesr_m5", scale=9)
    with pytest.raises(UsageError, match="sesr_m5 has no x0"):
        saccade.create("sesr_m5", weights=None, scale=0)


def test_unknown_options_are_named() -> None:
    with pytest.raises(UsageError, match="sesr_m5 has no option 'depth'"):
        saccade.create("sesr_m5", weights=None, depth=3)


def test_weights_that_do_not_ship_are_said_and_shipped_ones_load() -> None:
    with pytest.raises(UsageError, match="no weights ship for sesr_m3 x4; give a file of weights"):
        saccade.create("sesr_m3", scale=4)
    for path in registry.WEIGHTS.glob("*.safetensors"):
        found = re.fullmatch(r"(.+)_x(\d)", path.stem)
        name, options = (found[1], {"scale": int(found[2])}) if found else (path.stem, {})
        if name.startswith("dot_"):  # statistics, not a model of that name
            continue
        assert registry.default_weights(name, **options) == path
        model = saccade.create(name, **options)
        assert (model.saccade_name, model.saccade_options) == (name, options)
        assert not model.training


def test_a_file_that_names_a_model_of_the_future_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors was written for a model this version does not have"):
        registry.rebuild("sesr_m99", {}, "a.safetensors")


def test_decorators_are_read_from_the_text_and_return_the_function_itself() -> None:
    def make() -> None: ...

    assert registry.register("x", system="y", task="z")(make) is make
    assert registry.recognise("x", keys=("a*",))(make) is make
    reader = registry.Recogniser("s", ("head.*", "*.w"), "m", "f")
    assert reader.matches({"head.1", "tail.w"})
    assert not reader.matches({"head.1"})
