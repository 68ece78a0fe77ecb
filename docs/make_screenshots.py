"""Screenshots of the page for the documentation: python docs/make_screenshots.py [path of Chromium]

A desk and a phone, the bundled photograph enlarged; needs the extras app and dev and an installed Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from saccade.app.page import Page

HERE = Path(__file__).resolve().parent
PHOTOGRAPH = HERE.parent / "src" / "saccade" / "demo" / "osprey.jpg"
VIEWS = {"app-desk": (1000, 1180), "app-phone": (390, 1100)}


def main() -> None:
    browser_path = sys.argv[1] if len(sys.argv) > 1 else shutil.which("chromium")
    page = Page()
    address = page.serve(port=None, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, (width, height) in VIEWS.items():
            tab = browser.new_page(viewport={"width": width, "height": height})
            tab.goto(address)
            tab.set_input_files("#file input[type=file]", str(PHOTOGRAPH))
            tab.wait_for_selector(f"#file >> text={PHOTOGRAPH.stem}")
            tab.click("#go")
            tab.wait_for_selector("#views img", timeout=120_000)
            tab.wait_for_timeout(1500)
            picture = Image.open(io.BytesIO(tab.screenshot()))
            picture.convert("RGB").quantize(128).save(HERE / "images" / f"{name}.png", optimize=True)
        browser.close()
    page.close()


if __name__ == "__main__":
    main()
