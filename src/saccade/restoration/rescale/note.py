"""What a small picture says of itself: the model that made it, the size that it had, a checksum of its pixels."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from saccade.errors import InputError

__all__ = ["KEYWORD", "Note", "parse_note"]

KEYWORD = "saccade-rescale"
FORMAT = 1


@dataclass(frozen=True)
class Note:
    """What a small picture says of itself, in its PNG's tEXt.

    Attributes:
        model, weights: the network's name, and the first digits of the SHA-256 of its weights.
        size: (width, height) of the picture that was shrunk.
        grey: whether that was grey (the small picture is in colour all the same: detail hides in its colours).
        bits: of a sample of that picture, 8 or 16.
        pixels: CRC-32 of the small picture's colour samples.
    """

    model: str
    weights: str
    size: tuple[int, int]
    grey: bool
    bits: int
    pixels: int

    def text(self) -> str:
        """As it stands in the file."""
        told = {"format": FORMAT, **asdict(self), "size": list(self.size), "pixels": f"{self.pixels:08x}"}
        return json.dumps(told, separators=(",", ":"))


def parse_note(text: str) -> Note:
    """Read a note.

    Raises:
        InputError: damaged, or of a later format.
    """
    try:
        told = json.loads(text)
        if not isinstance(told, dict):
            raise TypeError
        if isinstance(told["format"], int) and told["format"] > FORMAT:
            raise InputError(
                f"its note has format {told['format']}, this version reads {FORMAT}: a later saccade made it"
            )
        width, height = told["size"]
        note = Note(
            told["model"], told["weights"], (width, height), told["grey"], told["bits"], int(told["pixels"], 16)
        )
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError("its note is damaged; say with --size WxH how large the picture was") from None
    sound = (
        told["format"] == FORMAT
        and all(type(n) is int and 1 <= n < 1 << 31 for n in note.size)
        and isinstance(note.model, str)
        and re.fullmatch(r"[\w.-]{1,100}", note.model) is not None
        and isinstance(note.weights, str)
        and re.fullmatch(r"[0-9a-f]{12}", note.weights) is not None
        and type(note.grey) is bool
        and note.bits in (8, 16)
        and type(note.bits) is int
        and 0 <= note.pixels < 1 << 32
    )
    if not sound:
        raise InputError("its note is damaged; say with --size WxH how large the picture was")
    return note
