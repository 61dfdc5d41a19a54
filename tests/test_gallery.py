"""The script of the pictures runs, and each is on a page."""

import re
import runpy
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

GALLERY = Path(__file__).parent.parent / "docs" / "gallery.py"


def test_all_pictures_are_made_and_shown(tmp_path):
    script = runpy.run_path(str(GALLERY))
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        script["main"](["--quick", "--out", str(tmp_path)])
    pages = [GALLERY.parent.parent / "README.md", *GALLERY.parent.glob("*.md")]
    shown = {name for page in pages for name in re.findall(r"images/([\w.]+)", page.read_text())}
    for picture in script["PICTURES"]:
        with Image.open(tmp_path / f"{picture.__name__}.gif") as image:
            assert image.n_frames >= 5
        committed = GALLERY.parent / "images" / f"{picture.__name__}.gif"
        assert committed.stat().st_size < 1_000_000
        assert committed.name in shown
    for picture in script["STILLS"]:
        assert (tmp_path / f"{picture.__name__}.png").exists()
        assert f"{picture.__name__}.png" in shown
    plt.close("all")
