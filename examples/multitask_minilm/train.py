"""Trains MiniLM on two tasks at once, with those parts frozen that a freezekit plan names.

Run `python train.py --mode backbone`, or `python train.py --plan my.yaml` with any plan file. A run
that was stopped goes on with `--resume`. `torchrun --nproc-per-node 2 train.py ...` runs the same
training in two processes.
"""

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from checkpoint import Checkpoint, Progress, save_checkpoint
from config import CHOICES, HERE, Config, UserError, load_config
from data import encode, load_rows, topics_of
from model import MultiTaskMiniLM, load_backbone
from processes import Processes
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from weights import Weights, find_weights

from freezekit import AppliedPlan, FreezekitError, FreezePlan, ResolvedPlan, plot
from freezekit.cache import ActivationCache

TASKS = ("topic", "sentiment")
ALONE = Processes()
NOTHING = "this plan trains nothing: every parameter is frozen, the heads too; only evaluating"


@dataclass
class Run:
    """What one run trains: the model under its plan, the data, and what trains it (if anything).

    `trained` is the model, or DDP around it where there are several processes.
    """

    config: Config
    weights: Weights
    topics: list[str]
    tokenizer: PreTrainedTokenizerBase
    model: MultiTaskMiniLM
    plan: FreezePlan
    applied: AppliedPlan
    train: DataLoader[tuple[Tensor, ...]]
    test: DataLoader[tuple[Tensor, ...]]
    processes: Processes
    trained: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    scheduler: LinearLR | None = None


class Parts(NamedTuple):
    """What every way to train starts from: pre-trained weights, a model on them, the data."""

    weights: Weights
    topics: list[str]
    tokenizer: PreTrainedTokenizerBase
    model: MultiTaskMiniLM
    train: TensorDataset
    test: TensorDataset


def load(config: Config) -> Parts:
    """Loads the data and the pre-trained weights and puts new heads on them."""
    settings = config.training
    train_rows = load_rows(Path(config.data.train))
    topics = topics_of(train_rows, config.data.train)
    test_rows = load_rows(Path(config.data.test), topics)
    weights = find_weights(config.model.name)
    tokenizer = AutoTokenizer.from_pretrained(weights.folder, local_files_only=True)
    train, test = (
        encode(rows, tokenizer, topics, settings.max_length) for rows in (train_rows, test_rows)
    )
    backbone = load_backbone(weights.folder)
    torch.manual_seed(settings.seed)
    model = MultiTaskMiniLM(backbone, len(topics), config.model.pooling, config.model.normalize)
    return Parts(weights, topics, tokenizer, model, train, test)


def prepare(config: Config, plan_file: Path, processes: Processes = ALONE) -> Run:
    """Builds a run: data, model on pre-trained weights, plan applied, optimizer, LR scheduler."""
    settings = config.training
    weights, topics, tokenizer, model, train, test = load(config)
    model.to(processes.device)
    order = torch.Generator().manual_seed(settings.seed)
    loader = processes.loader(train, settings.batch_size, order)
    totals = totals_of(config, len(train))
    plan = load_plan(plan_file, model, totals)
    applied = plan.apply(model, **totals)
    # A generator of its own: evaluating draws nothing from the one that dropout draws from.
    held_out = DataLoader(test, settings.batch_size, generator=torch.Generator())
    run = Run(
        config, weights, topics, tokenizer, model, plan, applied, loader, held_out, processes, model
    )
    if ever_trainable(applied.resolved):
        run.trained = processes.wrap(applied, model)
        run.optimizer = make_optimizer(config, applied)
        steps = settings.epochs * len(loader)
        run.scheduler = LinearLR(run.optimizer, start_factor=1, end_factor=0, total_iters=steps)
    if processes.rank:  # Dropout is drawn anew in each process.
        torch.manual_seed(settings.seed + processes.rank)
    return run


def totals_of(config: Config, rows: int) -> dict[str, int]:
    """Returns the length of the training, which moments in fractions depend on."""
    settings = config.training
    steps = math.ceil(rows / settings.batch_size)
    return {"steps_per_epoch": steps, "total_epochs": settings.epochs}


def load_plan(path: Path, model: nn.Module, totals: dict[str, int]) -> FreezePlan:
    """Returns the plan in a file, with the unused pooler frozen whatever the file says."""
    plan = FreezePlan.load(path)
    trained = ever_trainable(plan.resolve(model, **totals))
    if any(name.startswith("backbone.pooler.") for name in trained):
        print(f"{path.name} leaves backbone.pooler trainable; the model never uses it: frozen too")
        plan = plan.freeze("backbone.pooler")
    return plan


def ever_trainable(resolved: ResolvedPlan) -> frozenset[str]:
    """Returns the names of the parameters that train in some phase of the plan."""
    return frozenset().union(*(phase.trainable for phase in resolved.phases))


def make_optimizer(config: Config, applied: AppliedPlan) -> torch.optim.Optimizer:
    """Returns AdamW over all that ever trains, with one lr for the backbone and one for the heads.

    The groups are those of the whole plan, so no LR scheduler ever meets a new one. What the plan
    changes in the course of training (an lr, a warm-up) happens inside the attached optimizer.
    """
    settings, groups = config.optimizer, []
    rates = {"backbone": settings.lr, "cls_head": settings.head_lr, "sent_head": settings.head_lr}
    trained = ever_trainable(applied.resolved)
    for part, lr in rates.items():
        if any(name.startswith(f"{part}.") for name in trained):
            groups += applied.param_groups(part, lr=lr, weight_decay=settings.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    applied.attach(optimizer)
    return optimizer


def train_epoch(run: Run, epoch: int, description: str) -> dict[str, float]:
    """Trains one epoch on both tasks and returns the mean loss per task."""
    assert run.optimizer is not None
    assert run.scheduler is not None
    totals, rows = dict.fromkeys(TASKS, 0.0), 0
    run.model.train()
    batches = tqdm(run.train, description, leave=False, disable=run.processes.rank > 0)
    for step, batch in enumerate(batches, epoch * len(run.train)):
        input_ids, mask, *labels = (each.to(run.processes.device) for each in batch)
        run.applied.advance(epoch=epoch, step=step)
        losses = losses_of(run.trained(input_ids, mask), labels)
        run.optimizer.zero_grad()
        sum(losses).backward()
        run.optimizer.step()
        run.scheduler.step()
        for task, loss in zip(TASKS, losses, strict=True):
            totals[task] += loss.item() * len(mask)
        rows += len(mask)
    shares = run.processes.gather((totals, rows))
    count = sum(rows for _, rows in shares)
    return {task: sum(totals[task] for totals, _ in shares) / count for task in TASKS}


def losses_of(both: tuple[Tensor, ...], labels: Sequence[Tensor]) -> list[Tensor]:
    """Returns the mean loss of each task from its logits and labels."""
    return [nn.functional.cross_entropy(*each) for each in zip(both, labels, strict=True)]


def evaluate(run: Run) -> dict[str, dict[str, Any]]:
    """Returns per task the held-out loss, and the accuracy with its 95 % Wilson interval."""
    return score(run.model, run.test)


@torch.no_grad()
def score(
    model: MultiTaskMiniLM, test: DataLoader[tuple[Tensor, ...]]
) -> dict[str, dict[str, Any]]:
    """Returns per task the loss, and the accuracy with its 95 % Wilson interval."""
    outputs: list[list[Tensor]] = [[], []]
    device = model.cls_head.weight.device
    model.eval()
    for input_ids, mask, *_ in test:
        for logits, output in zip(
            model(input_ids.to(device), mask.to(device)), outputs, strict=True
        ):
            output.append(logits.cpu())
    scores = {}
    for task, output, labels in zip(TASKS, outputs, test.dataset.tensors[2:], strict=True):
        logits = torch.cat(output)
        correct = int((logits.argmax(dim=1) == labels).sum())
        scores[task] = {
            "loss": nn.functional.cross_entropy(logits, labels).item(),
            "accuracy": correct / len(labels),
            "wilson_95": wilson(correct, len(labels)),
        }
    return scores


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion, by default the 95 % one."""
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return (centre - spread) / scale, (centre + spread) / scale


def trainable(model: nn.Module) -> int:
    """Returns the number of parameters that train now."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def train(run: Run, progress: Progress) -> None:
    """Trains the epochs that are not done yet; after each prints how it went and saves progress."""
    for epoch in range(len(progress.epochs), run.config.training.epochs):
        start = time.perf_counter()
        losses = train_epoch(run, epoch, f"epoch {epoch}")
        seconds = time.perf_counter() - start
        scores = evaluate(run)
        count = trainable(run.model)
        progress.epochs.append(
            {
                "epoch": epoch,
                "seconds": seconds,
                "trainable": count,
                "train_loss": losses,
                "test": scores,
            }
        )
        progress.save()
        report = ", ".join(
            f"{task}: loss {losses[task]:.3f}, held-out accuracy {scores[task]['accuracy']:.3f}"
            for task in TASKS
        )
        print(f"epoch {epoch} ({seconds:.1f} s, {count:,} parameters train)  {report}", flush=True)


def progress_of(run: Run, file: Path) -> Progress:
    """Returns what a run saves in `file`, to be resumed from there."""
    settings = dataclasses.asdict(run.config) | {
        "weights": {"sha256": run.weights.sha256},
        "processes": {"count": run.processes.count},
    }
    parts = {"plan": run.applied, "model": run.model}
    if run.optimizer and run.scheduler:
        parts |= {"optimizer": run.optimizer, "scheduler": run.scheduler}
    generators = {"dropout": run.processes.generator(), "order": run.train.generator}
    return Progress(file, settings, parts, generators, processes=run.processes)


def show(resolved: ResolvedPlan, output: Path) -> list[str]:
    """Prints what the plan means and costs, draws it, and returns the names of the files made."""
    print(resolved.summary())
    print(resolved.cost("AdamW"))
    plot.save(plot.trainability(resolved), output / "trainability.png")
    resolved.save_html(output / "report.html")
    made = ["trainability.png", "report.html"]
    if len(resolved.phases) > 1:
        plot.save(plot.schedule(resolved), output / "schedule.png")
        made.append("schedule.png")
    return made


def execute(run: Run, output: Path, resume: bool = False) -> dict[str, Any]:
    """Trains and evaluates a run, writes pictures, metrics and checkpoint, returns the metrics.

    Args:
        run: the run, as `prepare` returned it.
        output: where results go.
        resume: go on from the progress that a stopped run left there.

    Raises:
        UserError: If there is no progress, or it is of a run with other settings.
        FreezekitError: If it is of another plan, or a frozen tensor changed.
    """
    resolved = run.applied.resolved
    print(run.weights)
    output.mkdir(parents=True, exist_ok=True)
    shown = show(resolved, output) if run.processes.rank == 0 else []

    progress = progress_of(run, output / "progress.pt")
    # The block begins before the resuming, with the weights that all training started from.
    with run.applied.guard():
        if resume:
            progress.load()
            print(f"resumed after epoch {len(progress.epochs) - 1}: {progress.file}")
        if run.optimizer:
            train(run, progress)
        else:
            print(NOTHING)
    scores = progress.epochs[-1]["test"] if progress.epochs else evaluate(run)
    print_scores(scores)
    frozen = len(resolved.rows) - len(ever_trainable(resolved))
    print(f"frozen tensors: all {frozen} are bit-identical to the start")

    metrics = {
        "config": dataclasses.asdict(run.config),
        "plan": run.plan.to_dict(),
        "weights": {"origin": run.weights.origin, "sha256": run.weights.sha256},
        "trainable": trainable(run.model),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "epochs": progress.epochs,
        "test": scores,
    }
    if run.processes.rank == 0:
        save(run, output, metrics)
        progress.file.unlink(missing_ok=True)
        print(f"saved: {', '.join(shown)}, metrics.json and checkpoint/ in {output}")
    return metrics


def save(run: Run, output: Path, metrics: dict[str, Any]) -> None:
    """Writes the metrics and a checkpoint."""
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    settings, plan = dataclasses.asdict(run.config), run.plan.to_dict()
    checkpoint = Checkpoint(run.model, run.tokenizer, run.topics, plan, settings)
    save_checkpoint(output / "checkpoint", checkpoint)


def print_scores(scores: dict[str, dict[str, Any]]) -> None:
    """Prints the accuracy of each task."""
    for task, each in scores.items():
        low, high = each["wilson_95"]
        interval = f"95 % Wilson interval {low:.3f} to {high:.3f}"
        print(f"{task}: held-out accuracy {each['accuracy']:.3f}, {interval}")


def find(path: Path) -> Path:
    """Returns `path` as seen from where the user stands, else from this script's folders."""
    for place in (path, HERE / path, HERE / "plans" / path):
        if place.exists():
            return place.resolve()
    raise UserError(f"{path} is neither in {Path.cwd()} nor in {HERE}")


def parse(arguments: list[str] | None, *, resumes: bool = False) -> argparse.Namespace:
    """Returns the command line, parsed; with `--resume` and `--cache` where the loop is our own."""
    parser = argparse.ArgumentParser(description="Trains MiniLM on two tasks under a freeze plan.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--mode", choices=CHOICES["freeze_mode"], help="instead of the config's")
    what.add_argument("--plan", type=Path, help="a freezekit plan file, instead of a mode")
    parser.add_argument("--epochs", type=int, help="instead of the config's")
    parser.add_argument("--config", type=Path, default=HERE / "config.yaml")
    parser.add_argument("--model", type=Path, help="a folder with weights, instead of the config's")
    parser.add_argument("--output", type=Path, default=HERE / "outputs")
    if resumes:
        parser.add_argument("--resume", action="store_true", help="go on with a stopped run")
        parser.add_argument("--cache", action="store_true", help="compute what is frozen only once")
    options = parser.parse_args(arguments)
    if options.epochs is not None and options.epochs < 1:
        parser.error(f"--epochs is {options.epochs}; expected at least 1")
    return options


def choose(options: argparse.Namespace) -> tuple[Config, Path]:
    """Returns the config with what the command line says instead, and the plan file."""
    config = load_config(find(options.config))
    mode = options.mode or config.training.freeze_mode
    epochs = options.epochs or config.training.epochs
    training = replace(config.training, freeze_mode=mode, epochs=epochs)
    name = str(find(options.model)) if options.model else config.model.name
    config = replace(config, model=replace(config.model, name=name), training=training)
    plan_file = find(options.plan) if options.plan else HERE / "plans" / f"{mode}.yaml"
    print(f"plan: {plan_file}")
    return config, plan_file


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    options = parse(arguments, resumes=True)
    try:
        with Processes.join() as processes:
            run = prepare(*choose(options), processes)
            cache = ActivationCache(run.applied) if options.cache and run.optimizer else None
            execute(run, HERE / options.output, options.resume)
            if cache:
                print(f"cache: {cache.stats()}")
    except (UserError, FreezekitError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
