"""Measures what the cache saves: `python -m tests.benchmarks.cache_runs` writes cache.json.

Every way to train steps through the same batches, one batch each in turn, in one process and one
thread; what is compared is processor time, and of each pair of ways the median over rounds. A warm
epoch of the heads takes milliseconds: it runs in one go, as it would.
"""

import argparse
import ctypes
import gc
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from freezekit import FreezePlan
from freezekit.cache import ActivationCache

from .minilm import (
    BATCH,
    EPOCHS,
    FULL,
    HEADS,
    OWN_BATCH,
    Batch,
    Runner,
    Task,
    by_flags,
    by_hand,
    by_plan,
    gradual,
    load_task,
    top,
)

RESULTS = Path(__file__).with_name("cache.json")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
HEAD = ("what", "goal", "by hand", "limit", "measured")
TOPS = (1, 2, 3)
GRADUAL = 96
Show = Callable[[str], None]


class Row(NamedTuple):
    """A line of the table: what was measured, the goal, by hand, the limit, and the outcome."""

    what: str
    goal: str
    by_hand: str
    limit: str
    measured: str


def seconds(work: Callable[[], object]) -> float:
    """Returns the processor time of some work."""
    start = process_time()
    work()
    return process_time() - start


def _epoch(runner: Runner, batches: Iterable[Batch]) -> None:
    for batch in batches:
        runner.step(batch)


def _tokens(batches: Iterable[Batch]) -> int:
    return sum(batch.mask.numel() for batch in batches)


class Side:
    """Ways to train, side by side: their processor time, batch by batch and round by round."""

    def __init__(self, show: Show = lambda text: None) -> None:
        self.rounds: list[dict[str, float]] = []
        self._show = show

    def turn(self, runners: dict[str, Runner], batches: Sequence[Batch]) -> None:
        """Goes over an epoch with all runs, each batch with all of them before the next."""
        spent = dict.fromkeys(runners, 0.0)
        names = [*runners]
        for number, batch in enumerate(batches):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                runner = runners[name]
                runner.draws()
                spent[name] += seconds(partial(runner.step, batch))
                runner.rests()
            self._show("batch")
        self.rounds.append(spent)

    def scale(self, factor: float) -> None:
        """Corrects what was measured in this round, on a part of an epoch only."""
        self.rounds[-1] = {name: factor * value for name, value in self.rounds[-1].items()}

    def note(self, name: str, value: float) -> None:
        """Adds what else was measured in this round."""
        self.rounds[-1][name] = value

    def ratio(self, one: str, other: str) -> float:
        """Returns how long one takes beside another: the median of the rounds."""
        return median(each[one] / each[other] for each in self.rounds if one in each)

    def times_faster(self, epochs: int, base: str) -> float:
        """Returns how much faster so many cached epochs are, with the filling before them."""
        return median(
            epochs * each[base] / (each["fill"] + epochs * each["cached"]) for each in self.rounds
        )


def in_one_go(runners: dict[str, Runner], batches: Sequence[Batch], turns: int) -> dict[str, float]:
    """Returns the median processor time of an epoch that takes milliseconds only."""
    spent: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(turns):
        for name, runner in runners.items():
            spent[name].append(seconds(partial(_epoch, runner, batches)))
    return {name: median(found) for name, found in spent.items()}


def heads_only(
    task: Task,
    rounds: int,
    show: Show = lambda text: None,
    *,
    size: int = BATCH,
    ways: Sequence[str] = ("full", "full, fused", "flags", "frozen"),
    most: int | None = None,
) -> Side:
    """Returns what training the heads costs, beside all of the model, in every way.

    Args:
        task: what is trained.
        rounds: how often to measure.
        show: is told of each batch.
        size: rows of a batch.
        ways: what is measured beside the cached epochs and those by hand.
        most: only so many batches are trained in these ways; all of them if None. What they take
            then is scaled to an epoch by the tokens in the batches, padding included.
    """
    known = {
        "full": lambda: by_plan(task, FULL),
        "full, fused": lambda: by_plan(task, FULL, fused=True),
        "flags": lambda: by_flags(task),
        "frozen": lambda: by_plan(task, HEADS),
    }
    runners = {way: known[way]() for way in ways}
    side, order = Side(show), torch.Generator().manual_seed(0)
    hand = by_hand(task, 0)
    for _ in range(rounds):
        batches = task.data.epoch(order, size)
        side.turn(runners, batches[:most])
        side.scale(_tokens(batches) / _tokens(batches[:most]))
        filled = by_plan(task, HEADS, cached=True)
        side.note("fill", seconds(partial(filled.warm, batches)))
        again = task.data.epoch(order, size)
        filled.step(again[0])
        found = in_one_go({"cached": filled, "by hand": hand}, again, 5)
        for name, value in found.items():
            side.note(name, value)
        assert filled.cache is not None
        stats = filled.cache.stats()
        assert stats.misses == len(task.data.tokens)
        filled.cache.close()
    return side


def top_layers(
    task: Task, layers: int, rounds: int, show: Show = lambda text: None, *, full: bool = True
) -> Side:
    """Returns what training the last layers costs: plain, cached, and cached by hand."""
    runners = {
        "plain": by_plan(task, top(layers)),
        "cached": by_plan(task, top(layers), cached=True),
        "by hand": by_hand(task, layers),
    }
    if full:
        runners["full"] = by_plan(task, FULL)
    side, order = Side(show), torch.Generator().manual_seed(0)
    batches = task.data.epoch(order)
    runners["cached"].warm(batches)
    for runner in runners.values():
        runner.step(batches[0])
    for _ in range(rounds):
        side.turn(runners, task.data.epoch(order))
    cache = runners["cached"].cache
    assert cache is not None
    assert cache.stats().misses == len(task.data.tokens)
    cache.close()
    return side


class Gradual(NamedTuple):
    """What 12 epochs of gradual unfreezing cost, with all filling, and how far losses differ."""

    seconds: dict[str, float]
    difference: float


def gradual_unfreezing(
    task: Task,
    show: Show = lambda text: None,
    *,
    ways: Sequence[str] = ("full", "plain", "warmed", "cached"),
    full_every: int = 1,
) -> Gradual:
    """Returns the cost of gradual unfreezing.

    Full fine-tuning may go over one batch in a few only; what it takes is scaled by the tokens in
    the batches. All runs draw the same random numbers in the layers that train, whose dropout is
    on.
    """
    cached = ("warmed", "cached")
    runners = {
        way: by_plan(task, FULL if way == "full" else gradual(), cached=way in cached)
        for way in ways
    }
    order = torch.Generator().manual_seed(1)
    spent = dict.fromkeys(runners, 0.0)
    losses: dict[str, list[float]] = {name: [] for name in runners}
    whole = some = 0
    spent["warmed"] += seconds(partial(runners["warmed"].warm, task.data.epoch(order)))
    for epoch in range(EPOCHS):
        for name, runner in runners.items():
            spent[name] += seconds(partial(runner.begin, epoch))
        for number, batch in enumerate(task.data.epoch(order)):
            due = (epoch + number) % full_every == 0
            whole += batch.mask.numel()
            some += due * batch.mask.numel()
            for name, runner in runners.items():
                if name != "full" or due:
                    runner.draws()
                    start = process_time()
                    losses[name].append(runner.step(batch))
                    spent[name] += process_time() - start
                    runner.rests()
            show("batch")
    if "full" in spent:
        spent["full"] *= whole / some
    plain = torch.tensor(losses.get("plain", []), dtype=torch.float64)
    difference = 0.0
    for name, runner in runners.items():
        if runner.cache is not None:
            runner.cache.close()
        if runner.cache is not None and len(plain):
            found = torch.tensor(losses[name], dtype=torch.float64)
            difference = max(difference, float((found - plain).abs().max()))
    return Gradual(spent, difference)


def peak(kind: str, count: int) -> float:
    """Returns by how many MiB memory peaks over that of the loaded model, in a fresh process.

    Args:
        kind: "full", "frozen", "filled": cached, with the filling in that process, or "cached":
            answered from what another process has stored.
        count: sentences.
    """
    package = __package__ or ""
    command = [sys.executable, "-m", f"{package}.cache_runs", "--sentences", str(count)]
    folder = Path(__file__).resolve().parents[len(package.split("."))]
    with tempfile.TemporaryDirectory() as store:
        for each in ("filled", "cached") if kind == "cached" else (kind,):
            options = ["--store", store, "--peak", each]
            run = subprocess.run(
                [*command, *options], cwd=folder, check=True, capture_output=True, text=True
            )
    return float(run.stdout.splitlines()[-1])


def _peak_here(kind: str, count: int, store: str) -> float:
    """Trains two epochs, and returns by how many MiB memory peaked over that of the loaded model.

    Before, all weights are read, whose file is mapped, one sentence goes forward and backward, and
    a small model trains with a cache, which loads the code that does it. The system then forgets
    the peak.
    """
    _load_code()
    task = load_task(count)
    for parameter in task.model.parameters():
        parameter.detach().sum()
    first = task.data.batch(torch.tensor([0]))
    output = task.model(first.input_ids, first.mask)[0].sum()
    torch.autograd.grad(output, [*task.model.parameters()], allow_unused=True)
    order = torch.Generator().manual_seed(0)
    batches = [*task.data.epoch(order), *task.data.epoch(order)]
    runner = by_plan(task, FULL if kind == "full" else HEADS, copies=False)
    before = _forget_peak()
    if kind in ("cached", "filled"):
        runner.answer_from_cache(store)
    if kind == "filled":
        runner.warm(batches[: len(batches) // 2])
    for batch in batches:
        runner.step(batch)
    if runner.cache is not None:
        assert runner.cache.stats().misses == (count if kind == "filled" else 0)
        runner.cache.close()
    return _status("VmHWM") - before


def _load_code() -> None:
    """Trains a small model from a cache in a folder."""
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    applied = FreezePlan().freeze("[0]").apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-4)
    inputs = torch.randn(8, 4)
    with tempfile.TemporaryDirectory() as folder, ActivationCache(applied, folder=folder):
        for _ in range(2):
            nn.functional.cross_entropy(model(inputs), torch.zeros(8).long()).backward()
            optimizer.step()


def _forget_peak() -> float:
    """Returns the memory of this process in MiB, from where its peak counts from now on."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    """Returns what the system says of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measured(sentences: int, rounds: int, show: Show) -> dict[str, Any]:
    """Returns all ratios, as measured with so many sentences in so many rounds."""
    task = load_task(sentences)
    heads = heads_only(task, rounds, show)
    found: dict[str, Any] = {
        name: heads.ratio(name, "full")
        for name in ("full, fused", "flags", "frozen", "fill", "cached", "by hand")
    }
    found["cached / fused"] = heads.ratio("cached", "full, fused")
    found["fill / frozen"] = heads.ratio("fill", "frozen")
    found["cached / by hand"] = heads.ratio("cached", "by hand")
    for base in ("full", "full, fused", "flags", "frozen"):
        found[f"10 epochs / {base}"] = heads.times_faster(10, base)
    own = heads_only(task, rounds, show, size=OWN_BATCH, ways=("full", "full, fused"), most=2)
    for base in ("full", "full, fused"):
        found[f"own: cached / {base}"] = own.ratio("cached", base)
    found["own: by hand / full"] = own.ratio("by hand", "full")
    for layers in TOPS:
        side = top_layers(task, layers, rounds, show)
        for one, other in (
            ("plain", "full"), ("cached", "full"), ("cached", "plain"), ("cached", "by hand"),
        ):  # fmt: skip
            found[f"top {layers}: {one} / {other}"] = side.ratio(one, other)
    task = load_task(GRADUAL)
    gradual = gradual_unfreezing(task, show)
    for name in ("plain", "cached", "warmed"):
        found[f"gradual: {name}"] = gradual.seconds[name] / gradual.seconds["full"]
    found["gradual: warmed / plain"] = gradual.seconds["warmed"] / gradual.seconds["plain"]
    found["gradual: difference"] = gradual.difference
    most = peak("full", sentences)
    for kind in ("frozen", "cached", "filled"):
        found[f"peak: {kind}"] = peak(kind, sentences) / most
        show("batch")
    return found


def table(found: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table: what was to be shown, and what was measured."""

    def number(name: str, digits: int = 3) -> str:
        return f"{found[name]:.{digits}f}"

    def each(text: str) -> str:
        return " / ".join(number(f"top {layers}: {text}", 2) for layers in TOPS)

    def faster(base: str) -> str:
        return f"{found[f'10 epochs / {base}']:.0f}x"

    return [
        Row(f"epoch of the heads in the example's batches of {OWN_BATCH}, cached and warm / full",
            "≤ 0.001", "", "",
            f"{number('own: cached / full', 5)} (by hand {number('own: by hand / full', 5)})"),
        Row("the same / full with fused AdamW", "", "", "", number("own: cached / full, fused", 5)),
        Row(f"the same in batches of {BATCH}, as in all lines below / full", "",
            "0.0005-0.0008", "0.0005",
            f"{number('cached', 5)} (by hand {number('by hand', 5)})"),
        Row("the same / full with fused AdamW", "", "", "", number("cached / fused", 5)),
        Row("10 epochs of the heads with the fill / full", "≥ 80x", "89x", "113x", faster("full")),
        Row("the same / full with fused AdamW", "", "", "", faster("full, fused")),
        Row("the same / frozen by `requires_grad` alone", "≥ 30x", "35x", "44x", faster("flags")),
        Row("the same / frozen and in eval", "", "21x", "26x", faster("frozen")),
        Row("fill, sorted by length / one epoch frozen and in eval", "≤ 0.50", "0.45", "0.35",
            number("fill / frozen")),
        Row("top 1 / 2 / 3 layers: cached / uncached", "≤ 0.43 / 0.66 / 0.82",
            "0.41 / 0.64 / 0.79", "0.36 / 0.60 / 0.75", each("cached / plain")),
        Row("top 1 / 2 / 3 layers: cached / cached by hand, of a step", "≤ 1.03", "1.006", "1.00",
            " / ".join(number(f"top {layers}: cached / by hand") for layers in TOPS)),
        Row("12 epochs of gradual unfreezing, warmed / full", "≤ 0.25", "0.233", "0.220",
            number("gradual: warmed")),
        Row("the same, largest difference of a loss to uncached", "≤ 1e-6", "2e-8", "0",
            f"{found['gradual: difference']:.0e}"),
        Row("peak memory over the loaded model, heads cached / full", "≤ 0.01", "0.003", "",
            number("peak: cached", 4)),
        Row("frozen by `requires_grad` alone / full", "", "0.374", "0.333", number("flags")),
        Row("frozen and in eval / full", "", "0.261", "0.323", number("frozen")),
        Row("full with fused AdamW / full", "", "0.93", "", number("full, fused")),
        Row("top 1 / 2 / 3 layers, uncached / full", "", "0.36 / 0.47 / 0.58",
            "0.42 / 0.54 / 0.65", each("plain / full")),
        Row("top 1 / 2 / 3 layers, cached / full", "", "0.14 / 0.29 / 0.44", "0.15 / 0.32 / 0.49",
            each("cached / full")),
        Row("12 epochs of gradual unfreezing, plain / full", "", "0.407", "",
            number("gradual: plain")),
        Row("the same, cached, filled on the way / full", "", "", "", number("gradual: cached")),
        Row("peak memory over the loaded model, frozen and in eval / full", "", "0.053", "",
            number("peak: frozen")),
        Row("the same, heads cached, while filling / full", "", "", "", number("peak: filled")),
    ]  # fmt: skip


def markdown(rows: Iterable[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """Returns the lines as a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def publish(name: str, rows: Iterable[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """Writes a table to its place in the page, and returns it."""
    text, made = PAGE.read_text(encoding="utf-8"), markdown(rows, head)
    before, rest = text.split(f"<!-- {name}: begin -->\n")
    _, after = rest.split(f"<!-- {name}: end -->\n")
    parts = (before, f"<!-- {name}: begin -->\n", made, f"\n<!-- {name}: end -->\n", after)
    PAGE.write_text("".join(parts), encoding="utf-8")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Measures what the activation cache saves.")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--peak", help="only measures the memory of one way to train")
    parser.add_argument("--store", default="", help="a folder, for --peak")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.peak:
        print(_peak_here(options.peak, options.sentences, options.store))
        return
    steps = math.ceil(options.sentences / BATCH)
    total = options.rounds * ((1 + len(TOPS)) * steps + 2) + EPOCHS * math.ceil(GRADUAL / BATCH) + 3
    with tqdm(total=total, unit="batch") as bar:
        found = measured(options.sentences, options.rounds, lambda _: bar.update())
    settings = {
        "torch": torch.__version__, "sentences": options.sentences, "rounds": options.rounds,
        "threads": 1,
    }  # fmt: skip
    text = json.dumps({**settings, "found": found}, indent=2)
    options.output.write_text(text + "\n", encoding="utf-8")
    print(publish("cache", table(found)) if options.output == RESULTS else markdown(table(found)))


if __name__ == "__main__":
    main()
