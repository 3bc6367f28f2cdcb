"""The pictures as SVG that a reviewer can read: texts stay text, one path for each style.

FREEZEKIT_OVERWRITE_GOLDEN=1 writes them anew. They are those of the matplotlib in constraints.txt.
"""

import io
import math
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from freezekit import FreezePlan, ResolvedPlan
from freezekit.plot import learning_rates, save, schedule, scores, trainability
from freezekit.scoring import Score, Scores

ROOT = Path(__file__).resolve().parent
GOLDEN = ROOT / "golden"
OVERWRITE = "FREEZEKIT_OVERWRITE_GOLDEN"
PINNED = dict(line.split("==") for line in (ROOT.parent / "constraints.txt").read_text().split())


def tower(plan: FreezePlan, **totals: int) -> ResolvedPlan:
    """Resolves a plan against an embedding, three blocks and a head."""
    blocks = nn.ModuleList(
        nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU()) for _ in range(3)
    )
    parts = {"embed": nn.Embedding(900, 64), "blocks": blocks, "head": nn.Linear(64, 3)}
    return plan.resolve(nn.ModuleDict(parts), **totals)


def gradual() -> FreezePlan:
    """Returns a plan that opens a layer every other epoch, and norms from the start."""
    plan = FreezePlan().freeze("**").unfreeze_layerwise(start_epoch=0, every_epochs=2)
    return plan.unfreeze("**@LayerNorm").layer_decay(decay=0.5)


def scored(*values: float) -> Scores:
    rows = (Score(f"layer.{k}", None, (), 1, value) for k, value in enumerate(values))
    return Scores("fisher", tuple(rows), 1)


PICTURES: dict[str, Callable[[], Axes]] = {
    "trainability": lambda: trainability(tower(gradual())),
    "trainability_later": lambda: trainability(tower(gradual()), epoch=4),
    "schedule": lambda: schedule(tower(gradual(), total_epochs=10), base_lr=2e-5),
    "schedule_metric": lambda: schedule(
        tower(FreezePlan().freeze("embed").unfreeze("embed", at_metric={"monitor": "val_loss"}))
    ),
    "learning_rates": lambda: learning_rates(
        tower(gradual(), steps_per_epoch=5, total_epochs=10),
        lr=2e-5,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=60),
    ),
    "scores": lambda: scores(scored(0.5, 0.001, math.inf, 0.02)),
}


@pytest.mark.skipif(
    mpl.__version__ != PINNED["matplotlib"], reason=f"drawn by matplotlib {PINNED['matplotlib']}"
)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_those_on_file(name: str) -> None:
    """Each picture is, byte for byte, the one that was looked at."""
    path, file = GOLDEN / f"{name}.svg", io.BytesIO()
    with mpl.rc_context(mpl.rcParamsDefault):
        save(PICTURES[name](), file, format="svg")
    drawn = file.getvalue().decode()
    if os.environ.get(OVERWRITE):
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8")


@pytest.mark.skipif(
    mpl.__version__ != PINNED["matplotlib"], reason=f"drawn by matplotlib {PINNED['matplotlib']}"
)
def test_pictures_of_the_page_are_those_its_code_draws(tmp_path: Path) -> None:
    """`docs/make_pictures.py` writes the pictures that are in `docs/_static`, byte for byte."""
    docs = ROOT.parent / "docs"
    script = runpy.run_path(str(docs / "make_pictures.py"))
    with mpl.rc_context(mpl.rcParamsDefault):
        script["run"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    page = (docs / "pictures.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]+\]\(_static/([^)]+)\)", page)
    assert sorted(made) == sorted(shown)
    for name, drawn in made.items():
        assert drawn == (docs / "_static" / name).read_bytes(), name
