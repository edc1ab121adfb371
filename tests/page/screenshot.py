"""The picture of the page that its README shows, and the one that a link to it shows.

python tests/page/screenshot.py     writes page/screenshot.png and page/social.png
"""

import shutil
from pathlib import Path

PAGE = Path(__file__).parents[2] / "page"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update"
).split()
SOCIAL = """body { padding-top: 1.6rem; } #answers { padding: 0.6rem 0; zoom: 1.2; }
    .ask, .settings, .bar, .card-head, footer { display: none !important; }"""  # what is left


def launch(playwright):
    """A headless browser that is asked for nothing but the page."""
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)


def main():
    from playwright.sync_api import sync_playwright  # optional, see install.sh

    with sync_playwright() as p:
        browser = launch(p)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        page.goto((PAGE / "index.html").as_uri())
        page.evaluate("window.fusionroute.finished()")
        page.evaluate("document.getElementById('status').textContent = ''")  # the speed varies
        page.screenshot(path=PAGE / "screenshot.png")
        page.set_viewport_size({"width": 1200, "height": 630})
        page.add_style_tag(content=SOCIAL)
        page.screenshot(path=PAGE / "social.png")
        browser.close()
    print("saved page/screenshot.png and page/social.png")


if __name__ == "__main__":
    main()
