"""Video compression in memory: what frames look like after a starved encoder. Needs the extra ``video``."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from saccade.data.degrade.jpeg import to_bytes
from saccade.errors import InputError, UnavailableError, UsageError

__all__ = ["CODECS", "compress_video"]

CODECS = ("libx264", "mpeg4")
BLOCK = 16  # px: what the codecs work in; they would fill up the last blocks themselves
#: x264 with its macroblock tree gives, now and then, other bytes for the same frames
OPTIONS = {"libx264": {"x264-params": "threads=1:mbtree=0"}, "mpeg4": {"threads": "1"}}


def compress_video(frames: Tensor, codec: str, bits_per_frame: float) -> Tensor:
    """Encode frames as a clip of one group of pictures and decode them.

    Args:
        frames: (t, 3, h, w) in [0, 1]. Sides are filled up to multiples of 16 by repeating the border.
        codec: ``"libx264"`` or ``"mpeg4"``.
        bits_per_frame: the rate that the encoder aims at.

    Returns:
        (t, 3, h, w) at levels of 1/255, of the input's dtype and device; no gradient passes.

    Raises:
        InputError: another shape. UsageError: another codec, or a rate that is not positive.
        UnavailableError: PyAV is not installed, or built without the codec.
    """
    try:
        import av
    except ImportError:
        raise UnavailableError.extra("video compression", "video") from None
    if frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise InputError(f"video compression takes frames (t, 3, h, w), not {tuple(frames.shape)}")
    if codec not in CODECS or not bits_per_frame > 0:
        raise UsageError(f"video is compressed with {' or '.join(CODECS)} at a positive rate, not {codec!r}")
    if codec not in av.codecs_available:
        raise UnavailableError(f"this build of PyAV has no {codec}")
    height, width = frames.shape[2:]
    below, right = (-n % BLOCK for n in (height, width))
    levels = to_bytes(F.pad(frames.detach().float().cpu(), (0, right, 0, below), "replicate"))
    pixels = np.ascontiguousarray(levels.permute(0, 2, 3, 1).numpy())
    decoded = _decode(av, _encode(av, pixels, codec, round(bits_per_frame)))
    if len(decoded) != len(frames):
        raise InputError(f"{codec} gave {len(decoded)} frames back for {len(frames)}")
    made = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)[..., :height, :width]
    return made.to(frames.device, frames.dtype).div_(255).contiguous()


def _encode(av: Any, pixels: np.ndarray, codec: str, bits: int) -> io.BytesIO:
    buffer = io.BytesIO()
    with av.open(buffer, "w", "mp4") as container:
        # one frame a second: a rate per second is one per frame
        stream = container.add_stream(codec, rate=1, options=OPTIONS[codec])
        stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
        stream.bit_rate = bits
        for frame in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    return buffer


def _decode(av: Any, buffer: io.BytesIO) -> list[np.ndarray]:
    with av.open(buffer, "r") as container:
        container.streams.video[0].codec_context.thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
