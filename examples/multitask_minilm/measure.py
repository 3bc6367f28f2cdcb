"""Measures what each plan costs and reaches: writes measured.json and the table in README.md.

All plans train side by side in one process, one epoch of each in turn, so that a busy machine slows
them alike; an epoch's processor time is divided by that of full fine-tuning in the same round. Each
run draws from a generator state of its own, so `train.py` with the same seed ends at the same
accuracies.
"""

import json
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from config import HERE, Config, load_config
from torch import Tensor
from train import TASKS, Run, evaluate, prepare, train_epoch, trainable

PLANS = {
    "all": "nothing",
    "backbone": "both heads",
    "cls_head": "backbone, sentiment head",
    "sent_head": "backbone, topic head",
    "gradual": "both heads; then the encoder layers too, one after another",
    "lp_ft": "both heads; then the backbone too",
    "full": "backbone, both heads",
}
SEEDS = (0, 1, 2)


def prepare_all(config: Config, plans: Iterable[str]) -> tuple[dict[str, Run], dict[str, Tensor]]:
    """Returns a run of each plan, and the state of the generator that each draws from."""
    runs, states = {}, {}
    for name in plans:
        runs[name] = prepare(config, HERE / "plans" / f"{name}.yaml")
        states[name] = torch.get_rng_state()
    return runs, states


def train_in_turn(
    runs: dict[str, Run], states: dict[str, Tensor], epochs: int, description: str
) -> list[dict[str, float]]:
    """Trains every run that trains anything; returns the seconds of each epoch, round by round."""
    rounds = []
    for epoch in range(epochs):
        seconds = {}
        for name, run in runs.items():
            if run.optimizer:
                torch.set_rng_state(states[name])
                start = time.process_time()
                train_epoch(run, epoch, f"{description}, epoch {epoch}, {name}")
                seconds[name] = time.process_time() - start
                states[name] = torch.get_rng_state()
        rounds.append(seconds)
    return rounds


def measure() -> dict[str, Any]:
    """Returns per plan: what trains, relative seconds per epoch, accuracy per task and seed."""
    config = load_config(HERE / "config.yaml")
    epochs = config.training.epochs
    plans: dict[str, Any] = {
        name: {"ratios": [], "accuracy": {task: [] for task in TASKS}} for name in PLANS
    }
    for seed in SEEDS:
        seeded = replace(config, training=replace(config.training, seed=seed))
        runs, states = prepare_all(seeded, PLANS)
        for seconds in train_in_turn(runs, states, epochs, f"seed {seed}"):
            for name, value in seconds.items():
                plans[name]["ratios"].append(value / seconds["full"])
        for name, run in runs.items():
            plans[name]["trainable"] = trainable(run.model)
            for task, score in evaluate(run).items():
                plans[name]["accuracy"][task].append(score["accuracy"])
                print(f"seed {seed}, {name}, {task}: held-out accuracy {score['accuracy']:.3f}")
    settings = {"epochs": epochs, "seeds": SEEDS, "test_sentences": len(run.test.dataset)}
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return {**settings, **machine, "plans": plans}


def time_ratio(ratios: list[float], epochs: int) -> float:
    """Returns the mean over the epochs of the median over the seeds."""
    return statistics.mean(statistics.median(ratios[epoch::epochs]) for epoch in range(epochs))


def table(measured: dict[str, Any]) -> str:
    """Returns the measured values as a Markdown table and a line on how they were taken."""
    seeds, epochs, sentences = (measured[key] for key in ("seeds", "epochs", "test_sentences"))
    lines = [
        "| plan | what trains | trainable parameters at the end | time, full = 1 "
        "| topic accuracy | sentiment accuracy |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, plan in measured["plans"].items():
        ratio = f"{time_ratio(plan['ratios'], epochs):.2f}" if plan["ratios"] else "none"
        accuracies = [
            f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in plan["accuracy"].values()
        ]
        cells = [f"`{name}`", PLANS[name], f"{plan['trainable']:,}", ratio, *accuracies]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        f"\nAccuracy: on the {sentences} held-out sentences after {epochs} epochs, the mean of "
        f"{len(seeds)} seeds with the lowest and the highest. Time: an epoch's processor time over "
        f"that of `full` in the same round, for each epoch the median of the {len(seeds)} seeds, "
        f"and of these the mean over the {epochs} epochs (torch {measured['torch']}, CPU threads: "
        f"{measured['threads']})."
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
