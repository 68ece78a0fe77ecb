"""Files of weights: read in whatever wrapping they come, refused with a reason when they cannot be used."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import saccade
from saccade.checkpoint import load, load_into, read_header, read_state, save, write_bytes
from saccade.errors import CheckpointError, InputError, UsageError


def network(seed: int = 0, name: str = "sesr_m3", **options: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return saccade.create(name, weights=None, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# -- ours


def test_a_saved_model_comes_back_from_its_file_alone(tmp_path: Path) -> None:
    model = network(scale=4, expansion=24)
    save(model, tmp_path / "a.safetensors", data="generated", psnr="37.0")
    again = load(tmp_path / "a.safetensors")
    assert same(model, again)
    assert (again.saccade_name, again.saccade_options) == ("sesr_m3", {"scale": 4, "expansion": 24})
    assert not again.training
    metadata, table = read_header(tmp_path / "a.safetensors")
    assert metadata["data"] == "generated"
    assert table.keys() == model.state_dict().keys()


def test_weights_go_into_a_model_of_the_same_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(network(1), path)
    model = network(2)
    load_into(model, path)
    assert same(model, network(1))
    for other, says in (
        (network(scale=3), "holds sesr_m3 for x2, you asked for x3"),
        (network(name="sesr_m5"), "holds sesr_m3, not sesr_m5"),
        (network(expansion=24), "does not fit sesr_m3: missing first.expand"),
    ):
        with pytest.raises(CheckpointError, match=says):
            load_into(other, path)


def test_a_bare_state_goes_into_a_model(tmp_path: Path) -> None:
    torch.save(network(1).state_dict(), tmp_path / "a.pth")
    assert same(saccade.create("sesr_m3", weights=tmp_path / "a.pth"), network(1))


def test_only_models_of_the_library_are_saved_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"was not made by saccade\.create"):
        save(nn.Linear(2, 2), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="cannot write"):
        save(network(), tmp_path / "none" / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# -- what others wrap around


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"params_ema": s, "params": {k: v * 0 for k, v in s.items()}},
        lambda s: {"model": {"state_dict": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"module.model._orig_mod." + k: v for k, v in s.items()}},
        lambda s: OrderedDict((k, nn.Parameter(v)) for k, v in s.items()),
        lambda s: {"params": s, "steps": Counter([1, 2]), "shape": torch.Size([2]), "seen": {1, 2}},
    ],
)
@pytest.mark.parametrize("new_format", [True, False])
def test_usual_wrappings_and_prefixes_are_removed(tmp_path: Path, wrap: Any, new_format: bool) -> None:
    state = network().state_dict()
    torch.save(wrap(state), tmp_path / "a.pth", _use_new_zipfile_serialization=new_format)
    found, metadata = read_state(tmp_path / "a.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], v) for k, v in state.items())
    assert metadata == {}


def test_half_precision_and_shared_tensors_load(tmp_path: Path) -> None:
    state = {k: v.bfloat16() for k, v in network().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    model = network(5)
    load_into(model, tmp_path / "a.safetensors")
    assert model.first.kernel.dtype == torch.float32
    assert torch.equal(model.first.kernel, state["first.kernel"].float())
    one = torch.rand(4, 4)
    torch.save({"a": one, "b": one, "c": one[0], "d": one.T}, tmp_path / "shared.pth")
    assert torch.equal(read_state(tmp_path / "shared.pth")[0]["d"], one.T)


# -- what is refused


class Malicious:
    """Pickles as a call of ``os.system``."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "nested"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, kind: str, suffix: str) -> None:
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "marker"
    evil: Any = {**network().state_dict(), "first.kernel": Malicious(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(evil["first.kernel"]))
    elif kind == "nested":
        torch.save({"state_dict": network().state_dict(), "hook": [Malicious(marker)]}, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert not marker.exists()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    if kind != "pickle":
        assert "could run code; it was not loaded" in str(caught.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_missing_empty_foreign_and_truncated_files_are_told_apart(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(CheckpointError, match="no file of weights at"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\)"):
        load(path)
    for words in ("these are only words " * 30, "# Read me\nA global list of (everything).\n"):
        path.write_text(words)
        with pytest.raises(CheckpointError, match=r"not a safetensors file|no PyTorch file"):
            load(path)
    if suffix == "pth":
        torch.save(network().state_dict(), path)
    else:
        save(network(), path)
    path.write_bytes(path.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)
    with pytest.raises(CheckpointError, match="a folder"):
        load(tmp_path)


def test_a_half_matching_file_names_what_differs(tmp_path: Path) -> None:
    state = network().state_dict()
    wrong = {**state, "first.kernel": torch.zeros(16, 1, 3, 3), "extra.bias": torch.zeros(3)}
    del wrong["slopes.0"], wrong["slopes.1"], wrong["last.kernel"], wrong["blocks.0.kernel"]
    torch.save(wrong, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        saccade.checkpoint.fit(network(), wrong, "a.pth")
    for part in (
        "a.pth does not fit sesr_m3: missing",
        "and 1 more",
        "not expected extra.bias",
        "(16, 1, 3, 3) instead",
    ):
        assert part in str(caught.value)


def test_values_of_another_nature_are_refused() -> None:
    state = network().state_dict()
    for dtype in (torch.complex64, torch.int64, torch.bool):
        with pytest.raises(CheckpointError, match=f"first.kernel is {str(dtype)[6:]}, not floating-point"):
            saccade.checkpoint.fit(network(), {**state, "first.kernel": state["first.kernel"].to(dtype)}, "a.pth")


def test_an_unknown_architecture_shows_its_keys_and_what_is_known(tmp_path: Path) -> None:
    torch.save({"backbone.conv7.w": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"keys look like backbone\.conv7\.w\. Known: .*pcsr"):
        load(tmp_path / "a.pth")
    torch.save({"epoch": 3, "losses": [0.1]}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        load(tmp_path / "b.pth")
    torch.save([torch.zeros(2)], tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match="no named tensors"):
        load(tmp_path / "c.pth")


def with_header(path: Path, told: Any, state: dict[str, torch.Tensor] | None = None) -> Path:
    text = told if isinstance(told, str) else json.dumps(told)
    safetensors.torch.save_file(state or dict(network().state_dict()), path, metadata={"saccade": text})
    return path


@pytest.mark.parametrize(
    "told",
    [
        "not json",
        "[" * 100_000,
        "[]",
        "{}",
        {"model": "sesr_m3"},
        {"model": 3, "options": {}},
        {"model": "two\nlines", "options": {}},
        {"model": "x" * 1_000_000, "options": {}},
        {"model": "sesr_m3", "options": [["scale", 2]]},
        {"model": "sesr_m99", "options": {}},
        {"model": "sesr_m3", "options": {"scale": 5}},
        {"model": "sesr_m3", "options": {"scale": None}},
        {"model": "sesr_m3", "options": {"scale": [2]}},
        {"model": "sesr_m3", "options": {"depth": 5}},
        {"model": "sesr_m3", "options": {"weights": "/etc/passwd"}},
        {"model": "sesr_m3", "options": {"name": "sesr_m5"}},
        {"model": "sesr_m3", "options": {"expansion": "wide"}},
        {"model": "sesr_m3", "options": {"expansion": -4}},
        {"model": "sesr_m3", "options": {"expansion": 10**9}},
        {"model": "sesr_m3", "options": {"expansion": 0.5}},
        {"model": "sesr_m3", "options": {"expansion": 10**40}},
        {"model": "regnetx_200mf", "options": {}},
    ],
    ids=lambda t: str(t)[:60],
)
def test_headers_that_lie_are_refused(tmp_path: Path, told: Any) -> None:
    path = with_header(tmp_path / "a.safetensors", told)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert len(str(caught.value)) < 600
    assert "a.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [2, -2], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": 4, "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0]},
        {"dtype": "F32", "shape": [4], "data_offsets": [0, 10**30]},
        {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [4]},
        {"shape": [4], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
        [4],
        None,
        "F32",
    ],
    ids=str,
)
def test_tensor_tables_that_contradict_themselves_are_refused(tmp_path: Path, entry: Any) -> None:
    text = json.dumps({"w": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CheckpointError, match=r"not a safetensors file|truncated"):
        read_header(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError):
        load(tmp_path / "a.safetensors")


# -- what would take all memory

BOMBS = """
    import io, json, resource, struct, sys, zipfile
    from pathlib import Path
    import torch
    from saccade import create
    from saccade.checkpoint import load
    from saccade.errors import CheckpointError

    folder = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    def packed(path):
        buffer = io.BytesIO()
        torch.save({"w": torch.zeros(25_000_000)}, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))

    class Call:
        def __init__(self, function, *arguments):
            self.told = function, arguments
        def __reduce__(self):
            return self.told

    def doubled(times):
        import _codecs
        made = Call(_codecs.encode, "ab", "latin1")
        for _ in range(times):
            made = Call(_codecs.encode, made, "hex")
        return made

    def safetensors(path, header, length=None):
        path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)

    def edited(path, old, new, **options):
        torch.save({"w": torch.zeros(4, 4)}, path, **options)
        data = path.read_bytes()
        assert old in data
        if data[:2] == b"PK":
            with zipfile.ZipFile(io.BytesIO(data)) as kept, zipfile.ZipFile(path, "w") as made:
                for member in kept.infolist():
                    made.writestr(member.filename, kept.read(member).replace(old, new))
        else:
            path.write_bytes(data.replace(old, new))

    huge = b"\\x8a\\x05" + (60_000_000_000).to_bytes(5, "little")
    makers = {
        "packed.pth": packed,
        "strides.pth": lambda p: torch.save({"w": torch.zeros(1).expand(100_000, 100_000)}, p),
        "bytes.pth": lambda p: torch.save({"w": torch.zeros(1), "b": Call(bytearray, 5_000_000_000)}, p),
        "bytes_legacy.pth": lambda p: torch.save(
            {"w": torch.zeros(1), "b": Call(bytearray, 5_000_000_000)}, p, _use_new_zipfile_serialization=False
        ),
        "doubling.pth": lambda p: torch.save({"w": torch.zeros(1), "b": doubled(40)}, p),
        "numel.pth": lambda p: edited(p, b"K\\x10t", huge + b"t"),
        "numel_legacy.pth": lambda p: edited(p, b"K\\x10", huge, _use_new_zipfile_serialization=False),
        "shape.pth": lambda p: edited(p, b"K\\x04K\\x04\\x86", huge + huge + b"\\x86"),
        "length.safetensors": lambda p: safetensors(p, b"{}", 1 << 62),
        "sizes.safetensors": lambda p: safetensors(
            p, json.dumps({"w": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 4 * 10**10]}}).encode()
        ),
        "options.safetensors": lambda p: safetensors(p, json.dumps({
            "__metadata__": {"saccade": '{"model": "sesr_xl", "options": {"expansion": 3000000}}'},
            "first.kernel": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
        }).encode()),
    }
    said, grown = {}, {}
    for name, make in makers.items():
        make(folder / name)

    def peak():
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) << 10

    with torch.device("meta"):  # what this imports is not what is measured
        create("sesr_m3", weights=None, expansion=16)
    for name in makers:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = peak()
        try:
            load(folder / name)
            said[name] = "was loaded"
        except CheckpointError as error:
            said[name] = "refused: " + str(error).replace(str(folder), "")
        except BaseException as error:
            said[name] = f"{type(error).__name__}: {error}"
        grown[name] = peak() - before
    print(json.dumps({"said": said, "grown": grown}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_small_files_that_ask_for_much_memory_get_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(BOMBS), str(tmp_path)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=250).stdout)
    assert [f"{name}: {what}" for name, what in told["said"].items() if not what.startswith("refused")] == []
    assert [f"{name}: {grown:,} bytes" for name, grown in told["grown"].items() if grown > 64 << 20] == []
    assert "would unfold from" in told["said"]["packed.pth"]
    assert "declares 40,000,000,000 bytes of tensors" in told["said"]["strides.pth"]
    assert "made by code" in told["said"]["doubling.pth"]


def test_an_archive_whose_members_overlap_is_refused(tmp_path: Path) -> None:
    """One stored megabyte, listed many times in the archive's directory."""
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", bytes(1 << 20))
        first = archive.infolist()[1]
        for i in range(1, 50):
            copy = zipfile.ZipInfo(f"a/data/{i}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    with pytest.raises(CheckpointError, match="would unfold"):
        load(path)


def test_recognised_names_with_impossible_tensors_are_refused(tmp_path: Path) -> None:
    """The keys of a published checkpoint with tensors of no sense behind them."""
    names = list(saccade.create("pcsr_small", weights=None).state_dict())
    for value in (torch.zeros(()), torch.zeros(0), torch.zeros(1, 1), torch.zeros(2, 3, 4, 5, 6)):
        torch.save(dict.fromkeys(names, value), tmp_path / "a.pth")
        with pytest.raises(CheckpointError):
            load(tmp_path / "a.pth")


def test_options_are_told_only_where_a_file_does_not_tell_them(tmp_path: Path) -> None:
    model = network()
    save(model, tmp_path / "own.safetensors")
    with pytest.raises(UsageError, match="tells its options itself, nothing can be told; leave scale"):
        load(tmp_path / "own.safetensors", scale=4)
    theirs = {"features": "first_part.0", "mapping": "first_part.2", "subpixel": "last_part.0"}
    state = saccade.create("espcn", weights=None, scale=3).state_dict()
    state = {".".join([theirs[name], leaf]): v for (name, leaf), v in ((k.split("."), v) for k, v in state.items())}
    torch.save(state, tmp_path / "published.pth")
    load(tmp_path / "published.pth")
    with pytest.raises(UsageError, match="leave sides out"):
        load(tmp_path / "published.pth", sides=(32, 64))


def test_default_weights_that_do_not_ship_are_said() -> None:
    with pytest.raises(UsageError, match="no weights ship for sesr_m3 x2"):
        saccade.create("sesr_m3")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("protocol", "says"), [(2, r"a\.weight, a tensor without dense values"), (4, "pickled objects that could run code")]
)
def test_sparse_tensors_and_new_pickles_are_refused_without_warnings_of_torch(
    tmp_path: Path, protocol: int, says: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making them warns too
        torch.save({"a.weight": torch.eye(3).to_sparse()}, tmp_path / "a.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=says):
        load(tmp_path / "a.pth")
