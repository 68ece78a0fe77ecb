"""Draw the pictures of the README and the home page: python docs/make_pictures.py

A photograph of the Kodak set (released for unrestricted usage; none of them was trained on) is halved by the field's
bicubic, enlarged again by plain bicubic and by the default model, and a crop of each is put beside the original. The
figures under the crops are Y-PSNR of the whole photograph, 2 pixels shaved from each border.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import saccade
from saccade.data.pairs import degrade
from saccade.ops.resize import resize

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SACCADE_DATA", ROOT.parent / "shared" / "data"))
MADE = ROOT / "docs" / "images"
NAME, CORNER, SIDE, ENLARGED, CAPTION = "19", (128, 258), 100, 3, 26  # the lantern of the lighthouse, its railing


def y_psnr(made: np.ndarray, target: np.ndarray, border: int = 2) -> float:
    """PSNR of BT.601 luma in dB of two (H, W, 3) uint8 pictures, ``border`` pixels left out."""
    to_y = np.array([65.481, 128.553, 24.966]) / 255
    error = ((made.astype(float) - target.astype(float)) @ to_y)[border:-border, border:-border]
    return float(10 * np.log10(255**2 / np.mean(error**2)))


def photograph() -> np.ndarray:
    """(H, W, 3) uint8."""
    path = next((DATA / "kodak").glob(f"*{NAME}.png"), None)
    if path is None:
        raise SystemExit(f"no photograph {NAME} of the Kodak set in {DATA / 'kodak'}; set SACCADE_DATA")
    with Image.open(path) as opened:
        return np.array(opened.convert("RGB"))


def comparison(target: np.ndarray, scale: int = 2) -> Image.Image:
    """Crops of the bicubic and the network's enlargement and of the original, side by side."""
    low = degrade(torch.from_numpy(target).permute(2, 0, 1), scale)
    bicubic = resize(low.float(), scale).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    network = saccade.upscale(low.permute(1, 2, 0).contiguous().numpy(), scale)
    columns = {
        f"bicubic x{scale}, {y_psnr(bicubic, target):.2f} dB": bicubic,
        f"saccade x{scale}, {y_psnr(network, target):.2f} dB": network,
        "original": target,
    }
    side = SIDE * ENLARGED
    sheet = Image.new("RGB", (3 * side + 2 * 6, side + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (words, pixels) in enumerate(columns.items()):
        row, column = CORNER
        crop = Image.fromarray(np.ascontiguousarray(pixels[row : row + SIDE, column : column + SIDE]))
        sheet.paste(crop.resize((side, side), Image.Resampling.NEAREST), (i * (side + 6), 0))
        draw.text((i * (side + 6) + side / 2, side + CAPTION / 2), words, fill="black", font=font, anchor="mm")
        print(words)
    return sheet


def foveated(target: np.ndarray, side: int = 512, shown: int = 320) -> Image.Image:
    """A square of the photograph, and how it looks to an eye on the cross: texture, then blur, in the periphery."""
    from saccade.backbones.foveated import foveate

    square = np.ascontiguousarray(target[-side - 128 : -128, :side])
    fixation = (0.87, 0.565)  # the face of the viewer
    columns = {
        "original": Image.fromarray(square),
        "texture, scale 0.4": Image.fromarray(foveate(square, fixation)),
        "blur": Image.fromarray(foveate(square, fixation, kind="blur")),
    }
    sheet = Image.new("RGB", (len(columns) * (shown + 6) - 6, shown + CAPTION), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (words, picture) in enumerate(columns.items()):
        left = i * (shown + 6)
        sheet.paste(picture.resize((shown, shown), Image.Resampling.LANCZOS), (left, 0))
        draw.text((left + shown / 2, shown + CAPTION / 2), words, fill="black", font=font, anchor="mm")
        x, y = left + fixation[0] * shown, fixation[1] * shown
        for ends in ((x - 6, y, x + 6, y), (x, y - 6, x, y + 6)):
            draw.line(ends, fill="red", width=2)
    return sheet


if __name__ == "__main__":
    MADE.mkdir(exist_ok=True)
    sheet = comparison(photograph())
    sheet.quantize(256, dither=Image.Dither.NONE).save(MADE / "comparison.png", optimize=True)
    print(f"{MADE / 'comparison.png'}  {(MADE / 'comparison.png').stat().st_size:,} bytes")
    foveated(photograph()).save(MADE / "foveated.jpg", quality=88)
