"""Accelerate: `prepare` under a plan, two ranks, checkpoints, accumulation, mixed precision."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import (
    EPOCHS,
    LR,
    PLAN,
    WEIGHT_DECAY,
    Net,
    Step,
    batches,
    check_same_course,
    decay,
    furthest,
    plain,
    seen,
)
from ranks import run_ranks

from freezekit import FreezekitError, FreezePlan

pytest.importorskip("accelerate")

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs

from freezekit.integrations.accelerate import prepare


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Accelerate keeps its state in classes: none is left for the next test."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    PartialState._reset_state()


class Run:
    """A training with Accelerate, as far as it has come."""

    def __init__(self, **options: object) -> None:
        """Builds all that a script builds."""
        options = {"dataloader_config": DataLoaderConfiguration(split_batches=True)} | options
        self.accelerator = Accelerator(cpu=True, **options)
        self.bare = Net()
        self.applied = PLAN.apply(self.bare)
        self.own = self.applied.optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
        scheduler = torch.optim.lr_scheduler.LambdaLR(self.own, decay)
        self.model, self.optimizer, self.scheduler = prepare(
            self.accelerator, self.applied, self.bare, self.own, scheduler
        )

    def train(self, epochs: range) -> list[Step]:
        """Trains some epochs in the loop of Accelerate's documentation."""
        steps = []
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        with self.applied.guard():
            for epoch in epochs:
                self.applied.advance(epoch=epoch)
                for batch in batches(rank, ranks):
                    with self.accelerator.accumulate(self.model):
                        self.accelerator.backward(self.model(**batch)["loss"])
                        self.optimizer.step()
                        if self.accelerator.sync_gradients:
                            steps.append(seen(self.bare, self.applied, self.own))
                        self.scheduler.step()
                        self.optimizer.zero_grad()
        return steps


def prepared_by_hand() -> list[str]:
    """Returns what is said, in one of several processes, to those who call Accelerate's own."""
    said = []
    for options in (
        {},
        {"kwargs_handlers": [DistributedDataParallelKwargs(find_unused_parameters=True)]},
    ):
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=True, **options)
        applied = PLAN.apply(model := Net())
        optimizer = applied.optimizer(torch.optim.AdamW, lr=LR)
        model, optimizer = accelerator.prepare(model, optimizer)
        applied.advance(epoch=0)
        for batch in batches(accelerator.process_index, 2):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
        with pytest.raises(FreezekitError) as caught:
            applied.advance(epoch=1)
        said.append(str(caught.value))
    return said


def accumulated(rank: int, ranks: int) -> dict[str, torch.Tensor]:
    """Returns the weights after windows: something opens within one and closes between two."""
    AcceleratorState._reset_state()
    plan = FreezePlan().freeze("stem", until_step=4).freeze("blocks[0]", at_step=6)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    applied = plan.apply(bare := Net())
    own = applied.optimizer(torch.optim.AdamW, lr=LR)
    model, optimizer = prepare(accelerator, applied, bare, own)
    for number, batch in enumerate(batch for _ in range(3) for batch in batches(rank, ranks)):
        with accelerator.accumulate(model):
            applied.advance(step=number)
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    return {name: each.detach() for name, each in bare.named_parameters()}


def in_ranks() -> dict[str, Any]:
    """Trains in one of several processes; also what each way to step the scheduler leads to."""
    run = Run()
    wrapped = type(run.model).__name__, run.model.find_unused_parameters
    steps = run.train(range(EPOCHS))
    rates = {}
    for name, options in {
        "default": {"dataloader_config": None},
        "split_batches": {},
        "step_scheduler_with_optimizer": {
            "dataloader_config": None,
            "step_scheduler_with_optimizer": False,
        },
    }.items():
        AcceleratorState._reset_state()
        run = Run(**options)
        rates[name] = [step.lrs["head.weight"] for step in run.train(range(2))]
    return {
        "steps": steps,
        "by hand": prepared_by_hand(),
        "accumulated": accumulated(run.accelerator.process_index, 2),
        "wrapped": wrapped,
        "rates": rates,
        "handler": run.accelerator.ddp_handler,
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """What each of two processes saw."""
    return run_ranks("test_accelerate_engine:in_ranks")


def test_two_ranks_train_all_phases_as_one_process_does(ranks: list[dict[str, Any]]) -> None:
    """Two ranks stay bit-identical through all phases, and agree with the plain loop."""
    first, second = ranks
    alone = plain()
    assert first["wrapped"] == second["wrapped"] == ("DistributedDataParallel", True)
    assert furthest(first["steps"], second["steps"]) == 0.0
    assert furthest(first["steps"], alone) < 1e-5
    check_same_course(first["steps"], alone)
    check_same_course(second["steps"], alone)
    assert first["handler"] is None


def test_two_ranks_agree_on_accumulated_windows(ranks: list[dict[str, Any]]) -> None:
    """What is due to open within a window opens at its end in both ranks, as in one process."""
    first, second = (each["accumulated"] for each in ranks)
    for name, weight in accumulated(0, 1).items():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], weight, rtol=0, atol=1e-5), name


def test_a_prepared_scheduler_steps_once_per_process(ranks: list[dict[str, Any]]) -> None:
    """Two processes step it twice per update, unless told otherwise: what the page says."""
    rates = ranks[0]["rates"]
    twice, once = ([LR * decay(n * step) for step in range(6)] for n in (2, 1))
    assert rates["default"] == pytest.approx(twice)
    assert rates["split_batches"] == pytest.approx(once)
    assert rates["step_scheduler_with_optimizer"] == pytest.approx(once)


def test_a_model_prepared_by_hand_is_refused_before_the_ranks_drift(
    ranks: list[dict[str, Any]],
) -> None:
    """Accelerate's own `prepare` wraps what is frozen: nothing opens, and the remedy is named."""
    for message in (message for each in ranks for message in each["by hand"]):
        assert message.startswith("no wrapper is known to average, between the ranks, ")
        assert "freezekit.integrations.accelerate.prepare" in message


def test_one_process_is_the_plain_loop() -> None:
    """In one process every weight is that of the plain loop at every step, bit for bit."""
    run = Run()
    steps, alone = run.train(range(EPOCHS)), plain()
    assert run.model is run.bare
    assert furthest(steps, alone) == 0.0
    check_same_course(steps, alone)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_killed_run_goes_on_bit_for_bit(stop: int, tmp_path: Path) -> None:
    """What was saved in one phase and loaded into a fresh process is as if never stopped."""
    whole = Run().train(range(EPOCHS))
    run = Run()
    run.train(range(stop))
    run.accelerator.save_state(str(tmp_path))
    AcceleratorState._reset_state(True)
    run = Run()
    run.accelerator.load_state(str(tmp_path))
    assert run.applied.state_dict()["clock"] == {"epoch": stop - 1, "step": None}
    resumed = run.train(range(stop, EPOCHS))
    rest = whole[-len(resumed) :]
    assert resumed[0].trainable == rest[0].trainable
    for one, other in zip(resumed, rest, strict=True):
        assert (one.trainable, one.lrs) == (other.trainable, other.lrs)
        for name, weight in one.weights.items():
            assert torch.equal(weight, other.weights[name]), name


def test_accumulation_opens_at_the_end_of_a_window_and_closes_at_once() -> None:
    """In the middle of a window what opens waits; what closes loses its gathered gradients."""
    plan = FreezePlan().freeze("stem", until_step=1).freeze("head", at_step=1)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    applied = plan.apply(bare := Net())
    own = applied.optimizer(torch.optim.SGD, lr=0.1)
    model, optimizer = prepare(accelerator, applied, bare, own)
    seen_flags, head = [], bare.head.weight.detach().clone()
    for number, batch in enumerate(batches()):
        with accelerator.accumulate(model):
            applied.advance(step=min(number, 1))  # a user's clock that runs ahead of the window
            flags = (bare.stem.weight.requires_grad, bare.head.weight.requires_grad)
            seen_flags.append((*flags, bare.head.weight.grad is None))
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
    assert seen_flags == [(False, True, True), (False, False, True), (False, False, True)]
    assert bare.stem.weight.requires_grad
    assert torch.equal(bare.head.weight, head)


def test_accumulated_windows_equal_whole_batches() -> None:
    """A window of micro-batches is one step of the plan, equal to one step on them together."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    applied = PLAN.apply(bare := Net())
    own = applied.optimizer(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.LambdaLR(own, decay)
    model, optimizer, scheduler = prepare(accelerator, applied, bare, own, scheduler)
    steps = []
    for epoch in range(EPOCHS):
        applied.advance(epoch=epoch)
        for halves in zip(batches(0, 2), batches(1, 2), strict=True):
            for half in halves:
                with accelerator.accumulate(model):
                    accelerator.backward(model(**half)["loss"])
                    optimizer.step()
                    if accelerator.sync_gradients:
                        steps.append(seen(bare, applied, own))
                    scheduler.step()
                    optimizer.zero_grad()
    alone = plain()
    check_same_course(steps, alone)
    assert furthest(steps, alone) < 1e-5


def test_mixed_precision_keeps_the_course() -> None:
    """Under bf16 the same trains at the same rates, what is frozen stays, and loss stays near."""
    steps, alone = Run(mixed_precision="bf16").train(range(EPOCHS)), plain()
    check_same_course(steps, alone)
    assert 0 < furthest(steps, alone) < 0.1


def test_what_contradicts_the_plan_is_refused_before_anything_is_prepared() -> None:
    """Told to build DDP otherwise, or not given the model, `prepare` says the way out."""
    applied = PLAN.apply(model := Net())
    flags = [each.requires_grad for each in model.parameters()]
    for handler, words in (
        (DistributedDataParallelKwargs(), "find_unused_parameters=True"),
        (DistributedDataParallelKwargs(static_graph=True), "static_graph=True.*leave it out"),
    ):
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
        with pytest.raises(FreezekitError, match=f"^prepare: .*{words}"):
            prepare(accelerator, applied, model)
        assert accelerator._models == []
        assert accelerator.ddp_handler is handler
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True)
    with pytest.raises(FreezekitError, match=r"none of these objects is the model.*: Linear"):
        prepare(accelerator, applied, torch.nn.Linear(2, 2))
    assert flags == [each.requires_grad for each in model.parameters()]
    assert prepare(accelerator, applied, model) is model
    prepare(accelerator, applied, model)
    assert accelerator._custom_objects == [applied]


def test_an_optimizer_built_by_hand_is_attached() -> None:
    """What the plan does inside steps is done; a stand-in for an optimizer is refused by name."""
    plan = FreezePlan().group("head", lr_mult=0.5, at_epoch=1)
    applied = plan.apply(model := Net())
    own = torch.optim.SGD(applied.param_groups(lr=LR))
    other = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=LR)
    _, optimizer, _ = prepare(Accelerator(cpu=True), applied, model, own, other)
    applied.advance(epoch=1)
    assert applied.lrs()["head"] == LR / 2
    assert applied._optimizers == [own]
    with pytest.raises(FreezekitError, match="AcceleratedOptimizer stands in for an optimizer"):
        applied.attach(optimizer)
