"""Notes inside PNG files: tEXt chunks, read and written without decoding a pixel.

A PNG is a signature and chunks: length, name, data, checksum. Text chunks may stand anywhere between the first (IHDR)
and the last (IEND); ours goes right behind the first.
"""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

from saccade.errors import InputError
from saccade.io.files import first_bytes, reason, temporary_beside

__all__ = ["add_text", "read_text"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = 33  # bytes of the signature and IHDR
LONGEST = 1 << 16  # bytes of a note that is still read
MOST = 10_000  # chunks that are looked at


def read_text(path: str | os.PathLike[str]) -> dict[str, str]:
    """The tEXt chunks of a PNG by keyword, the first of each; empty for other files.

    Chunks with a wrong checksum, and those longer than 64 KB, are passed over: notes are not worth a failure.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(path)
    if first_bytes(path, 8) != SIGNATURE:
        return {}
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            file.seek(8)
            for _ in range(MOST):
                head = file.read(8)
                if len(head) < 8:
                    break
                length, name = struct.unpack(">I4s", head)
                if name == b"IEND":
                    break
                if name != b"tEXt" or length > LONGEST:
                    file.seek(length + 4, os.SEEK_CUR)
                    continue
                data, checksum = file.read(length), file.read(4)
                if len(data) == length and checksum == struct.pack(">I", zlib.crc32(name + data)) and b"\0" in data:
                    keyword, _, text = data.partition(b"\0")
                    found.setdefault(keyword.decode("latin-1"), text.decode("latin-1"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from None
    return found


def add_text(path: str | os.PathLike[str], notes: Mapping[str, str]) -> None:
    """Put notes into a PNG file; it is replaced by one that has them, whole or not at all.

    Raises:
        InputError: no PNG, or it cannot be replaced; ValueError: text that Latin-1 does not have, or a bad keyword.
    """
    path = Path(path)
    chunks = b"".join(_chunk(keyword, text) for keyword, text in notes.items())
    if first_bytes(path, 8) != SIGNATURE:
        raise InputError(f"{path} is no PNG file")
    temporary = temporary_beside(path)
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            target.write(source.read(HEADER) + chunks)
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _chunk(keyword: str, text: str) -> bytes:
    if not 1 <= len(keyword) <= 79 or keyword != keyword.strip() or "\0" in keyword + text:
        raise ValueError(f"{keyword!r} is no keyword of a PNG note, or its text holds a zero")
    body = b"tEXt" + keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
