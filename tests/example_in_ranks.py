"""The example in one of several processes: what `run_ranks` calls."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import train


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


def run(config: str, plan: str, output: str, *options: str) -> None:
    """Trains to the end."""
    train.main(["--config", config, "--plan", plan, "--output", output, *options])


def run_in_part(config: str, plan: str, output: str) -> None:
    """Trains until both processes are stopped in the middle of the third epoch."""
    evaluate, left = train.evaluate, iter(range(2))

    def stopping(run: train.Run) -> dict[str, dict[str, Any]]:
        if next(left, None) is None:
            raise StoppedError
        return evaluate(run)

    train.evaluate = stopping
    try:
        run(config, plan, output)
    except StoppedError:
        pass
    finally:
        train.evaluate = evaluate
