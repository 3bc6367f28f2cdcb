"""Runs the code of the page on pictures, which writes the pictures that it shows.

`python docs/make_pictures.py` writes them into `docs/_static`, with a folder as argument there.
"""

import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent


def run(folder: Path) -> None:
    """Runs the Python blocks of the page, one after another, inside a folder."""
    page = (DOCS / "pictures.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    before, names = Path.cwd(), {"__name__": "pictures"}
    os.chdir(folder)
    try:
        for block in blocks:
            exec(compile(block, "pictures.md", "exec"), names)
    finally:
        os.chdir(before)


if __name__ == "__main__":
    run(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "_static")
