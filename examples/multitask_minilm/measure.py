"""Measures what each plan costs and reaches: writes measured.json and the table in README.md.

All plans train side by side in one process, one epoch of each in turn, so that a busy machine slows
them alike; an epoch's time is divided by that of full fine-tuning in the same round.
"""

import json
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from config import HERE, load_config
from train import TASKS, Run, evaluate, prepare, train_epoch

PLANS = {
    "all": "nothing",
    "backbone": "both heads",
    "cls_head": "backbone, sentiment head",
    "sent_head": "backbone, topic head",
    "full": "backbone, both heads",
}
SEEDS = (0, 1, 2)


def prepare_all(seed: int) -> dict[str, Run]:
    """Returns a run of each plan, all with one seed."""
    config = load_config(HERE / "config.yaml")
    config = replace(config, training=replace(config.training, seed=seed))
    return {name: prepare(config, HERE / "plans" / f"{name}.yaml") for name in PLANS}


def train_in_turn(runs: dict[str, Run], epochs: int, description: str) -> list[dict[str, float]]:
    """Trains every run that trains anything; returns the seconds of each epoch, round by round."""
    rounds = []
    for epoch in range(epochs):
        seconds = {}
        for name, run in runs.items():
            if run.optimizer:
                start = time.perf_counter()
                train_epoch(run, epoch, f"{description}, epoch {epoch}, {name}")
                seconds[name] = time.perf_counter() - start
        rounds.append(seconds)
    return rounds


def measure() -> dict[str, Any]:
    """Returns per plan: what trains, relative seconds per epoch, accuracy per task and seed."""
    epochs = load_config(HERE / "config.yaml").training.epochs
    plans: dict[str, Any] = {
        name: {"ratios": [], "accuracy": {task: [] for task in TASKS}} for name in PLANS
    }
    for seed in SEEDS:
        runs = prepare_all(seed)
        for seconds in train_in_turn(runs, epochs, f"seed {seed}"):
            for name, value in seconds.items():
                plans[name]["ratios"].append(value / seconds["full"])
        for name, run in runs.items():
            plans[name]["trainable"] = sum(
                p.numel() for p in run.model.parameters() if p.requires_grad
            )
            for task, score in evaluate(run).items():
                plans[name]["accuracy"][task].append(score["accuracy"])
                print(f"seed {seed}, {name}, {task}: held-out accuracy {score['accuracy']:.3f}")
    settings = {"epochs": epochs, "seeds": SEEDS, "test_sentences": len(run.test.dataset)}
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**settings, **machine, "plans": plans}


def table(measured: dict[str, Any]) -> str:
    """Returns the measured values as a Markdown table and a line on how they were taken."""
    lines = [
        "| plan | what trains | trainable parameters | seconds per epoch, full = 1 "
        "| topic accuracy | sentiment accuracy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, plan in measured["plans"].items():
        ratio = f"{statistics.median(plan['ratios']):.2f}" if plan["ratios"] else "none"
        accuracies = [
            f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in plan["accuracy"].values()
        ]
        cells = [f"`{name}`", PLANS[name], f"{plan['trainable']:,}", ratio, *accuracies]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, epochs, sentences = (measured[key] for key in ("seeds", "epochs", "test_sentences"))
    lines.append(
        f"\nAccuracy: on the {sentences} held-out sentences after {epochs} epochs, the mean of "
        f"{len(seeds)} seeds with the lowest and the highest. Seconds: one epoch's time over that "
        f"of `full` in the same round, the median of {len(seeds) * epochs} rounds (torch "
        f"{measured['torch']}, CPU threads: {measured['threads']})."
    )
    return "\n".join(lines)


def main() -> None:
    """Measures, and writes both files."""
    measured = measure()
    (HERE / "measured.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    readme = HERE / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- measured -->\n")
    _, after = rest.split("<!-- end of measured -->\n")
    marked = f"<!-- measured -->\n{table(measured)}\n<!-- end of measured -->\n"
    readme.write_text(before + marked + after, encoding="utf-8")
    print(table(measured))


if __name__ == "__main__":
    main()
