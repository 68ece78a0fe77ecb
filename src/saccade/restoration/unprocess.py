"""Pictures to RAW files: what a camera would have recorded, a strip of rows at a time.

    photo.jpg -- tone^-1 -- matrix^-1 -- white balance^-1 -- mosaic -- 16 bits --> photo.dng

The inverse of `restoration.develop`: the fixed operators of `restoration.model_isp.operators` (Brooks et al.), or a
learnt ISP from a file of weights.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from saccade.errors import InputError, UsageError
from saccade.io.raw import write_dng
from saccade.restoration.develop import STRIP, Advance, Report, learnt_isp, set_threads

if TYPE_CHECKING:
    import torch

    from saccade.io import Saving
    from saccade.restoration.model_isp.network import ModelISP

__all__ = ["Unprocessor", "unprocess"]

RAW_FORMATS = ("dng", "npz", "tiff")


class Unprocessor:
    """Makes RAW files of pictures: plausible ones, for training and testing what works on RAW.

    Without a model: the inverse of the fixed pipeline (Brooks et al.) with average parameters and a digital gain of 1,
    which `Developer` with tone ``smooth`` undoes up to the mosaic.

    Args:
        model: file of a learnt ISP, or the network; None for the fixed pipeline.
        pattern: Bayer pattern of the result.
        seed: draws the fixed pipeline's camera at random instead of the average.
        budget: of the learnt ISP.
        threads: CPU threads; 0 leaves them as they are.

    Raises:
        UsageError: an unknown pattern, a seed with a model, or a seed that is none.
        CheckpointError: a file that holds no learnt ISP.
    """

    def __init__(
        self,
        model: str | Path | ModelISP | None = None,
        *,
        pattern: str = "rggb",
        seed: int | None = None,
        budget: float | None = None,
        threads: int = 0,
    ) -> None:
        from saccade.ops.demosaic import check_pattern

        check_pattern(pattern)
        if model is not None and seed is not None:
            raise UsageError("a seed draws a camera for the fixed pipeline; a learnt ISP is one")
        if seed is not None and not 0 <= seed < 1 << 63:
            raise UsageError(f"a seed lies between 0 and 2^63 - 1, not {seed}")
        self.isp, self.pattern, self.seed = learnt_isp(model, budget), pattern, seed
        set_threads(threads)

    def picture(
        self,
        source: str | Path,
        target: str | Path,
        *,
        advance: Advance | None = None,
        **how: Unpack[Saving],
    ) -> Report:
        """Write the RAW of a picture: ``.dng``, ``.npz`` (packed, with all parameters) or ``.tiff`` (the plane, grey).

        Of ``how`` the file is written, ``format`` and ``overwrite`` mean something here.

        Raises:
            InputError: an unreadable picture, one too small for a cell, or a target that cannot be written.
            UsageError: another format.
        """
        from saccade.io import open_picture
        from saccade.io.files import check_target

        began, target = time.perf_counter(), Path(target)
        kind, overwrite = raw_format(target, how.get("format")), how.get("overwrite", False)
        check_target(target, overwrite)
        with open_picture(source) as reader:
            height, width = reader.height // 2 * 2, reader.width // 2 * 2
            if min(height, width) < 2:
                raise InputError(f"cannot unprocess {source}: {reader.width} x {reader.height} px hold no Bayer cell")
            notices = list(reader.notices)
            if (height, width) != (reader.height, reader.width):
                notices.append(f"{source}: the last row or column is left out, so that sides are even")
            if reader.has_alpha:
                notices.append(f"{source} has alpha: a RAW has none")
            if reader.icc is not None:
                notices.append(f"{source} has a colour profile: its pixels are taken as sRGB")
            undo, camera = self._camera(source, height, width, notices)
            plane = np.empty((height, width), np.uint16)
            step = max(2, STRIP // width // 2 * 2)
            for top in range(0, height, step):
                rows = min(step, height - top)
                colour, _ = reader.read_rows(top, rows)
                plane[top : top + rows] = undo(colour[:, :width], top)
                if advance:
                    advance(rows * width)
        if kind == "dng" and min(height, width) < 22:
            notices.append(f"{target}: LibRaw, and what is made with it, refuses RAW below 22 px a side")
        self._write(target, kind, plane, camera, overwrite)
        isp = "fixed" if self.isp is None else str(getattr(self.isp, "saccade_name", "model_isp"))
        chosen = "learnt" if self.isp is not None else ("average" if self.seed is None else "random")
        gains = tuple(camera["gains"].tolist())
        report = Report(str(source), str(target), (width, height), isp, chosen, gains, "smooth", 16, 0.0, notices)
        report.tone = "learnt" if self.isp is not None else "smooth"
        report.seconds = time.perf_counter() - began
        return report

    def _camera(
        self, source: str | Path, height: int, width: int, notices: list[str]
    ) -> tuple[Callable[[np.ndarray, int], np.ndarray], dict[str, np.ndarray]]:
        """What makes the plane's rows of the picture's, and the camera's gains and matrix."""
        import torch

        from saccade.ops.demosaic import mosaic, unpack
        from saccade.restoration.model_isp import operators

        if self.isp is not None:
            inverse, gains, matrix = self._learnt(source, height, notices)
        else:
            generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
            camera = operators.average_camera() if generator is None else operators.random_camera(generator)
            # the digital gain would darken highlights for good: a file has no place for it that readers heed
            camera = replace(camera, gains=camera.gains / camera.gains[1])
            gains, matrix = camera.gains, camera.camera_to_rgb

            def fixed(rgb: torch.Tensor, top: int) -> torch.Tensor:
                return operators.unprocess(rgb, camera)

            inverse = fixed

        def undo(colour: np.ndarray, top: int) -> np.ndarray:
            full = float(np.iinfo(colour.dtype).max)
            rgb = torch.from_numpy(colour.astype(np.float32) / full).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
            with torch.inference_mode():
                packed = mosaic(inverse(rgb, top), self.pattern)
                made: np.ndarray = unpack(packed)[0].clamp(0, 1).mul(65535).round().numpy().astype(np.uint16)
            return made

        return undo, {"gains": gains.double().numpy(), "camera_to_rgb": matrix.double().numpy()}

    def _learnt(
        self, source: str | Path, height: int, notices: list[str]
    ) -> tuple[Callable[[torch.Tensor, int], torch.Tensor], torch.Tensor, torch.Tensor]:
        import torch

        from saccade.restoration.model_isp.folded import fold_inverse

        isp = self.isp
        assert isp is not None
        with torch.inference_mode():
            look, grid = _look_at_picture(source, height)
            settings = isp.mix(isp.weights(look, grid, "inverse"))
        if settings.lsc is not None:
            notices.append(f"{source}: the lens shading of the learnt camera is in the RAW, but not noted in the file")
        gains = torch.ones(3) if settings.gains is None else settings.gains[0]
        if abs(math.log2(float(gains[1]))) > 0.01:
            notices.append(f"{source}: the RAW is exposed {-math.log2(float(gains[1])):+.2f} stops beside the picture")

        def inverse(rgb: torch.Tensor, top: int) -> torch.Tensor:
            return fold_inverse(isp, rgb, settings, top, height)

        return inverse, gains, torch.eye(3) if settings.ccm is None else settings.ccm[0]

    def _write(
        self, target: Path, kind: str, plane: np.ndarray, camera: dict[str, np.ndarray], overwrite: bool
    ) -> None:
        if kind == "tiff":
            from saccade.io import save_picture

            save_picture(target, plane, format="tiff", overwrite=overwrite)
        elif kind == "npz":
            cells = plane.reshape(plane.shape[0] // 2, 2, -1, 2).transpose(1, 3, 0, 2)
            held: dict[str, Any] = {"packed": cells.reshape(4, plane.shape[0] // 2, -1), **camera}
            told = {"pattern": np.array(self.pattern), "black": np.array(0), "white": np.array(65535)}
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **(held | told))
            from saccade.checkpoint import write_bytes

            write_bytes(target, buffer.getvalue())
        else:
            from saccade.restoration.model_isp.operators import SRGB_TO_XYZ

            neutral = camera["gains"][1] / camera["gains"]
            to_camera = np.linalg.inv(camera["camera_to_rgb"]) @ np.linalg.inv(np.array(SRGB_TO_XYZ))
            facts: dict[str, Any] = {
                "pattern": self.pattern,
                "neutral": neutral / neutral.max(),
                "overwrite": overwrite,
            }
            write_dng(target, plane, xyz_to_camera=neutral[:, None] * to_camera, **facts)


def _look_at_picture(source: str | Path, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spread pixels (1, 3, h, w) of a picture file, and their places."""
    import torch

    from saccade.io import open_picture
    from saccade.restoration.model_isp.network import spread
    from saccade.restoration.model_isp.stages import pixel_grid

    with open_picture(source) as reader:
        width = reader.width // 2 * 2
        rows, columns = (spread(n, torch.device("cpu")) for n in (height, width))
        lines = [reader.read_rows(int(row), 1)[0][:, columns.numpy()] for row in rows]
    colour = np.concatenate(lines)
    rgb = torch.from_numpy(colour.astype(np.float32) / float(np.iinfo(colour.dtype).max))
    look = rgb.permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
    return look, pixel_grid(rows.float(), columns.float(), height, width)


def raw_format(target: Path, asked: str | None) -> str:
    """``dng``, ``npz`` or ``tiff``, by option or by suffix.

    Raises:
        UsageError: another one.
    """
    kind = (asked or target.suffix.lstrip(".")).lower()
    kind = {"tif": "tiff"}.get(kind, kind)
    if kind not in RAW_FORMATS:
        raise UsageError(f"a RAW is written as {', '.join(RAW_FORMATS)}, not as {kind or 'a file without a suffix'}")
    return kind


def unprocess(source: str | Path, output: str | Path, *, overwrite: bool = False, **options: Any) -> Report:
    """Write a RAW file of a picture. ``options`` are those of `Unprocessor`; errors too."""
    return Unprocessor(**options).picture(source, output, overwrite=overwrite)
