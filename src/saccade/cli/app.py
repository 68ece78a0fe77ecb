"""``saccade app``: the page in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from saccade.cli.options import Threads


def app(
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: your whole network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 7860,
    max_megabytes: Annotated[float, typer.Option(help="Largest file.")] = 64.0,
    max_megapixels: Annotated[float, typer.Option(help="Largest picture.")] = 40.0,
    max_frames: Annotated[int, typer.Option(help="Longest clip.")] = 900,
    max_memory: Annotated[str, typer.Option(help="Bound on the memory of a job.")] = "2GB",
    threads: Threads = 0,
) -> None:
    """Open the page: drop a picture or a clip, turn the dial, compare before and after, download.

    Works offline. Files live in a temporary folder, are removed after half an hour and when the page is closed.
    """
    import signal
    import sys

    from saccade.cli.batch import parse_bytes, spare_processor

    spare_processor()
    # a service manager ends programs so; without this nothing would remove the files
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    from saccade.app.jobs import Limits
    from saccade.app.page import Page

    page = Page(Limits(max_megabytes, max_megapixels, max_frames, parse_bytes(max_memory), threads))
    try:
        address = page.serve(host, port or None, block=False)
        typer.echo(f"saccade is at {address}  (Ctrl-C ends it)")
        page.blocks.block_thread()
    finally:
        page.close()
