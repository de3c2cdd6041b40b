"""The picture of docs/play.md: `python -m tests.play_screenshot RUN docs/play.png`, for a run whose codes are
bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm.playground.page import serve
from lvlm.playground.player import Player
from tests.test_play import browser_page, shows

if __name__ == "__main__":
    run, picture = sys.argv[1:]
    served = serve(Player.load(Path(run)))
    with browser_page([]) as page:
        page.goto(served.url)
        page.get_by_label("bits that I toggle").check()
        shows(page, "#texts h3", "Code 0")
        page.locator("#bits").get_by_label("0", exact=True).check()
        shows(page, "#texts h3", "Code 1")
        page.wait_for_selector("#texts .lv:has(section + section + p)")
        page.wait_for_timeout(500)
        page.screenshot(path=picture, full_page=True)
    served.close()
