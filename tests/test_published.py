"""Published weights over HTTP: fetched once, resumed, verified, converted; every way in which it can go wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import saccade
from saccade import published
from saccade.errors import CheckpointError, InputError, SaccadeError, UnavailableError, UsageError

OPTIONS: dict[str, Any] = {}


class Server(ThreadingHTTPServer):
    """One file; `cut` bytes are sent of each answer at most, `log` holds the ranges that were asked for."""

    data = b""
    cut: int | None = None
    ranges = True
    tag = '"one"'
    code = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        it, asked = self.server, self.headers.get("Range")
        it.log.append(asked)
        if it.code != 200:
            self.send_error(it.code)
            return
        start = 0
        if asked and it.ranges and self.headers.get("If-Range", it.tag) == it.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(it.data):
                self.send_error(416)
                return
        body = it.data[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", it.tag)
        self.end_headers()
        self.wfile.write(body if it.cut is None else body[: it.cut])

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A published SHViT-S1, in the authors' key names."""
    import timm

    path = tmp_path_factory.mktemp("official") / "shvit_s1.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save({"model": timm.create_model("shvit_s1").state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def found(server: Server, checkpoint: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> published.Published:
    server.data = checkpoint
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}/shvit_s1.pth"
    made = published.Published("shvit_s1", address, "MIT", "https://example.org")
    monkeypatch.setattr(published, "published", lambda: {"shvit_s1": made})
    monkeypatch.setattr(published, "TIMEOUT", 5.0)
    return made


def leftovers() -> list[str]:
    return [p.suffix for p in (published.cache_folder() / "weights").iterdir()]


def test_it_is_fetched_once_converted_and_told_the_licence_of(found: published.Published, server: Server) -> None:
    told: list[str] = []
    path = published.official("shvit_s1", told.append)
    assert published.official("shvit_s1", told.append) == path
    assert len(server.log) == len(told) == 1
    assert "MIT" in told[0]
    assert leftovers() == [".safetensors"]
    assert published.cached() == {path.name: path.stat().st_size}
    assert published.remove(["shvit_s1"]) > 1e6
    assert not published.cached()


def test_create_takes_them_with_another_classifier_and_as_maps(found: published.Published) -> None:
    whole = saccade.create("shvit_s1", weights="official")
    other = saccade.create("shvit_s1", weights="official", num_classes=5)
    maps = saccade.create("shvit_s1", weights="official", features_only=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = list(whole.maps(x))
        assert whole(x).shape == (1, 1000)
        assert other(x).shape == (1, 5)
        torch.testing.assert_close(list(other.maps(x)), want)
        torch.testing.assert_close(maps(x), want)
    saccade.create("shvit_s1", weights="official", num_classes=1000).load_state_dict(whole.state_dict())
    with pytest.raises(CheckpointError, match="stem"):
        saccade.create("shvit_s1", weights="official", in_chans=1)


def test_a_download_that_was_cut_off_goes_on(found: published.Published, server: Server) -> None:
    server.cut = len(server.data) // 2
    with pytest.raises(UnavailableError, match=r"run it again to go on"):
        published.official("shvit_s1")
    server.cut = None
    published.official("shvit_s1")
    assert server.log == [None, f"bytes={len(server.data) // 2}-"]


@pytest.mark.parametrize("change", ["no ranges", "another file"])
def test_where_it_cannot_go_on_it_starts_again(found: published.Published, server: Server, change: str) -> None:
    server.cut = 1000
    with pytest.raises(UnavailableError):
        published.official("shvit_s1")
    server.cut, server.ranges = None, change != "no ranges"
    server.tag = '"two"' if change == "another file" else server.tag
    assert published.official("shvit_s1").is_file()


@pytest.mark.parametrize(("known", "says"), [({"bytes": 99}, "bytes instead of 99"), ({"sha256": "0" * 64}, "SHA-256")])
def test_a_wrong_size_or_digest_is_thrown_away(
    found: published.Published, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], says: str
) -> None:
    wrong = replace(found, **known)
    monkeypatch.setattr(published, "published", lambda: {"shvit_s1": wrong})
    with pytest.raises(CheckpointError, match=says):
        published.official("shvit_s1")
    assert not leftovers()


def test_the_right_size_and_digest_pass(
    found: published.Published, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = hashlib.sha256(server.data).hexdigest()
    right = replace(found, bytes=len(server.data), sha256=digest)
    monkeypatch.setattr(published, "published", lambda: {"shvit_s1": right})
    assert published.official("shvit_s1").is_file()


@pytest.mark.parametrize("data", [b"", b"<html>sign in</html>", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_what_is_no_checkpoint_is_refused_and_gone(found: published.Published, server: Server, data: bytes) -> None:
    server.data = data
    with pytest.raises(SaccadeError):
        published.official("shvit_s1")
    assert not leftovers()


def test_another_network_is_refused(found: published.Published, server: Server, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("shvit_s2").state_dict(), tmp_path / "s2.pth")
    server.data = (tmp_path / "s2.pth").read_bytes()
    with pytest.raises(CheckpointError, match="holds shvit_s2, not shvit_s1"):
        published.official("shvit_s1")


@pytest.mark.parametrize("how", ["gone", "refused"])
def test_without_a_network_it_says_what_to_fetch_and_where_to_put_it(
    found: published.Published, server: Server, how: str, monkeypatch: pytest.MonkeyPatch, checkpoint: bytes
) -> None:
    if how == "gone":
        server.code = 404
    else:
        nowhere = replace(found, url="http://127.0.0.1:1/shvit_s1.pth")
        monkeypatch.setattr(published, "published", lambda: {"shvit_s1": nowhere})
        found = nowhere
    with pytest.raises(UnavailableError) as refused:
        published.official("shvit_s1")
    assert found.url in str(refused.value)
    assert str(found.part) in str(refused.value)
    found.part.write_bytes(checkpoint)
    assert published.official("shvit_s1").is_file()


def test_a_cache_that_cannot_be_written_is_named(
    found: published.Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="SACCADE_CACHE"):
        published.official("shvit_s1")


def test_the_index_names_registered_models_and_their_systems() -> None:
    published.published.cache_clear()
    for name, found in published.published().items():
        assert found.url.startswith("https://")
        assert found.licence
        assert saccade.list_models(name) in ([name], [])
    with pytest.raises(UsageError, match="no published weights of sesr_m5"):
        saccade.create("sesr_m5", weights="official")


def test_the_command_lists_fetches_and_clears(found: published.Published, capsys: pytest.CaptureFixture[str]) -> None:
    from saccade.cli import main

    for words, says in (
        (["weights"], "shvit_s1\t-\tMIT"),
        (["weights", "fetch", "shvit_s1"], ".safetensors"),
        (["weights"], " MB\tMIT"),
        (["weights", "--json"], '"bytes": 2'),
        (["weights", "clear", "--all"], "free again"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        told = capsys.readouterr()
        assert ended.value.code == 0, told.err
        assert says in told.out + told.err
    for words in (["weights", "clear"], ["weights", "clear", "shvit_s1"], ["weights", "fetch", "nothing"]):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2


def test_weights_of_one_enlargement_are_not_put_into_another(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    address = f"http://127.0.0.1:{server.server_port}/espcn.safetensors"
    espcn = saccade.create("espcn", weights=None, scale=3)
    saccade.save(espcn, tmp_path / "espcn.safetensors")
    server.data = (tmp_path / "espcn.safetensors").read_bytes()
    made = published.Published("espcn", address, "MIT", "https://example.org", scale=3)
    monkeypatch.setattr(published, "published", lambda: {"espcn": made})
    x = torch.rand(1, 1, 8, 8)
    assert saccade.create("espcn", weights="official")(x).shape == (1, 1, 24, 24)  # x2 is its default otherwise
    torch.testing.assert_close(saccade.create("espcn", weights="official", scale=3)(x), espcn.eval()(x))
    with pytest.raises(UsageError, match="published weights of espcn are for x3, not for x2"):
        saccade.create("espcn", weights="official", scale=2)
