"""The page in a real browser (Chromium, headless): upload, dial, result, errors; and what it lets nobody read."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs the app extra")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    # offline: no name but this machine's is found
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    from saccade.app.jobs import Limits
    from saccade.app.page import Page

    made = Page(Limits(megabytes=2, megapixels=1.0, frames=20, threads=2))
    made.address = made.serve(port=None, block=False)  # type: ignore[attr-defined]
    yield made
    made.close()
    assert not made.folder.exists(), "all files are removed at the end"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here; CHROMIUM names one")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 72), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def tab(browser: Any, page: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 390, "height": 844}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(60_000)
    opened.goto(page.address)
    opened.wait_for_selector("#go")
    yield opened
    context.close()


def press(tab: Any, file: Path) -> None:
    tab.set_input_files("#file input[type=file]", str(file))
    tab.wait_for_selector(f"#file >> text={file.stem[:8]}")
    tab.click("#go")


def test_a_picture_goes_in_and_comes_back_enlarged(tab: Any, picture: Path, tmp_path: Path) -> None:
    tab.click("#scale >> text=x3")
    press(tab, picture)
    tab.wait_for_selector("#told >> text=288 × 216")
    told = tab.inner_text("#told")
    assert "GMACs" in told
    assert " s " in told
    tab.wait_for_selector("#views img")
    with tab.expect_download() as download:
        tab.click("#result a")
    download.value.save_as(tmp_path / "made.png")
    with Image.open(tmp_path / "made.png") as made:
        assert made.size == (288, 216)


def test_the_dial_chooses_the_network(tab: Any, picture: Path) -> None:
    tab.fill("#dial input[type=number]", "1")
    tab.press("#dial input[type=number]", "Enter")
    press(tab, picture)
    tab.wait_for_selector("#told >> text=sesr_xl")
    assert "100% of the full cost" in tab.inner_text("#told")
    tab.fill("#dial input[type=number]", "0.1")
    tab.press("#dial input[type=number]", "Enter")
    tab.click("#go")
    tab.wait_for_selector("#told >> text=sesr_m5")


def test_the_page_fits_a_phone(tab: Any) -> None:
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_text_file_is_refused_in_words(tab: Any, tmp_path: Path, page: Any) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture at all\n" * 40)
    press(tab, notes)
    tab.wait_for_selector("#told >> text=This did not work")
    told = tab.inner_text("#told")
    assert "notes.txt" in told
    assert str(page.folder) not in told


def test_a_picture_beyond_the_limits_is_refused_in_words(tab: Any, tmp_path: Path) -> None:
    Image.new("RGB", (1300, 1000)).save(tmp_path / "large.png")
    press(tab, tmp_path / "large.png")
    tab.wait_for_selector("#told >> text=megapixels")


def test_a_picture_is_cleaned(tab: Any, picture: Path) -> None:
    tab.click("#job >> text=restore")
    tab.wait_for_selector("#task")
    press(tab, picture)
    tab.wait_for_selector("#told >> text=cleaner")


def test_a_clip_is_enlarged(tab: Any, tmp_path: Path) -> None:
    from saccade.io.video import VideoWriter

    with VideoWriter(tmp_path / "clip.mp4", 64, 48) as writer:
        for i in range(5):
            writer.write(np.full((48, 64, 3), 50 * i, np.uint8))
    press(tab, tmp_path / "clip.mp4")
    tab.wait_for_selector("#told >> text=5 frames")
    tab.wait_for_selector("#views img")
    with tab.expect_download() as download:
        tab.click("#result a")
    assert download.value.suggested_filename.endswith(".mp4")


def test_a_picture_is_rescaled_and_scored(tab: Any, tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    coarse = chance.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((192, 144), Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    tab.click("#job >> text=rescale")
    press(tab, tmp_path / "photo.png")
    tab.wait_for_selector("#told >> text=192 × 144 → 96 × 72 → 192 × 144")
    tab.click("#job >> text=score")
    tab.click("#go")
    tab.wait_for_selector("#told >> text=of 100")


def test_nothing_is_fetched_from_elsewhere(browser: Any, page: Any) -> None:
    context = browser.new_context()
    tab = context.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.address)
    tab.wait_for_selector("#go")
    hosts = {urllib.parse.urlsplit(url).hostname for url in asked if url.startswith("http")}
    context.close()
    assert hosts <= {"127.0.0.1", "localhost"}


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", "pyproject.toml", "../../etc/passwd"])
def test_no_file_outside_the_folder_is_readable(page: Any, path: str) -> None:
    address = urllib.parse.urlsplit(page.address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    for target in (path, urllib.parse.quote(path, safe=""), str(Path(__file__).resolve())):
        connection.request("GET", f"/gradio_api/file={target}")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status >= 400, target
        assert b"root:" not in body
    connection.close()


def test_twenty_users_wait_in_turn_and_all_are_served(page: Any, picture: Path) -> None:
    from gradio_client import Client, handle_file

    def one(_: int) -> str:
        client = Client(page.address, verbose=False, httpx_kwargs={"timeout": 120})  # 5 s are few on a busy machine
        return str(client.predict(handle_file(str(picture)), "upscale", 0.1, "x2", "auto", api_name="/work")[2])

    with ThreadPoolExecutor(20) as pool:
        told = list(pool.map(one, range(20)))
    assert all("192 × 144" in words for words in told)


def ask(page: Any, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Status and body of a request as a stranger would make it."""
    address = urllib.parse.urlsplit(page.address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    connection.request(method, target, body or None, headers)
    answer = connection.getresponse()
    status, told = answer.status, answer.read()
    connection.close()
    return status, told


def form(*files: bytes) -> tuple[bytes, str]:
    """A request that uploads files, and its content type."""
    parts = [
        b'--frame\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + f + b"\r\n"
        for f in files
    ]
    return b"".join(parts) + b"--frame--\r\n", "multipart/form-data; boundary=frame"


@pytest.mark.parametrize(("files", "status"), [([1_000], 200), ([2_300_000], 413), ([1_000_000] * 4, 413)], ids=str)
def test_uploads_beyond_the_limit_are_refused_and_leave_nothing(page: Any, files: list[int], status: int) -> None:
    body, kind = form(*(b"x" * n for n in files))
    before = {p for p in page.folder.rglob("*") if p.is_file()}
    found, _ = ask(page, "POST", "/gradio_api/upload", body, **{"content-type": kind})
    assert found == status
    left = {p for p in page.folder.rglob("*") if p.is_file()} - before
    assert sum(p.stat().st_size for p in left) == (1_000 if status == 200 else 0)


def test_requests_that_hide_their_length_or_ask_for_other_places_are_refused(page: Any) -> None:
    address = urllib.parse.urlsplit(page.address)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    connection.request(
        "POST", "/gradio_api/upload", iter([b"x" * 100]), {"content-type": form()[1]}, encode_chunked=True
    )
    assert connection.getresponse().status == 411
    connection.close()
    for target in ("file=http://example.com/a.png", "file=HTTPS%3A//example.com", "proxy=http://127.0.0.1/x"):
        assert ask(page, "GET", f"/gradio_api/{target}")[0] == 403


def test_files_beside_the_folder_are_not_readable(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gradio" / "cached_examples").mkdir(parents=True)
    secrets = [tmp_path / ".gradio/cached_examples/a.txt", page.folder.parent / f"{page.folder.name}-beside.txt"]
    monkeypatch.chdir(tmp_path)
    try:
        for secret in secrets:
            secret.write_text("secret words")
            status, told = ask(page, "GET", f"/gradio_api/file={urllib.parse.quote(str(secret))}")
            assert status >= 400, secret
            assert b"secret" not in told
    finally:
        secrets[1].unlink(missing_ok=True)


def test_files_of_a_job_that_runs_are_not_swept_away(page: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.app import jobs

    upload = page.folder / "cache" / "upload.png"
    upload.parent.mkdir(exist_ok=True)
    shutil.copy(picture, upload)
    previews = jobs._previews

    def late(*given: Any) -> Any:  # the job takes longer than files stay
        for _ in range(2):
            page.sweep(time.time() + page.kept + 1)
        return previews(*given)

    monkeypatch.setattr(jobs, "_previews", late)
    views, made, told = page.work(str(upload), "upscale", 0.1, "x2", "auto")
    assert "192 × 144" in told
    assert Path(made).exists()
    assert Path(views[0]).exists()
    page.sweep(time.time() + page.kept + 1)
    assert not upload.exists(), "and afterwards they go"


def test_a_job_that_breaks_leaves_nothing(page: Any, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.app import page as module

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "run", broken)
    before = set(page.folder.glob("job-*"))
    with pytest.raises(RuntimeError):
        page.work(str(picture), "upscale", 0.1, "x2", "auto")
    assert set(page.folder.glob("job-*")) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "99999"), "cannot listen at"),
        (("--host", "256.1.1.1", "--port", "0"), "cannot listen at"),
        (("--max-megabytes", "0", "--port", "0"), "limit of megabytes"),
        (("--max-frames", "-3", "--port", "0"), "limit of frames"),
    ],
)
def test_a_page_that_cannot_be_opened_says_why(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from saccade.cli import main

    with pytest.raises(SystemExit) as stopped:
        main(["app", *words])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_port_that_is_taken_is_named(page: Any) -> None:
    from saccade.app.page import Page
    from saccade.errors import UsageError

    other = Page()
    with pytest.raises(UsageError, match="--port"):
        other.serve(port=urllib.parse.urlsplit(page.address).port, block=False)
    other.close()
    assert not other.folder.exists()


def test_a_fraction_of_a_megabyte_is_a_limit_and_the_end_of_the_process_removes_the_files(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "saccade.cli", "app", "--port", "0", "--max-megabytes", "0.5"]
    running = subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    )
    try:
        assert running.stdout is not None
        assert running.stdout.readline().startswith("saccade is at http")
        assert list(tmp_path.glob("saccade-app-*"))
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
    assert not list(tmp_path.glob("saccade-app-*"))


def test_old_files_are_swept_away(page: Any, picture: Path) -> None:
    views, made, _ = page.work(str(picture), "upscale", 0.1, "x2", "auto")
    assert Path(made).exists()
    page.sweep()
    assert Path(made).exists(), "fresh files stay"
    page.sweep(time.time() + page.kept + 1)
    page.sweep(time.time() + page.kept + 1)
    assert not Path(made).exists()
    assert not Path(views[0]).exists()


@pytest.mark.parametrize("path", [str(Path(__file__).resolve()), "/etc/passwd", "http://127.0.0.1:9/a.png"])
def test_a_job_takes_no_file_that_was_not_uploaded(page: Any, path: str) -> None:
    import json
    from urllib.request import Request, urlopen

    # as a stranger would ask, not as Gradio's own client does: that one uploads the file by itself
    forged = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    address = page.address.rstrip("/") + "/gradio_api/call/work"
    asked = json.dumps({"data": [forged, "upscale", 0.1, "x2", "auto"]}).encode()
    with urlopen(Request(address, asked, {"content-type": "application/json"}), timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{address}/{event}", timeout=60) as answer:
        told = answer.read().decode()
    assert told.startswith("event: error")
    assert "root:" not in told
    assert "import" not in told


def test_a_folder_that_vanishes_while_old_files_are_swept_stops_nothing(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vanishing, old = page.folder / "job-vanishing", page.folder / "old.png"
    vanishing.mkdir()
    old.write_bytes(b"x")
    scan = os.scandir

    def late(path: Any = ".") -> Any:  # another job removes its folder just before the broom looks into it
        if Path(path) == vanishing:
            vanishing.rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", late)
    page.sweep(time.time() + page.kept + 1)
    assert not vanishing.exists()
    assert not old.exists()


def test_notes_tell_no_folders_of_this_machine(page: Any) -> None:
    grey = page.folder / "a grey picture.png"
    Image.fromarray(np.full((40, 60), 128, np.uint8)).save(grey)
    _, made, told = page.work(str(grey), "rescale", 0.5, "x2", "auto")
    assert made is not None
    assert "Note: a grey picture.png is grey" in told
    assert str(page.folder) not in told
