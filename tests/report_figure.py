"""A figure of a study's report as a file: `python -m tests.report_figure runs/letters_codes Steering
docs/steering.svg`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm.report.figures import draw
from lvlm.report.folder import read_folder

GREY = "#57606a"

if __name__ == "__main__":
    folder, title, out = sys.argv[1:]
    pictures = {picture.title: picture.svg for picture in draw(read_folder(Path(folder)))}
    if title not in pictures:
        sys.exit(f"no figure {title!r}; there are {', '.join(map(repr, pictures))}")
    # In a page of HTML an SVG needs no namespaces and has the page's colour; a file of its own has a grey
    # that stands out from white and from black.
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    Path(out).write_text(pictures[title].replace("<svg ", f"<svg {spaces} ", 1).replace("currentColor", GREY))
