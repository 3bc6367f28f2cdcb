"""The example's training in the Trainer of transformers and in Lightning, on a small model."""

import sys
import warnings
from pathlib import Path

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("lightning")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import train_with_lightning
import train_with_trainer
from test_example_resume import EPOCHS, command, place, run

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.untraced]
__all__ = ["place"]


@pytest.mark.parametrize("engine", [train_with_trainer, train_with_lightning])
def test_an_engine_trains_what_the_plain_loop_trains(
    engine: object,
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under gradual unfreezing each parameter opens at the same step, and what is frozen stays."""
    course: list[tuple[int, int]] = []
    step = torch.optim.AdamW.step

    def noting(self: torch.optim.Optimizer, *arguments: object, **options: object) -> object:
        parameters = [each for group in self.param_groups for each in group["params"]]
        if len(parameters) > 1:  # `cost` steps single tensors to see what they need.
            course.append((len(parameters), sum(each.requires_grad for each in parameters)))
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    run(place, "gradual", tmp_path / "plain")
    plain, course[:] = list(course), []
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of both engines, about their own settings
        engine.main(command(place, "gradual", tmp_path / "engine"))
    assert course == plain
    assert len(set(course)) > EPOCHS
    printed = capsys.readouterr().out
    assert "topic: held-out accuracy 0." in printed
    assert "sentiment: held-out accuracy " in printed


@pytest.mark.parametrize("engine", [train_with_trainer, train_with_lightning])
def test_an_engine_does_not_pass_over_resume(
    engine: object, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only `train.py` resumes; elsewhere the option would start anew without a word."""
    with pytest.raises(SystemExit):
        engine.main([*command(place, "gradual", tmp_path), "--resume"])
    assert "unrecognized arguments: --resume" in capsys.readouterr().err
