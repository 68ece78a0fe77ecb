"""Pictures and video in and out: streamed, upright, with their profile and their tags.

Nothing heavy is imported until a name below is used: libvips serves pictures (`saccade.io.pictures`), PyAV serves
video (`saccade.io.video`, extra ``video``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from saccade.io.pictures import (
        PICTURE_SUFFIXES,
        PictureReader,
        PictureWriter,
        create_picture,
        find_pictures,
        is_video,
        open_picture,
        read_picture,
        save_picture,
    )
    from saccade.io.video import VideoReader, VideoWriter, open_video

__all__ = [
    "PICTURE_SUFFIXES",
    "PictureReader",
    "PictureWriter",
    "VideoReader",
    "VideoWriter",
    "create_picture",
    "find_pictures",
    "is_video",
    "open_picture",
    "open_video",
    "read_picture",
    "save_picture",
]

_VIDEO = ("VideoReader", "VideoWriter", "open_video")

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules=["feed", "files", "pictures", "spool", "video"],
    submod_attrs={"video": list(_VIDEO), "pictures": [name for name in __all__ if name not in _VIDEO]},
)
