"""Measures peers beside plans: `python -m tests.benchmarks.peer_runs` writes peers.json.

Both sides do the same job, and where they train, the run asserts that they end with the same losses
or the same weights. In one process and one thread, call by call or batch by batch in turn; what is
compared is processor time, and of it the median over rounds.
"""

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from .peers_timing import Show

RESULTS = Path(__file__).with_name("peers.json")
TESTS = Path(__file__).resolve().parents[1]
PEERS = ("timm", "torchvision", "skorch", "finetuning-scheduler", "lightning")
WITHOUT_NEEDS = ("timm", "torchvision")
HEAD = ("what both do", "beside", "freezekit / peer", "the same, fused AdamW")


class Row(NamedTuple):
    """A line of the table."""

    what: str
    peer: str
    ratio: str
    fused: str = ""


def versions() -> dict[str, str]:
    """Returns the versions of all peers; ends the program where one is not installed."""
    found, missing = {}, []
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        install = "python -m pip install -c constraints.txt"
        plain = " ".join(name for name in missing if name not in WITHOUT_NEEDS)
        alone = " ".join(name for name in missing if name in WITHOUT_NEEDS)
        commands = [f"{install} {plain}"] * bool(plain) + [f"{install} --no-deps {alone}"] * bool(
            alone
        )
        raise SystemExit(
            f"peer_runs: not installed here: {', '.join(missing)}; in an environment of its own: "
            f"{' && '.join(commands)}"
        )
    return found


def measured(rounds: int, show: Show) -> dict[str, Any]:
    """Returns all ratios."""
    from . import peers_lightning, peers_setup, peers_skorch  # they import transformers

    return {
        "setup": peers_setup.measured(show),
        "skorch": peers_skorch.measured(show),
        "lightning": peers_lightning.measured(rounds, show),
    }


def units(rounds: int) -> int:
    """Returns how often `show` is called."""
    from . import peers_lightning, peers_setup, peers_skorch

    return peers_setup.units() + peers_skorch.units() + peers_lightning.units(rounds)


def table(found: dict[str, Any]) -> list[Row]:
    """Returns the lines of the table."""

    def row(what: str, peer: str, part: str, name: str) -> Row:
        fused = found[part].get(f"{name}, fused")
        return Row(what, peer, _short(found[part][name]), "" if fused is None else _short(fused))

    scheduler, backbone = "finetuning-scheduler", "`BackboneFinetuning`"
    rows = [
        ("a step at the rates of layer decay, ViT", "timm", "setup", "step / timm"),
        ("a step with 10 of 12 blocks frozen, ViT", "by hand", "setup", "step / hand"),
    ]
    for case, model in (("ViT", "ViT, 152 parameters"), ("tree", "20,002 parameters")):
        rows += [
            (f"freezing by name, {model}", "timm", "setup", f"{case}: freeze / timm"),
            ("the same", "by hand", "setup", f"{case}: freeze / hand"),
            ("opening it again later", "timm", "setup", f"{case}: open / timm"),
            ("groups with layer decay", "timm", "setup", f"{case}: groups / timm"),
            ("the same", "by hand", "setup", f"{case}: groups / hand"),
            ("AdamW over these groups", "timm", "setup", f"{case}: optimizer / timm"),
        ]
    for case, model in (("small", "transformer, 50 parameters"), ("tree", "20,002 parameters")):
        rows += [
            (f"an epoch begins, nothing due, {model}", "skorch", "skorch", f"{case}: nothing due"),
            ("opening and freezing again", "skorch", "skorch", f"{case}: due"),
        ]
    rows += [
        ("an epoch of the transformer, its body frozen, all dropout on", "skorch", "skorch",
         "epoch: plan, train"),
        ("the same, what is frozen in eval with freezekit", "skorch", "skorch", "epoch: plan"),
        ("a fit in three phases, MiniLM, all dropout on", scheduler, "lightning",
         "scheduler: plan, train"),
        ("the same, what is frozen in eval with freezekit", scheduler, "lightning",
         "scheduler: plan"),
        ("the same, and an `ActivationCache`, filled on the way", scheduler, "lightning",
         "scheduler: cached"),
        ("a phase begins", scheduler, "lightning", "scheduler: due"),
        ("an epoch begins, nothing due", scheduler, "lightning", "scheduler: nothing due"),
        ("a fit that opens the backbone, MiniLM, all dropout on", backbone, "lightning",
         "backbone: plan, train"),
        ("the same, what is frozen in eval with freezekit", backbone, "lightning",
         "backbone: plan"),
        ("the backbone opens", backbone, "lightning", "backbone: due"),
        ("an epoch begins, nothing due", backbone, "lightning", "backbone: nothing due"),
    ]  # fmt: skip
    return [row(*each) for each in rows]


def _short(value: float) -> str:
    return f"{value:.2f}" if value >= 0.05 else f"{value:.2g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Measures peers beside plans.")
    parser.add_argument("--rounds", type=int, default=3, help="of the fits (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    peers = versions()
    torch.set_num_threads(1)
    sys.path.insert(0, str(TESTS))
    from vision import load_torchvision

    load_torchvision()
    import finetuning_scheduler  # noqa: F401
    import skorch  # noqa: F401
    import timm.optim  # noqa: F401

    from .cache_runs import markdown, publish

    gc.freeze()  # what was imported, so that to collect garbage before a call is cheap
    with tqdm(total=units(options.rounds), unit="round") as bar:
        found = measured(options.rounds, lambda _: bar.update())
    settings = {
        "torch": torch.__version__, "peers": peers, "rounds": options.rounds, "threads": 1,
    }  # fmt: skip
    text = json.dumps({**settings, "found": found}, indent=2)
    options.output.write_text(text + "\n", encoding="utf-8")
    rows = table(found)
    print(publish("peers", rows, HEAD) if options.output == RESULTS else markdown(rows, HEAD))


if __name__ == "__main__":
    main()
