"""The example's `--resume`, on a small model: what was stopped goes on as if it had not been."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import measure
import train
from checkpoint import Progress
from config import HERE, load_config
from weights import MINILM, find_weights

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.untraced]

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
EPOCHS = 4


class StoppedError(Exception):
    """Stands for whatever ends a run from outside."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with a BERT of six small layers, 60 sentences and their config."""
    folder = tmp_path_factory.mktemp("small")
    published = find_weights(MINILM).folder
    shutil.copy(published / "tokenizer.json", folder)
    shutil.copy(published / "tokenizer_config.json", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(num_hidden_layers=6, **SIZES)).save_pretrained(folder)
    for split, step in {"train": 8, "test": 24}.items():
        lines = (HERE / "data" / f"{split}.jsonl").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[::step]))
    (folder / "my.yaml").write_text(
        f"model: {{name: ./}}\ntraining: {{epochs: {EPOCHS}, batch_size: 8}}\n"
        "data: {train: train.jsonl, test: test.jsonl}"
    )
    return folder


def run(place: Path, plan: str, output: Path, *options: str) -> None:
    """Runs the command in this process."""
    train.main([*command(place, plan, output), *options])


def command(place: Path, plan: str, output: Path) -> list[str]:
    """Returns the arguments of a run."""
    plan_file = HERE / "plans" / f"{plan}.yaml"
    return ["--config", f"{place / 'my.yaml'}", "--plan", f"{plan_file}", "--output", f"{output}"]


def run_in_part(
    epochs: int,
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    plan: str,
    output: Path,
    *options: str,
) -> Path:
    """Runs the command until after `epochs` more it is stopped in the middle of the next.

    Returns:
        The file of progress that it leaves.
    """
    left, evaluate = iter(range(epochs)), train.evaluate

    def stopping(run: train.Run) -> dict[str, dict[str, Any]]:
        if next(left, None) is None:
            raise StoppedError
        return evaluate(run)

    with monkeypatch.context() as patched:
        patched.setattr(train, "evaluate", stopping)
        with pytest.raises(StoppedError):
            run(place, plan, output, *options)
    return output / "progress.pt"


def outcome(output: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Returns the weights and, without the seconds, the metrics that a complete run left."""
    metrics = json.loads((output / "metrics.json").read_text())
    epochs = [{key: each[key] for key in each if key != "seconds"} for each in metrics["epochs"]]
    return torch.load(output / "checkpoint" / "model.pt", weights_only=True)["state"], epochs


def assert_same(one: Path, other: Path) -> None:
    """Compares two complete runs, bit for bit."""
    (weights, epochs), (other_weights, other_epochs) = outcome(one), outcome(other)
    assert epochs == other_epochs
    assert weights.keys() == other_weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, other_weights[name]), name


@pytest.mark.parametrize("plan", ["gradual", "lp_ft"])
def test_a_run_stopped_in_every_epoch_ends_like_one_that_never_was(
    plan: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is stopped, a resumed run has the weights and metrics of an unbroken one."""
    run(place, plan, tmp_path / "unbroken")
    broken = tmp_path / "broken"
    run_in_part(1, monkeypatch, place, plan, broken)
    for _ in range(EPOCHS - 2):
        run_in_part(1, monkeypatch, place, plan, broken, "--resume")
    run(place, plan, broken, "--resume")
    assert_same(broken, tmp_path / "unbroken")
    assert not (broken / "progress.pt").exists()


def test_two_processes_train_as_one_does_and_resume_exactly(place: Path, tmp_path: Path) -> None:
    """Without dropout two processes end as one does; stopped and resumed, as if never stopped."""
    quiet = tmp_path / "quiet"
    shutil.copytree(place, quiet)
    settings = json.loads((quiet / "config.json").read_text())
    dropouts = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (quiet / "config.json").write_text(json.dumps(settings | dropouts))
    for how, output, *options in (
        ("run", "unbroken"),
        ("run_in_part", "broken"),
        ("run", "broken", "--resume"),
    ):
        arguments = [f"{quiet / 'my.yaml'}", "gradual.yaml", f"{tmp_path / output}", *options]
        run_ranks(f"example_in_ranks:{how}", *arguments, seconds=90)
    assert_same(tmp_path / "broken", tmp_path / "unbroken")
    run(quiet, "gradual", tmp_path / "alone")
    (weights, epochs), (alone, alone_epochs) = map(
        outcome, (tmp_path / "unbroken", tmp_path / "alone")
    )
    for name, tensor in alone.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    trained = [[each["trainable"] for each in course] for course in (epochs, alone_epochs)]
    assert trained[0] == trained[1]
    assert len(set(trained[0])) > 2


def test_a_killed_process_is_resumed(place: Path, tmp_path: Path) -> None:
    """A process killed without warning leaves what another one needs to end as it would have."""
    epochs = ["--epochs", "8"]  # most of them still to come when the second has been reported
    options = [*command(place, "gradual", tmp_path / "killed"), *epochs]
    process = subprocess.Popen(
        [sys.executable, str(HERE / "train.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process:
        seen = any(line.startswith("epoch 1 (") for line in process.stdout)
        process.kill()
    assert seen
    assert process.returncode == -signal.SIGKILL
    run(place, "gradual", tmp_path / "killed", *epochs, "--resume")
    run(place, "gradual", tmp_path / "unbroken", *epochs)
    assert_same(tmp_path / "killed", tmp_path / "unbroken")


def test_progress_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever dies in the middle of writing leaves the earlier file untouched."""
    progress = Progress(tmp_path / "progress.pt", {}, {}, {}, [{"epoch": 0}])
    progress.save()
    before = progress.file.read_bytes()

    def half(content: object, file: Path) -> None:
        file.write_bytes(before[: len(before) // 2])
        raise StoppedError

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(StoppedError):
        progress.save()
    assert progress.file.read_bytes() == before


def test_nothing_to_resume_is_told(place: Path, tmp_path: Path) -> None:
    """Without the file of a run that was stopped, `--resume` says which file that would be."""
    with pytest.raises(SystemExit) as caught:
        run(place, "backbone", tmp_path, "--resume")
    assert str(caught.value.code) == (
        f"error: nothing to resume: {tmp_path / 'progress.pt'} does not exist; a run leaves it "
        "from the end of its first epoch until it is complete"
    )


def test_what_does_not_belong_to_the_run_is_refused(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other settings and another plan are refused with what differs, and the file stays."""
    file = run_in_part(2, monkeypatch, place, "gradual", tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(place, "gradual", tmp_path, "--resume", "--epochs", "7")
    assert str(caught.value.code) == (
        f"error: cannot resume from {file}, it was saved with other settings: training.epochs was "
        "4 and is 7. Run with those, or without --resume to start anew"
    )
    with pytest.raises(SystemExit) as caught:
        run(place, "lp_ft", tmp_path, "--resume")
    assert str(caught.value.code).startswith(
        "error: the state was saved under another plan (saved -> now):\n"
    )
    assert re.search("backbone.encoder.layer.5|backbone.embeddings", str(caught.value.code))
    assert file.is_file()


def test_the_guard_spans_the_stop(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen tensor that changed before the stop is found after it."""
    file = run_in_part(2, monkeypatch, place, "gradual", tmp_path)
    content = torch.load(file)
    content["parts"]["model"]["backbone.embeddings.LayerNorm.bias"][3] += 1
    torch.save(content, file)
    with pytest.raises(SystemExit) as caught:
        run(place, "gradual", tmp_path, "--resume")
    message = "error: 1 frozen tensor changed:\n  'backbone.embeddings.LayerNorm.bias': "
    assert str(caught.value.code).startswith(message)


def test_a_changed_frozen_tensor_fails_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen tensor that changes in the course of training is an error that names it."""
    evaluate = train.evaluate

    def careless(run: train.Run) -> dict[str, dict[str, Any]]:
        run.model.backbone.pooler.dense.bias.data[0] += 1
        return evaluate(run)

    monkeypatch.setattr(train, "evaluate", careless)
    with pytest.raises(SystemExit) as caught:
        run(place, "lp_ft", tmp_path)
    message = "error: 1 frozen tensor changed:\n  'backbone.pooler.dense.bias': "
    assert str(caught.value.code).startswith(message)


def test_measured_side_by_side_runs_end_as_they_do_alone(place: Path, tmp_path: Path) -> None:
    """Plans that `measure.py` trains in turn end with the weights that `train.py` ends with."""
    config = load_config(place / "my.yaml")
    config = replace(config, training=replace(config.training, epochs=2))
    runs, states = measure.prepare_all(config, ["gradual", "full"])
    seconds = measure.train_in_turn(runs, states, 2, "")
    assert [sorted(each) for each in seconds] == [["full", "gradual"]] * 2
    for name, each in runs.items():
        run(place, name, tmp_path, "--epochs", "2")
        weights, _ = outcome(tmp_path)
        for key, tensor in each.model.state_dict().items():
            assert torch.equal(tensor, weights[key]), (name, key)


def test_the_time_is_that_of_the_whole_training() -> None:
    """An epoch counts with its median over the seeds, and each epoch counts alike."""
    assert measure.time_ratio([0.25, 1.0, 0.75, 1.25, 0.5, 9.0], epochs=2) == (0.5 + 1.25) / 2
