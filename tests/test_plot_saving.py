"""Pictures as files, and what drawing loads and leaves."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from pictures import resolved
from torch import nn

from freezekit import FreezePlan
from freezekit.plot import learning_rates, save, schedule, trainability

SVG = "{http://www.w3.org/2000/svg}"
MAGIC: dict[str, Callable[[bytes], bool]] = {
    "png": lambda data: data.startswith(b"\x89PNG"),
    "svg": lambda data: b"<svg" in data and b">Trainable</text>" in data,
    "pdf": lambda data: data.startswith(b"%PDF"),
}


@pytest.mark.parametrize("kind", MAGIC)
@pytest.mark.parametrize("name", ["six", "thousand"])
def test_pictures_save(kind: str, name: str, tmp_path: Path) -> None:
    """PNG, SVG and PDF all come out, by the suffix or by name; text stays text in SVG."""
    ax, file = trainability(resolved(name)), io.BytesIO()
    save(ax, file, format=kind)
    assert MAGIC[kind](file.getvalue())
    for path in (tmp_path / f"a.{kind}", str(tmp_path / f"b.{kind.upper()}")):
        save(ax, path)
        assert MAGIC[kind](Path(path).read_bytes())


def test_files_are_the_same_in_every_process(tmp_path: Path) -> None:
    """Two processes with other seeds, dates and settings write the same bytes, in each format."""
    code = """
import sys, matplotlib
from torch import nn
from freezekit import FreezePlan, plot
seed, folder, *kinds = sys.argv[1:]
matplotlib.rcParams["svg.hashsalt"] = seed
plan = FreezePlan().freeze("**.weight").unfreeze("**.bias", at_epoch=2)
made = plan.resolve(nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 2)))
for kind in kinds:
    plot.save(plot.trainability(made), f"{folder}/{seed}.{kind}")
"""
    for seed, kinds in {"1": [*MAGIC], "2": [*reversed(MAGIC)]}.items():
        moment = {"PYTHONHASHSEED": seed, "SOURCE_DATE_EPOCH": f"{seed}00000000"}
        run = [sys.executable, "-c", code, seed, tmp_path, *kinds]
        subprocess.run(run, env=os.environ | moment, check=True)
    for kind in MAGIC:
        one, two = ((tmp_path / f"{seed}.{kind}").read_bytes() for seed in ("1", "2"))
        assert MAGIC[kind](one)
        assert one == two
        assert b"CreationDate" not in one


def test_dpi_is_that_of_the_file() -> None:
    """A PNG has `dpi` pixels in an inch, and the figure keeps its own."""
    ax, files = trainability(nn.Linear(2, 2)), [io.BytesIO(), io.BytesIO()]
    save(ax, files[0], format="png", dpi=50)
    save(ax, files[1], format="png", dpi=100)
    widths = [int.from_bytes(file.getvalue()[16:20], "big") for file in files]
    assert abs(2 * widths[0] - widths[1]) <= 2
    assert ax.figure.dpi == mpl.rcParams["figure.dpi"]


def test_axes_in_a_subfigure_save_the_whole_figure() -> None:
    """What is written is the figure around a SubFigure."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, _ = figure.subfigures(1, 2)
    file = io.BytesIO()
    save(trainability(nn.Linear(2, 2), left.add_subplot()), file, format="png", dpi=100)
    assert int.from_bytes(file.getvalue()[16:20], "big") == 800


def test_other_formats_are_refused(tmp_path: Path) -> None:
    """What is not PNG, SVG or PDF is quoted, with what is."""
    ax = trainability(nn.Linear(2, 2))
    known = "png, svg or pdf"
    with pytest.raises(ValueError, match=rf"^save to 'a\.jpg': pictures are saved as {known}$"):
        save(ax, "a.jpg")
    with pytest.raises(ValueError, match=rf"^save to 'plain': pictures are saved as {known}$"):
        save(ax, Path("plain"))
    with pytest.raises(ValueError, match=rf"^format='eps': pictures are saved as {known}$"):
        save(ax, tmp_path / "a.svg", format="eps")
    with pytest.raises(ValueError, match=r"^a file object has no suffix; pass format="):
        save(ax, io.BytesIO())


def test_import_is_light_and_pyplot_stays_out() -> None:
    """`freezekit.plot` loads no matplotlib before it draws, and never pyplot."""
    code = """
import io, sys
import freezekit.plot as plot
assert "matplotlib" not in sys.modules
from torch import nn
plot.save(plot.trainability(nn.Linear(2, 2)), io.BytesIO(), format="png")
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout.strip(), run.returncode) == ("True False", 0), run.stderr


def test_any_name_is_text_in_every_picture() -> None:
    """A module called `<script>` or `$x_1$` is that text in the SVG, which stays well-formed."""
    model = nn.Sequential()
    for name in ("<script>", "$x_1$", 'a"&b'):
        model.add_module(name, nn.Linear(2, 2))
    made = FreezePlan().layer_decay(decay=0.5).resolve(model, total_steps=4)
    for ax in (trainability(made), schedule(made), learning_rates(made, lr=0.1)):
        file = io.BytesIO()
        save(ax, file, format="svg")
        written = {text.text for text in ElementTree.fromstring(file.getvalue()).iter(f"{SVG}text")}
        assert {"<script>", "$x_1$", 'a"&b'} <= written


def test_names_of_any_characters_are_written() -> None:
    """Without a warning; what is no character to write is an escape, and the SVG well-formed."""
    model = nn.Sequential()
    names = ("\u5c42", "a\nb", "c\td", "e\x01f", "\u05d0\u0301")
    for name in names:
        model.add_module(name, nn.Linear(2, 2))
    plan = FreezePlan().layer_decay(decay=0.5)
    monitor = {"monitor": "m\x02\u5c42", "mode": "min"}
    made = plan.freeze("re:e.*").unfreeze("re:e.*", at_metric=monitor).resolve(model, total_steps=4)
    for ax in (trainability(made), schedule(made), learning_rates(made, lr=0.1)):
        for kind in MAGIC:
            file = io.BytesIO()
            save(ax, file, format=kind)
            if kind == "svg":
                root = ElementTree.fromstring(file.getvalue())
                written = "|".join(str(text.text) for text in root.iter(f"{SVG}text"))
                assert all(name in written for name in ("\u5c42", r"a\nb", r"c\td"))
