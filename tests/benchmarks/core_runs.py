"""Measures what the core costs: `python -m tests.benchmarks.core_runs` writes core.json."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from freezekit import FreezePlan

from .cache_runs import Row, publish
from .test_advance_cost import seconds, tree
from .test_hold_cost import in_groups, upkeep
from .test_resolve_speed import deep_model, ratio

RESULTS = Path(__file__).with_name("core.json")
_IMPORT = """
import time, torch
start = time.process_time()
from freezekit import *
print(1e3 * (time.process_time() - start))
"""


def transition() -> float:
    """Returns the microseconds of a transition for each parameter it changes, of 100,000."""
    model = tree(100_000)
    applied = FreezePlan().freeze("layer", until_step=1).apply(model)
    applied.optimizer(torch.optim.SGD, lr=0.1)
    changed = sum(row.name.startswith("layer") for row in applied.resolved.rows)
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(6):
        for step, found in times.items():
            found.append(seconds(applied, step))
    applied.release()
    return max(1e6 * median(found[1:]) / changed for found in times.values())


def importing() -> float:
    """Returns the milliseconds that importing the package adds to importing torch."""
    found = []
    for _ in range(11):
        run = subprocess.run(
            [sys.executable, "-c", _IMPORT], check=True, capture_output=True, text=True
        )
        found.append(float(run.stdout))
    return median(found[1:])


def measured() -> dict[str, Any]:
    """Returns all figures."""
    works: dict[str, Callable[[], float]] = {
        "resolve, 20": lambda: ratio(deep_model(100_000), 20, 5),
        "resolve, 100": lambda: ratio(deep_model(100_000), 100, 5),
        "transition": transition,
        "upkeep": lambda: median(upkeep() for _ in range(3)),
        "groups": lambda: in_groups(12)[0],
        "import": importing,
    }
    return {name: work() for name, work in tqdm(works.items(), unit="figure")}


def table(found: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table."""
    return [
        Row("resolve 100,000 parameters, 20 patterns / a bare walk", "≤ 1.5", "0.9", "0.7",
            f"{found['resolve, 20']:.2f}"),
        Row("the same, 100 patterns", "≤ 2", "1.1", "0.7", f"{found['resolve, 100']:.2f}"),
        Row("a transition, for each changed parameter", "≤ 0.25 us", "0.20 us", "0.14 us",
            f"{found['transition']:.2f} us"),
        Row("`model.train()` with most held in eval / without", "≤ 1.05", "1.03", "1",
            f"{found['upkeep']:.3f}"),
        Row("a step with two groups a layer / one group", "≤ 1.05", "1.04", "1",
            f"{found['groups']:.3f}"),
        Row("`from freezekit import *` after torch", "≤ 50 ms", "", "",
            f"{found['import']:.0f} ms"),
    ]  # fmt: skip


def main() -> None:
    """Measures, and writes the figures and the page."""
    torch.set_num_threads(1)
    importing()  # writes the bytecode
    found = measured()
    text = json.dumps({"torch": torch.__version__, "found": found}, indent=2)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(publish("core", table(found)))


if __name__ == "__main__":
    main()
