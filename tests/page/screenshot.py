"""The picture of the page that its README shows.

python tests/page/screenshot.py     writes page/screenshot.png
"""

import shutil
from pathlib import Path

PAGE = Path(__file__).parents[2] / "page"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()


def launch(playwright):
    """A headless browser that is asked for nothing but the page."""
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)


def main():
    from playwright.sync_api import sync_playwright  # optional, see install.sh

    with sync_playwright() as p:
        browser = launch(p)
        page = browser.new_page(viewport={"width": 1280, "height": 1500}, reduced_motion="reduce")
        page.goto((PAGE / "index.html").as_uri())
        page.evaluate("window.fusionroute.finished()")
        page.evaluate("document.getElementById('status').textContent = ''")  # the speed varies
        page.screenshot(path=PAGE / "screenshot.png")
        browser.close()
    print("saved page/screenshot.png")


if __name__ == "__main__":
    main()
