"""The page itself (Gradio): one column, for a phone as for a desk; nothing of it comes from the network.

Uploads, results and previews live in one temporary folder that is emptied every few minutes and removed at the end;
nothing outside it can be read through the page. One job runs at a time, others wait in a queue.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saccade.app.jobs import JOBS, TASKS, Limits, offered, run
from saccade.errors import SaccadeError, UnavailableError, first_line

__all__ = ["Page"]

KEPT = 1800.0  # seconds that files stay
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
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        try:
            import gradio
        except ImportError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UnavailableError.extra("the page", "app") from error
        self._gradio, self.limits, self.waiting, self.kept = gradio, limits, waiting, kept
        self._closed = threading.Event()
        self.blocks = self._built()
        atexit.register(self.close)
        threading.Thread(target=self._sweep, daemon=True).start()

    # -- files

    def _sweep(self) -> None:
        while not self._closed.wait(min(60.0, self.kept)):
            self.sweep()

    def sweep(self, now: float | None = None) -> None:
        """Remove files older than ``kept`` seconds."""
        limit = (time.time() if now is None else now) - self.kept
        for path in sorted(self.folder.rglob("*"), reverse=True):
            try:
                if path.is_dir():
                    if path.stat().st_mtime < limit and not any(path.iterdir()):
                        path.rmdir()
                elif path.stat().st_mtime < limit:
                    path.unlink()
            except OSError:  # another job removed it
                continue

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
        except SaccadeError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return None, None, f"**This did not work:** {_shown(error, self.folder)}"
        pair = None if made.before is None or made.after is None else (str(made.before), str(made.after))
        return pair, None if made.made is None else str(made.made), "\n\n".join(made.told)

    # -- what is shown

    def _built(self) -> Any:
        gr = self._gradio
        with gr.Blocks(title="saccade", analytics_enabled=False, delete_cache=(300, int(self.kept))) as blocks:
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
        """
        gr = self._gradio
        theme = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))
        _, address, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=not block,
            max_file_size=f"{self.limits.megabytes:g}mb",
            allowed_paths=[],
            quiet=True,
            share=False,
            ssr_mode=False,
            show_error=False,
            theme=theme,
            css=STYLE,
        )
        return str(address)


def _shown(error: SaccadeError, folder: Path) -> str:
    """An error without the folders of this machine."""
    words = first_line(error)
    parts = [part.rsplit("/", 1)[-1] if str(folder) in part else part for part in words.split(" ")]
    return " ".join(parts).replace("<", "&lt;")
