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
from .test_advance_cost import Transition, transition, tree
from .test_hold_cost import in_groups, upkeep
from .test_resolve_speed import deep_model, ratio

RESULTS = Path(__file__).with_name("core.json")
_IMPORT = """
import time, torch
start = time.process_time()
from freezekit import *
print(1e3 * (time.process_time() - start))
"""


def transitions() -> dict[str, Transition]:
    """Returns what transitions of 100,000 parameters cost, with and without an optimizer."""
    model, found = tree(100_000), {}
    for name in ("bare", "attached"):
        with FreezePlan().freeze("layer", until_step=1).apply(model) as applied:
            if name == "attached":
                applied.optimizer(torch.optim.SGD, lr=0.1)
            found[name] = transition(model, applied)
    return found


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
    works: dict[str, Callable[[], Any]] = {
        "resolve, 20": lambda: ratio(deep_model(100_000), 20, 5),
        "resolve, 100": lambda: ratio(deep_model(100_000), 100, 5),
        "transition": lambda: {name: each._asdict() for name, each in transitions().items()},
        "upkeep": lambda: median(upkeep() for _ in range(3)),
        "groups": lambda: in_groups(12)[0],
        "import": importing,
    }
    return {name: work() for name, work in tqdm(works.items(), unit="figure")}


def table(found: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table."""

    def both(name: str, unit: str) -> str:
        bare, attached = (found["transition"][kind][name] for kind in ("bare", "attached"))
        return f"{bare:.2f}{unit} ({attached:.2f}{unit} with an optimizer)"

    return [
        Row("resolve 100,000 parameters, 20 patterns / a bare walk", "≤ 1.5", "0.9", "0.7",
            f"{found['resolve, 20']:.2f}"),
        Row("the same, 100 patterns", "≤ 2", "1.1", "0.7", f"{found['resolve, 100']:.2f}"),
        Row("a transition, for each changed parameter", "≤ 0.25 us", "0.20 us", "0.08 us",
            both("cost", " us")),
        Row("the same / writing the flags alone", "", "2.5", "1", both("to_write", "")),
        Row("the same / a loop by hand that writes flags, gradients and modes", "", "", "1",
            both("to_loop", "")),
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
