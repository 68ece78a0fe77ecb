"""Pictures and video in and out: streamed, upright, with their profile and their tags.

Nothing heavy is imported until a name below is used: libvips serves pictures (`saccade.io.reading`,
`saccade.io.writing`), PyAV serves video (`saccade.io.video`, extra ``video``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from saccade.io.finding import find_pictures, is_video
    from saccade.io.formats import PICTURE_SUFFIXES
    from saccade.io.reading import PictureReader, open_picture, read_picture
    from saccade.io.video import VideoReader, VideoWriter, open_video
    from saccade.io.writing import PictureWriter, Saving, create_picture, save_picture

__all__ = [
    "PICTURE_SUFFIXES",
    "PictureReader",
    "PictureWriter",
    "Saving",
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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submodules=["feed", "files", "finding", "formats", "pil", "reading", "spool", "video", "writing"],
    submod_attrs={
        "finding": ["find_pictures", "is_video"],
        "formats": ["PICTURE_SUFFIXES"],
        "reading": ["PictureReader", "open_picture", "read_picture"],
        "video": ["VideoReader", "VideoWriter", "open_video"],
        "writing": ["PictureWriter", "Saving", "create_picture", "save_picture"],
    },
)
