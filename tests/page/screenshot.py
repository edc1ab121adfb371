"""The picture of the page that its README shows.

python tests/page/screenshot.py     writes page/screenshot.png
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from toy_experts import script  # noqa: E402

INSTALL = "run: bash tests/page/install.sh python"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


def take(browser, page_file, path):
    """A picture of the first screen of the page."""
    size = {"width": 1280, "height": 1500}
    context = browser.new_context(viewport=size, color_scheme="light", reduced_motion="reduce")
    page = context.new_page()
    page.goto(page_file.absolute().as_uri())
    page.evaluate("window.fusionroute.finished()")
    page.evaluate("document.getElementById('status').textContent = ''")  # the speed always differs
    page.screenshot(path=path)
    context.close()


def main():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as e:
        raise script.UserError(f"there is no playwright; {INSTALL}") from e
    if CHROMIUM is None:
        raise script.UserError(f"there is no chromium; {INSTALL}")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        take(browser, ROOT / "page" / "index.html", ROOT / "page" / "screenshot.png")
        browser.close()
    print("saved page/screenshot.png")


if __name__ == "__main__":
    script.run(main)
