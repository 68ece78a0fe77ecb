"""The page itself (Gradio): one column, for a phone as for a desk; nothing of it comes from the network.

Uploads, results and previews live in one temporary folder that is emptied every few minutes and removed at the end;
nothing outside it can be read through the page. One job runs at a time, others wait in a queue.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from saccade.app.jobs import JOBS, TASKS, Limits, offered, run
from saccade.errors import SaccadeError, UnavailableError, UsageError, first_line
from saccade.io.files import reason

__all__ = ["Gate", "Page"]

KEPT = 1800.0  # seconds that files stay
ENVELOPE = 1 << 20  # bytes of a request beside the file in it
Scope = MutableMapping[str, Any]
STYLE = """
.gradio-container {max-width: 900px !important; margin: 0 auto !important; padding: 12px !important}
#told p {margin: 4px 0}
footer {display: none !important}
"""


class Page:
    """The page and its folder.

    Args:
        limits: what it takes.
        waiting: jobs that may wait; more are refused.
        kept: seconds that files stay.

    Raises:
        UnavailableError: the ``app`` extra is not installed.
    """

    def __init__(self, limits: Limits = Limits(), *, waiting: int = 64, kept: float = KEPT) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="saccade-app-")).resolve()
        os.environ["GRADIO_TEMP_DIR"] = str(self.folder / "cache")
        os.environ["GRADIO_EXAMPLES_CACHE"] = str(self.folder / "examples")  # else .gradio here would be readable
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import gradio
        except ImportError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UnavailableError.extra("the page", "app") from error
        self._gradio, self.limits, self.waiting, self.kept = gradio, limits, waiting, kept
        self._closed = threading.Event()
        self._held: set[Path] = set()  # files and folders of the job that runs
        self.blocks = self._built()
        atexit.register(self.close)
        threading.Thread(target=self._sweep, daemon=True).start()

    # -- files

    def _sweep(self) -> None:
        while not self._closed.wait(min(60.0, self.kept)):
            self.sweep()

    def sweep(self, now: float | None = None) -> None:
        """Remove files older than ``kept`` seconds; those of a job that runs stay, however long it takes."""
        limit = (time.time() if now is None else now) - self.kept
        inside = os.walk(self.folder, topdown=False)  # which passes over folders that vanish meanwhile, unlike rglob
        for path in (Path(parent, name) for parent, folders, files in inside for name in (*files, *folders)):
            if not self._held.isdisjoint((path, *path.parents)):
                continue
            try:
                if path.is_dir():
                    if path.stat().st_mtime < limit and not any(path.iterdir()):
                        path.rmdir()
                elif path.stat().st_mtime < limit:
                    path.unlink()
            except OSError:  # another job removed it
                continue

    @contextmanager
    def _holding(self, *paths: Path) -> Iterator[None]:
        """Inside, these files and what lies in these folders are not swept away."""
        held = {path.resolve() for path in paths}
        self._held |= held
        try:
            yield
        finally:
            self._held -= held

    def close(self) -> None:
        """Stop the server and remove all files."""
        self._closed.set()
        try:
            self.blocks.close(verbose=False)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- work

    def work(
        self,
        file: str | None,
        job: str,
        dial: float,
        scale: str,
        task: str,
        advance: Callable[[float], Any] | None = None,
    ) -> tuple[Any, Any, str]:
        """One press of the button: (previews, file to download, what to tell)."""
        if not file:
            return None, None, "Drop a picture or a clip first."
        folder = Path(tempfile.mkdtemp(prefix="job-", dir=self.folder))
        try:
            with self._holding(Path(file), folder):
                made = run(
                    job,
                    file,
                    folder,
                    dial=dial,
                    scale=int(str(scale).lstrip("x×")),
                    task=task,
                    limits=self.limits,
                    advance=advance,
                )
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if not isinstance(error, SaccadeError):
                raise
            return None, None, f"**This did not work:** {_shown(first_line(error), self.folder)}"
        pair = None if made.before is None or made.after is None else (str(made.before), str(made.after))
        told = "\n\n".join(_shown(line, self.folder) for line in made.told)
        return pair, None if made.made is None else str(made.made), told

    # -- what is shown

    def _built(self) -> Any:
        gr = self._gradio
        # files go by `sweep`: Gradio's own broom would also take those of a job that runs for longer than they stay
        with gr.Blocks(title="saccade", analytics_enabled=False) as blocks:
            gr.Markdown("## saccade\nPictures and clips: larger, cleaner, smaller. Nothing leaves this machine.")
            file = gr.File(label="Picture or clip", elem_id="file", height=120)
            with gr.Row():
                job = gr.Radio(offered(), value="upscale", label="Job", elem_id="job")
                scale = gr.Radio(["x2", "x3", "x4"], value="x2", label="Scale", elem_id="scale")
                task = gr.Radio(list(TASKS), value="auto", label="Remove", visible=False, elem_id="task")
            label, low, high, start = JOBS["upscale"]
            dial = gr.Slider(low, high, start, step=0.01, label=label, elem_id="dial")
            button = gr.Button("Go", variant="primary", elem_id="go")
            told = gr.Markdown(elem_id="told")
            views = gr.ImageSlider(
                label="Before and after", type="filepath", interactive=False, elem_id="views", max_height=640
            )
            result = gr.File(label="Download", interactive=False, elem_id="result", height=80)

            def turned(chosen: str) -> list[Any]:
                words, least, most, at = JOBS[chosen]
                return [
                    gr.Slider(minimum=least, maximum=most, value=at, label=words),
                    gr.Radio(visible=chosen == "upscale"),
                    gr.Radio(visible=chosen == "restore"),
                ]

            def pressed(
                file: str | None, job: str, dial: float, scale: str, task: str, bar: Any = gr.Progress()
            ) -> tuple[Any, Any, str]:
                return self.work(file, job, dial, scale, task, lambda share: bar(share))

            job.change(turned, job, [dial, scale, task], api_name=False)
            button.click(pressed, [file, job, dial, scale, task], [views, result, told], api_name="work")
        blocks.queue(max_size=self.waiting, default_concurrency_limit=1)
        return blocks

    def serve(self, host: str = "127.0.0.1", port: int | None = 7860, *, block: bool = True) -> str:
        """Start the server; returns its address.

        Args:
            host: to listen at; ``0.0.0.0`` shows the page to the whole network.
            port: None takes a free one.
            block: wait until the process is interrupted.

        Raises:
            UsageError: nothing can listen there: an unknown host, a port that is taken or is none.
        """
        from starlette.middleware import Middleware

        _check_address(host, port)
        gr, most = self._gradio, int(self.limits.megabytes * (1 << 20))
        theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
        _, address, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=not block,
            max_file_size=most,
            app_kwargs={"middleware": [Middleware(Gate, most=most + ENVELOPE)]},
            allowed_paths=[],
            quiet=True,
            share=False,
            ssr_mode=False,
            show_error=False,
            theme=theme,
            css=STYLE,
        )
        return str(address)


class Gate:
    """Answers requests that the page never makes, before Gradio sees them.

    Gradio bounds each file of an upload, but takes a thousand in one; and it fetches addresses that it is asked for.

    Args:
        app: what answers all other requests (ASGI).
        most: bytes that a request may have.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], most: int) -> None:
        self.app, self.most = app, most

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Any, send: Callable[..., Awaitable[None]]
    ) -> None:
        refused = self.refused(scope) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": refused[0], "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": refused[1].encode()})

    def refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None for what may pass."""
        if re.search(r"/(file|proxy)=\s*[a-z][a-z0-9+.-]*:", str(scope["path"]), re.IGNORECASE):
            return 403, "nothing is fetched from elsewhere"
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        told = dict(scope["headers"]).get(b"content-length", b"")
        if not told.isdigit():
            return 411, "a request has to tell its length"
        return (413, f"more than {self.most} bytes") if int(told) > self.most else None


def _check_address(host: str, port: int | None) -> None:
    """Refuse an address that nothing can listen at.

    Raises:
        UsageError: says why.
    """
    if not 0 <= (port or 0) < 1 << 16:  # resolvers take the rest of a division by it
        raise UsageError(f"cannot listen at {host}, port {port}: ports lie between 0 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a port just left is free
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"cannot listen at {host}, port {port or 0}: {reason(error)}; choose --host or --port (0 takes a free one)"
        ) from error


def _shown(words: str, folder: Path) -> str:
    """What is told, without the folders of this machine."""
    parts = [part.rsplit("/", 1)[-1] if str(folder) in part else part for part in words.split(" ")]
    return " ".join(parts).replace("<", "&lt;")
