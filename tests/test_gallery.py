"""The gallery of examples: each runs anywhere, shows what it says, and stands on its page."""

import re
import runpy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from freezekit import cli, diagnose

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT / "examples" / "gallery"
PAGE = (ROOT / "docs" / "examples.md").read_text()
ENTRY = re.compile(
    r"^```\{literalinclude\} \.\./examples/gallery/(\w+)\.py$.*?^```text\n(.*?)^```$", re.M | re.S
)
SHOWN = dict(ENTRY.findall(PAGE))

pytestmark = pytest.mark.usefixtures("one_thread")
Run = Callable[..., SimpleNamespace]
MEASURED = r"\d+\.\d\d s|\d+ times"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs an example from an empty folder, which it leaves empty, and compares what it prints.

    The page shows all of its output, or a part of it. What is `measured` may differ.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run_one(name: str, measured: str = r"$^") -> SimpleNamespace:
        capfd.readouterr()
        path = str(GALLERY / f"{name}.py")
        if name == "with_ddp":  # its processes end with it if it takes too long
            subprocess.run([sys.executable, path], check=True, timeout=150)
            values = {}
        else:
            values = runpy.run_path(path, run_name="__main__")
        printed = capfd.readouterr().out
        shown, masked = (re.sub(measured, "#", text) for text in (SHOWN[name], printed))
        assert shown in masked
        return SimpleNamespace(**values | {"printed": printed})

    yield run_one
    assert list(tmp_path.iterdir()) == []


def percentages(printed: str) -> list[int]:
    """Returns the percentages in a text."""
    return [int(number) for number in re.findall(r"(\d+)%", printed)]


def test_each_file_has_a_test_and_an_entry_on_the_page() -> None:
    """What is added to the gallery is run here and shown on the page, in its own words."""
    files = {path.stem for path in GALLERY.glob("*.py")}
    assert set(re.findall(r'\brun\("(\w+)"', Path(__file__).read_text())) == files
    assert set(SHOWN) == files
    assert {path.name for path in GALLERY.iterdir() if path.is_file()} == {
        "plan.yaml",
        *(f"{name}.py" for name in files),
    }


def test_quickstart_trains_what_is_open_and_nothing_else(run: Run) -> None:
    """Only the last two layers and the head have gradients and optimizer state."""
    ran = run("quickstart")
    opened = ("backbone.layers.4.", "backbone.layers.5.", "cls_head.")
    moved = {name for name, each in ran.model.named_parameters() if each.grad is not None}
    assert moved == {name for name in dict(ran.model.named_parameters()) if name.startswith(opened)}
    assert len(ran.optimizer.state) == len(moved)


def test_a_plan_keeps_the_statistics_that_are_lost_by_hand(run: Run) -> None:
    """The old head sees what it saw before under a plan, and something else without one."""
    ran = run("vision_batchnorm", measured=r"\d+%")
    before, by_hand, planned = percentages(ran.printed)
    assert before == planned > 90 > 75 > by_hand
    assert ran.printed.count("by hand same: False, plan: True") == 6
    after = ran.planned[0].state_dict()
    assert all(torch.equal(each, after[name]) for name, each in ran.backbone.state_dict().items())


def test_layer_decay_gives_each_layer_less_than_the_one_above(run: Run) -> None:
    """The optimizer has the rates that are printed, and the loss falls."""
    ran = run("language_model_layer_decay", measured=r"loss \d+\.\d+")
    rates = sorted({group["lr"] for group in ran.optimizer.param_groups}, reverse=True)
    assert rates == pytest.approx([0.01 * 0.8**index for index in range(6)])
    losses = [float(text) for text in re.findall(r"loss (\d+\.\d+)", ran.printed)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] / 3


def test_trainer_opens_a_layer_in_each_epoch(run: Run) -> None:
    """The rates that Trainer used are those of the plan, and the embeddings have none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Trainer, about its own settings
        ran = run("with_trainer")
    frozen = ran.freeze.applied.phase.frozen
    assert {name.split(".")[1] for name in frozen} == {"embeddings", "pooler"}
    assert all(ran.model.get_parameter(name).grad is None for name in frozen)
    logs = ran.trainer.state.log_history[:-1]
    assert [sum(log[f"lr/{name}"] > 0 for name in ran.layers) for log in logs] == [0, 1, 2, 3]


def test_lightning_opens_the_body_after_the_head(run: Run) -> None:
    """The rates are printed from inside the training step; afterwards the model is as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning, about its own settings
        ran = run("with_lightning")
    assert re.findall(r"'body.0-1': ([\d.]+)", ran.printed) == ["0.0", "0.0", "0.001", "0.001"]
    model = ran.trainer.lightning_module
    assert all(each.requires_grad for each in model.parameters())
    assert model.body[1].num_batches_tracked == 8  # of sixteen steps, those with an open body


def test_ranks_agree_after_an_unfreeze(run: Run) -> None:
    """What opens after DDP was built drifts apart by hand, and is averaged under a plan."""
    printed = run("with_ddp").printed
    assert printed.count("the ranks agree on the layer: False") == 1
    assert printed.endswith("with_a_plan: the ranks agree on the layer: True\n")


def test_the_cache_computes_each_row_once_and_changes_nothing(run: Run) -> None:
    """Three of four epochs are read, and the head ends the same."""
    ran = run("cached", measured=MEASURED)
    assert (ran.stats.misses, ran.stats.hits) == (128, 3 * 128)
    assert "same head in the end: True" in ran.printed


@pytest.mark.timing
def test_the_cache_takes_less_time(run: Run) -> None:
    """The three epochs that are read take less than the three that are computed."""
    ran = run("cached", measured=MEASURED)
    assert sum(ran.after[1:]) < sum(ran.before[1:])


def test_scores_name_the_layer_that_a_shift_concerns(run: Run) -> None:
    """Other images ask for the first layer, other labels for the head, and either is enough."""
    ran = run("surgical", measured=r"'\w+': \d+\.\d| *\d+%")
    plans = re.findall(r"with (.*)", ran.printed)
    assert plans[::2] == [f"FreezePlan().freeze('**').unfreeze('{name}')" for name in "05"]
    before, after = percentages(ran.printed)[::2], percentages(ran.printed)[1::2]
    assert max(before) < 50 < 90 < min(after)


def test_only_the_rows_of_new_tokens_change(run: Run) -> None:
    """Tied or not, both tensors differ from the start in the last two rows alone."""
    printed = run("new_token_rows").printed
    assert printed.count("rows [100, 101] of 102 changed") == 4
    assert printed.count("diagnosis: nothing found") == 2


def test_a_resumed_run_ends_like_one_that_was_not_stopped(run: Run) -> None:
    """Weights, moments and learning rates are equal to the last bit."""
    ran = run("gradual_with_resume")
    assert "same weights to the last bit: True" in ran.printed
    one, other = (parts["optimizer"] for parts in (ran.whole, ran.resumed))
    assert all(
        torch.equal(value, other.state[twin][key])
        for (_, state), twin in zip(one.state.items(), other.state, strict=True)
        for key, value in state.items()
    )
    assert [group["lr"] for group in one.param_groups] == [
        group["lr"] for group in other.param_groups
    ]
    assert not diagnose(ran.resumed["plan"], ran.resumed["scheduler"])


def test_the_plan_in_the_file_is_what_the_command_line_shows(
    run: Run, tmp_path_factory: pytest.TempPathFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    """`freezekit show` prints the same summary for a directory with the config."""
    ran = run("plan_from_file")
    folder = tmp_path_factory.mktemp("bert")
    ran.BertConfig(architectures=["BertForSequenceClassification"]).save_pretrained(folder)
    options = ["--plan", str(GALLERY / "plan.yaml"), "--at-epoch", "1", "--depth", "2"]
    assert cli.main(["show", str(folder), *options]) == 0
    shown = capfd.readouterr().out
    assert "phase: 2 of 2 (from epoch 1)" in shown
    assert shown.strip() in ran.printed
