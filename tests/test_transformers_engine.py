"""The Trainer of transformers trains as an ordinary loop does under the same plan."""

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from engines import LR, PLAN, WEIGHT_DECAY, Net, Samples, check_same_course, furthest, plain
from ranks import run_ranks
from torch import nn
from trainer_runs import UNRATED, Decaying, Recorder, Texts, arguments, bert, course, trainer
from transformers import Trainer, TrainerCallback

from freezekit import FreezekitError, FreezePlan, FrozenChangedError, PlanError
from freezekit.integrations.transformers import FreezeCallback

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_ranks_of_trainer_train_as_one_process_does() -> None:
    """Two ranks of Trainer stay bit-identical in all phases and agree with an ordinary loop."""
    first, second = run_ranks("trainer_runs:in_ranks")
    alone = plain()
    for name in ("course", "made anew", "own optimizer", "sharded", "sharded of old"):
        expected = course(plan=UNRATED) if name == "own optimizer" else alone
        assert furthest(first[name], second[name]) == 0.0
        assert furthest(first[name], expected) < 1e-5
        assert [step.trainable for step in first[name]] == [step.trainable for step in expected]
        if name != "own optimizer":
            check_same_course(first[name], alone)
    assert same(first["checkpointed"], second["checkpointed"])
    refused = first["refused"]
    assert refused == second["refused"]
    assert "ddp_find_unused_parameters=False DDP waits" in refused["unused"]
    assert "ddp_static_graph expects" in refused["static"]
    assert "auto_find_batch_size wraps the model anew" in refused["size"]
    assert "with activation checkpointing Trainer builds DDP" in refused["checkpointed"]
    assert refused["checkpointed"].endswith(
        "set ddp_find_unused_parameters=True in TrainingArguments"
    )
    assert "Trainer has wrapped the model while these were frozen" in refused["frozen at wrap"]
    assert "8 parameters: blocks.0.norm.weight" in refused["frozen at wrap"]


def test_one_process_of_trainer_trains_as_an_ordinary_loop_does() -> None:
    """Trainer and an ordinary loop give the same weights, trainable sets and rates, bit for bit."""
    alone = plain()
    for steps in (course(), course(more={"model_init": Net})):
        assert furthest(steps, alone) == 0.0
        check_same_course(steps, alone)


class Modes(TrainerCallback):
    """Notes the modes in which modules ran forward in training."""

    def __init__(self, model: nn.Module, *paths: str) -> None:
        self.seen: dict[str, list[bool]] = {path: [] for path in paths}
        for path in paths:
            model.get_submodule(path).register_forward_hook(
                lambda module, _, __, path=path: self.seen[path].append(module.training)
            )


def test_what_is_frozen_runs_in_eval_in_every_step(tmp_path: Path) -> None:
    """Trainer switches the model to train mode in each step, and frozen modules stay in eval."""
    model = bert()
    plan = FreezePlan().freeze("bert.embeddings", "bert.encoder.layer[:2]")
    plan = plan.unfreeze("bert.encoder.layer.1", at_epoch=1)
    paths = [f"bert.encoder.layer.{at}.output.dropout" for at in range(3)]
    modes = Modes(model, *paths)
    switched: list[bool] = []
    freeze = FreezeCallback(plan, guard=True)
    made = trainer(freeze, tmp_path, model=model, num_train_epochs=2)
    model.register_forward_pre_hook(lambda module, _: switched.append(module.training))
    made.train()
    assert switched == [True] * 4
    assert [modes.seen[path] for path in paths] == [
        [False] * 4,
        [False] * 2 + [True] * 2,
        [True] * 4,
    ]


def same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Returns whether two nests of tensors are bit-identical."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def ends_alike(one: Trainer, other: Trainer) -> bool:
    """Returns whether two trainings ended with the same weights, optimizer and scheduler."""
    return all(
        same(a.state_dict(), b.state_dict())
        for a, b in (
            (one.model, other.model),
            (one.optimizer, other.optimizer),
            (one.lr_scheduler, other.lr_scheduler),
        )
    )


MOVING = (
    FreezePlan()
    .freeze("bert")
    .unfreeze("bert.encoder.layer[-1]", lr_mult=0.5, warmup_steps=3, at_step=1)
    .unfreeze("bert.encoder", at_epoch=1)
    .group("classifier", lr_mult=2.0, at_epoch=2)
)
STALLING = (
    FreezePlan()
    .freeze("bert")
    .unfreeze(
        "bert.encoder.layer[-1]",
        at_metric={"monitor": "loss", "patience": 1, "min_delta": 10.0},
    )
    .unfreeze("bert.encoder.layer[1]", at_metric={"monitor": "eval_loss", "min_delta": 10.0})
)
MIXED = STALLING.unfreeze("bert.embeddings", at_epoch=4)


@pytest.mark.parametrize(
    ("plan", "options", "starts"),
    [
        (MOVING, {}, (2, 3, 5)),
        (MOVING, {"restore_callback_states_from_checkpoint": True}, (2, 3)),
        (STALLING, {"save_strategy": "epoch", "eval_strategy": "epoch"}, (2, 4)),
        (STALLING, {"eval_strategy": "steps", "eval_steps": 1}, (2, 3)),
        (MIXED, {"eval_strategy": "steps", "eval_steps": 1}, (1, 3)),
        (
            STALLING.unfreeze("bert.embeddings", at_epoch=4),
            {"eval_strategy": "steps", "eval_steps": 1},
            (1, 3),
        ),
    ],
)
def test_resumed_training_ends_as_if_never_stopped(
    plan: FreezePlan, options: dict[str, Any], starts: tuple[int, ...], tmp_path: Path
) -> None:
    """From a checkpoint in or between epochs, weights and optimizer end bit-identical."""

    def finished(start: int) -> tuple[Trainer, int]:
        freeze = FreezeCallback(plan, steps_per_epoch=2, on_freeze="drop", guard=True)
        made = trainer(
            freeze,
            tmp_path,
            model=bert(),
            more={"eval_dataset": Texts()},
            num_train_epochs=5,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            per_device_eval_batch_size=12,
            train_sampling_strategy="random",
            save_steps=1,
            **{"save_strategy": "steps"} | options | ({"save_strategy": "no"} if start else {}),
        )
        made.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{start}") if start else None)
        return made, freeze.applied.phase.index

    whole, last = finished(0)
    assert last >= len(plan.rules) - 1
    assert len(whole.optimizer.state) < len(list(whole.model.parameters()))
    for start in starts:
        resumed, phase = finished(start)
        assert ends_alike(whole, resumed)
        assert phase == last


def test_a_checkpoint_without_the_callback_is_resumed_by_the_clock(tmp_path: Path) -> None:
    """What was saved without the callback goes on in the phase of its step, and is saved with."""
    options = {"save_strategy": "steps", "save_steps": 4}
    alone = Decaying(Net(), arguments(tmp_path, **options), train_dataset=Samples())
    alone.train()
    freeze = FreezeCallback(UNRATED, on_freeze="drop")
    recorder = Recorder(freeze)
    resumed = trainer(freeze, tmp_path, recorder, own_groups=False, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    expected = course(plan=UNRATED)[4:]
    assert [step.trainable for step in recorder.steps] == [step.trainable for step in expected]
    opened = resumed.model.blocks[1].linear.weight  # It trained before, as all did.
    assert resumed.optimizer.state[opened]["step"] == len(recorder.steps) + 4
    saved = json.loads((tmp_path / "checkpoint-8" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["freezekit"]["applied"]["clock"]["step"] == 6


def test_another_plan_is_not_resumed(tmp_path: Path) -> None:
    """A checkpoint of another plan is refused, saying where the two differ."""
    trainer(FreezeCallback(PLAN), tmp_path, save_strategy="steps", save_steps=4).train()
    other = trainer(FreezeCallback(PLAN.unfreeze("blocks", at_epoch=1)), tmp_path)
    with pytest.raises(FreezekitError, match="saved under another plan"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_epochs_and_steps_are_those_of_the_optimizer(accumulate: int, tmp_path: Path) -> None:
    """Moments fall on the right update, also where the last window of an epoch is short."""
    updates = math.ceil(6 / accumulate)
    plan = FreezePlan().freeze("stem").unfreeze("stem", at_epoch=2)
    by_step = FreezePlan().freeze("stem").unfreeze("stem", at_step=updates + 1)
    for each, first in ((plan, 2 * updates), (by_step, updates + 1)):
        freeze = FreezeCallback(each)
        recorder = Recorder(freeze)
        options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulate}
        trainer(freeze, tmp_path, recorder, num_train_epochs=3, **options).train()
        opened = [at for at, step in enumerate(recorder.steps) if "stem.weight" in step.trainable]
        assert opened == list(range(first, 3 * updates))


class Reporter(TrainerCallback):
    """Notes what is reported, as those of TensorBoard and Weights & Biases do."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *_: object, logs: dict[str, float], **__: object) -> None:
        self.logs.append(dict(logs))


@pytest.mark.parametrize("first", [False, True])
def test_rates_of_all_groups_are_logged(first: bool, tmp_path: Path) -> None:
    """`lr/<group>` is what the update used; reporters see it once the callback stands first."""
    freeze, reporter = FreezeCallback(PLAN), Reporter()
    recorder = Recorder(freeze)
    made = trainer(
        freeze, tmp_path, recorder, logging_strategy="steps", logging_steps=1, num_train_epochs=2
    )
    made.callback_handler.callbacks.insert(0, reporter)
    if first:
        freeze.log_first(made)
    made.train()
    history = [each for each in made.state.log_history if "learning_rate" in each]
    groups = made.optimizer.param_groups
    assert len(history) == len(recorder.steps) == 6
    for logged, step in zip(history, recorder.steps, strict=True):
        for group in groups:
            assert {logged[f"lr/{group['name']}"]} == {
                step.lrs[name] for name in group["param_names"]
            }
    seen = [each for each in reporter.logs if "lr/head.weight" in each]
    assert len(seen) == (6 if first else 0)
    assert not any("lr/head.weight" in each for each in reporter.logs if "train_loss" in each)
    with pytest.raises(FreezekitError, match="has other callbacks"):
        FreezeCallback(PLAN).log_first(made)


@pytest.mark.parametrize(
    "kind",
    [
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
    ],
)
def test_every_scheduler_keeps_the_ratios_of_the_groups(kind: str, tmp_path: Path) -> None:
    """Under each scheduler of Trainer, also with `model_init`, the head learns 10 times as fast."""
    plan = FreezePlan().freeze("stem").unfreeze("stem", lr_mult=0.1, at_epoch=1)
    freeze = FreezeCallback(plan)
    options = {"num_train_epochs": 2, "lr_scheduler_type": kind, "eval_strategy": "epoch"}
    made = Trainer(
        args=arguments(
            tmp_path, warmup_steps=2, logging_strategy="steps", logging_steps=1, **options
        ),
        model_init=Net,
        train_dataset=Samples(),
        eval_dataset=Samples(),
        callbacks=[freeze],
        optimizer_cls_and_kwargs=freeze.optimizer(torch.optim.AdamW, lr=1e-2, betas=(0.8, 0.9)),
    )
    made.train()
    assert {group["betas"] for group in made.optimizer.param_groups} == {(0.8, 0.9)}
    homes = {name: f"lr/{group['name']}" for group in made.optimizer.param_groups
             for name in group["param_names"]}  # fmt: skip
    logged = [each for each in made.state.log_history if "learning_rate" in each]
    rates = [(each[homes["stem.weight"]], each[homes["head.weight"]]) for each in logged]
    assert [stem for stem, _ in rates[:3]] == [0.0] * 3
    assert len(rates) == 6
    for stem, head in rates[3:]:
        assert stem == pytest.approx(0.1 * head)
    assert any(stem for stem, _ in rates)


def test_weight_decay_is_that_of_trainer_where_the_plan_is_silent(tmp_path: Path) -> None:
    """Biases and norms have no decay, as in Trainer's optimizer, unless the plan says otherwise."""

    def decays(made: Trainer) -> dict[str, float]:
        made.create_optimizer()
        names = {id(each): name for name, each in made.model.named_parameters()}
        groups = made.optimizer.param_groups
        return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}

    plan = FreezePlan().freeze("bert.embeddings").unfreeze("bert.embeddings", at_epoch=1)
    own = trainer(FreezeCallback(plan), tmp_path, model=bert(), own_groups=False)
    ours = trainer(FreezeCallback(plan), tmp_path, model=bert())
    assert decays(ours) == decays(own)
    assert set(decays(ours).values()) == {0.0, WEIGHT_DECAY}
    said = plan.group("**.LayerNorm", weight_decay=0.3).group("classifier", weight_decay=0)
    other = decays(trainer(FreezeCallback(said), tmp_path, model=bert()))
    for name, decay in decays(own).items():
        if "LayerNorm" in name:
            assert other[name] == 0.3
        else:
            assert other[name] == (0.0 if name.startswith("classifier") else decay)
    decided = trainer(FreezeCallback(PLAN), tmp_path).create_optimizer().param_groups
    alone = PLAN.apply(Net()).param_groups(lr=LR, weight_decay=WEIGHT_DECAY)
    assert [group["name"] for group in decided] == [group["name"] for group in alone]
    names = [group["name"] for group in ours.optimizer.param_groups]
    assert len(set(names)) == len(names)
    assert {"bert.embeddings", "bert.embeddings.LayerNorm/no_decay"} <= set(names)


def _grads(model: nn.Module, through: dict[str, list[bool]]) -> None:
    """Notes for each layer of BERT whether backward goes through what it returned."""
    for at, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(
            lambda module, _, output, at=at: through.setdefault(str(at), []).append(
                (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )


def test_backward_stops_at_the_frontier_under_activation_checkpointing(tmp_path: Path) -> None:
    """Nothing of a frozen prefix is in backward, and what trains is as without checkpointing."""
    plan = FreezePlan().freeze("bert").unfreeze("bert.encoder.layer[1:]", at_epoch=1)
    ends = []
    for checkpointing in (True, False):
        model, through = bert(), dict[str, list[bool]]()
        freeze = FreezeCallback(plan, guard=True)
        made = trainer(
            freeze, tmp_path, model=model, activation_checkpointing=checkpointing,
            num_train_epochs=2,
        )  # fmt: skip
        _grads(model, through)
        made.train()
        assert through["0"] == [False] * 4
        assert through["1"] == through["2"] == [False] * 2 + [True] * 2
        ends.append(model.state_dict())
    assert same(*ends)


def test_reentrant_checkpointing_is_reported(tmp_path: Path) -> None:
    """Where reentrant checkpoints spoil the saving there is a warning; lost gradients raise."""
    plan = FreezePlan().freeze("bert").unfreeze("bert.encoder.layer[1:]", at_epoch=1)
    options = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
        "num_train_epochs": 2,
    }
    model = bert()
    made = trainer(FreezeCallback(plan), tmp_path, model=model, **options)
    with pytest.warns(UserWarning, match='pass activation_checkpointing_kwargs={"use_reentrant'):
        made.train()
    model = bert()
    made = trainer(FreezeCallback(plan), tmp_path, model=model, **options)
    model.enable_input_require_grads = lambda: None  # as models of images have it
    with pytest.raises(FreezekitError, match="gets no gradients at all"):
        made.train()
    with_stem = plan.unfreeze("bert.embeddings.LayerNorm")
    trainer(FreezeCallback(with_stem), tmp_path, model=bert(), **options).train()


def adapted(kind: str, **options: object) -> nn.Module:
    """Returns a tiny BERT in PEFT."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():  # It asks transformers by a name that is going away.
        warnings.simplefilter("ignore", FutureWarning)
        config = getattr(peft, kind)(task_type="SEQ_CLS", **options)
        model: nn.Module = peft.get_peft_model(bert(), config)
    return model


def test_adapters_of_peft_train_while_the_base_follows_the_plan(tmp_path: Path) -> None:
    """Plans written for the base model hold for it inside PEFT, and adapters always train."""
    model = adapted("LoraConfig", target_modules=["query"], r=2)
    plan = (
        FreezePlan().freeze("**").unfreeze("bert.encoder.layer[-1]", lr_mult=0.1, at_epoch=1)
        .unfreeze("classifier")
    )  # fmt: skip
    freeze = FreezeCallback(plan, guard=True)
    recorder = Recorder(freeze)
    with pytest.warns(UserWarning, match="PEFT saves adapters only.* 16 parameters: bert.encoder"):
        made = trainer(freeze, tmp_path, recorder, model=model, num_train_epochs=2)
    made.train()
    names = [name for name, _ in model.named_parameters()]
    adapters = {name for name in names if "lora_" in name or "modules_to_save" in name}
    opened = {name for name in names if "layer.2." in name}
    assert len(adapters) == 3 * 2 + 2
    assert [step.trainable for step in recorder.steps] == [adapters] * 2 + [adapters | opened] * 2
    start, end = recorder.steps[0].weights, recorder.steps[-1].weights
    moved = {name for name in names if not torch.equal(start[name], end[name])}
    assert adapters <= moved <= adapters | opened
    assert len(moved - adapters) >= 12


def test_prompts_of_peft_are_in_the_optimizer(tmp_path: Path) -> None:
    """What PEFT trains outside of the base model has a param group, and trains."""
    model = adapted("PromptTuningConfig", num_virtual_tokens=2)
    before = model.prompt_encoder.default.embedding.weight.detach().clone()
    freeze = FreezeCallback(FreezePlan().freeze("bert"), guard=True)
    trainer(freeze, tmp_path, model=model, num_train_epochs=1).train()
    assert not torch.equal(before, model.prompt_encoder.default.embedding.weight)


def test_each_model_of_model_init_follows_the_plan(tmp_path: Path) -> None:
    """Each training begins with the plan on a new model; the one before is given back."""
    freeze = FreezeCallback(UNRATED)
    recorder = Recorder(freeze)
    made = trainer(freeze, tmp_path, recorder, more={"model_init": Net})
    models = [made.model]
    for _ in range(2):
        made.train()
        models.append(made.model)
    assert len({id(each) for each in models}) == 3
    assert [step.trainable for step in recorder.steps[:15]] == [
        step.trainable for step in recorder.steps[15:]
    ]
    assert all(each.requires_grad for each in models[1].parameters())
    assert not models[2].blocks[0].linear.weight.requires_grad


def test_training_again_begins_with_the_first_phase(tmp_path: Path) -> None:
    """A second `train` of the same Trainer goes through the phases anew, also of metrics."""
    freeze = FreezeCallback(STALLING)
    recorder = Recorder(freeze)
    more = {"eval_dataset": Texts()}
    options = {"num_train_epochs": 5, "eval_strategy": "epoch"}
    made = trainer(freeze, tmp_path, recorder, model=bert(), more=more, **options)
    made.train()
    made.evaluate()
    made.train()
    made.args.eval_strategy = "no"
    made.train()
    counts = [len(step.trainable) for step in recorder.steps]
    assert counts[:10] == counts[10:20]
    assert counts[0] < counts[9]
    assert counts[20:] == counts[:1] * 10


def _refused(tmp_path: Path, *callbacks: TrainerCallback, **options: Any) -> str:  # noqa: ANN401
    """Returns what is said when a Trainer is built with these and trains."""
    known = {"model": Net(), "train_dataset": Samples(), "args": arguments(tmp_path)} | options
    with pytest.raises(FreezekitError) as caught:
        Trainer(callbacks=[*callbacks], **known).train()
    return str(caught.value)


def test_what_goes_wrong_in_silence_is_refused(tmp_path: Path) -> None:
    """Each mistake that Trainer would not notice is an error that says the way out."""
    remedy = "pass Trainer(optimizer_cls_and_kwargs=freeze.optimizer(...))"
    two = _refused(tmp_path, FreezeCallback(UNRATED), FreezeCallback(UNRATED))
    assert two.startswith("this Trainer has two FreezeCallbacks; give it one")
    rates = _refused(tmp_path, FreezeCallback(PLAN))
    assert "does not have, for 6 parameters: stem.weight, " in rates
    assert rates.endswith(remedy)
    model = Net()
    model.blocks.requires_grad_(False)
    head = torch.optim.AdamW(model.head.parameters())
    lacking = _refused(tmp_path, FreezeCallback(UNRATED), model=model, optimizers=(head, None))
    assert lacking.startswith("the optimizer lacks 10 parameters: stem.weight")
    alone = FreezeCallback(PLAN).optimizer(torch.optim.SGD)
    assert "Trainer(callbacks=[freeze], " in _refused(tmp_path, optimizer_cls_and_kwargs=alone)
    longer = FreezeCallback(UNRATED, total_epochs=7)
    assert "total_epochs=7, but Trainer has 5; pass total_epochs=5" in _refused(tmp_path, longer)
    steps = FreezeCallback(UNRATED, steps_per_epoch=4)
    options = {"args": arguments(tmp_path, per_device_train_batch_size=8)}
    assert "steps_per_epoch=4, but Trainer has 3" in _refused(tmp_path, steps, **options)
    special = FreezeCallback(UNRATED)
    options = {"args": arguments(tmp_path, optim="adafactor"), "model": Net()}
    made = Trainer(
        train_dataset=Samples(), callbacks=[special], **options,
        optimizer_cls_and_kwargs=special.optimizer(),
    )  # fmt: skip
    made.train()
    with pytest.raises(FreezekitError, match="the plan is not applied yet"):
        _ = FreezeCallback(UNRATED).applied
    with pytest.raises(FreezekitError, match="takes a FreezePlan, got dict"):
        FreezeCallback({"rules": []})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="steps_per_epoch"):
        trainer(FreezeCallback(UNRATED.freeze("stem", at_step=3)), tmp_path)


def test_totals_are_those_of_the_training(tmp_path: Path) -> None:
    """Fractions of training are of Trainer's epochs, or of its steps where it is told those."""
    plan = FreezePlan().freeze("stem").unfreeze("stem", at_fraction=0.5)
    for options, first in (({"num_train_epochs": 4}, 6), ({"max_steps": 7}, 4)):
        freeze = FreezeCallback(plan)
        recorder = Recorder(freeze)
        trainer(freeze, tmp_path, recorder, **options).train()
        opened = [at for at, step in enumerate(recorder.steps) if "stem.weight" in step.trainable]
        assert opened[0] == first


def test_training_may_be_longer_the_second_time(tmp_path: Path) -> None:
    """A plan goes on with other arguments, unless it counts in fractions of what they were."""
    freeze = FreezeCallback(UNRATED)
    recorder = Recorder(freeze)
    made = trainer(freeze, tmp_path, recorder, num_train_epochs=2)
    made.train()
    made.args.num_train_epochs = 5
    made.train()
    counts = [len(step.trainable) for step in recorder.steps]
    assert counts[:6] == counts[6:12]
    assert counts[-4] > counts[11]
    halves = FreezePlan().freeze("stem").unfreeze("stem", at_fraction=0.5)
    made = trainer(FreezeCallback(halves), tmp_path, num_train_epochs=2)
    made.args.num_train_epochs = 5
    with pytest.raises(FreezekitError, match=r"fractions of total_epochs=2, which .* now is 5"):
        made.train()


def test_evaluations_under_another_name_do_not_count(tmp_path: Path) -> None:
    """What is measured on other data in between neither stops training nor opens anything."""

    def opened(monitor: str) -> list[bool]:
        class Measures(TrainerCallback):
            def on_step_end(self, *event: Any, **_: object) -> None:  # noqa: ANN401
                if event[1].global_step == 1:
                    made.evaluate(Texts(), metric_key_prefix="other")

        plan = FreezePlan().freeze("bert").unfreeze(
            "bert", at_metric={"monitor": monitor, "patience": 1, "min_delta": 10.0}
        )  # fmt: skip
        freeze = FreezeCallback(plan)
        recorder = Recorder(freeze)
        made = trainer(
            freeze, tmp_path, recorder, Measures(), model=bert(), num_train_epochs=3,
            more={"eval_dataset": Texts()}, eval_strategy="epoch",
        )  # fmt: skip
        made.train()
        return [len(step.trainable) > 2 for step in recorder.steps]

    assert opened("loss") == opened("eval_loss") == [False] * 4 + [True] * 2


def test_a_callback_that_is_added_late_needs_no_more(tmp_path: Path) -> None:
    """Added to a Trainer that is built, in one process, it trains the same."""
    freeze = FreezeCallback(UNRATED)
    recorder = Recorder(freeze)
    made = Decaying(Net(), arguments(tmp_path), train_dataset=Samples())
    made.add_callback(freeze)
    made.add_callback(recorder)
    made.train()
    assert furthest(recorder.steps, course(plan=UNRATED, own_groups=False)) == 0.0


def test_a_plan_in_epochs_takes_one_measurement_of_each(tmp_path: Path) -> None:
    """Of evaluations in the midst of epochs, the last before an epoch counts."""
    freeze = FreezeCallback(MIXED)
    options = {"num_train_epochs": 5, "eval_strategy": "steps", "eval_steps": 1}
    more = {"eval_dataset": Texts()}
    trainer(freeze, tmp_path, model=bert(), more=more, **options).train()
    assert freeze.applied.state_dict()["metrics"]["fired"] == [2, 4]


def test_an_epoch_that_is_cut_short_counts(tmp_path: Path) -> None:
    """Where another callback ends epochs early, the next one is the next."""

    class Cut(TrainerCallback):
        def on_step_end(self, *event: Any, **_: object) -> None:  # noqa: ANN401
            event[2].should_epoch_stop = True

    freeze = FreezeCallback(FreezePlan().freeze("stem").unfreeze("stem", at_epoch=2))
    recorder = Recorder(freeze)
    trainer(freeze, tmp_path, recorder, Cut(), num_train_epochs=4).train()
    opened = ["stem.weight" in step.trainable for step in recorder.steps]
    assert opened == [False, False, True, True]


def test_a_change_of_what_is_frozen_is_found(tmp_path: Path) -> None:
    """With `guard`, training ends with an error if something frozen throughout has changed."""

    class Writer(TrainerCallback):
        def on_step_end(self, *_: object, **known: Any) -> None:  # noqa: ANN401
            known["model"].stem.bias.data.add_(1)

    plan = FreezePlan().freeze("stem")
    trainer(FreezeCallback(plan), tmp_path, Writer(), num_train_epochs=1).train()
    watched = trainer(FreezeCallback(plan, guard=True), tmp_path, Writer(), num_train_epochs=1)
    with pytest.raises(FrozenChangedError, match=r"stem\.bias"):
        watched.train()
