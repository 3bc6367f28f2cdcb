"""Plans in the Trainer of transformers: a callback, and optimizers with the plan's groups.

Trainer makes its optimizer and wraps the model after `on_init_end` and before `on_train_begin`, and
both ask once which parameters train. So between the two the callback keeps all trainable that the
plan ever trains; from then on the model follows the plan.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from .._apply import AppliedPlan
from .._cascade import Decision
from .._names import unwrap
from .._plan import FreezePlan
from .._sync import several_ranks
from .._verbs import counted
from ..errors import FreezekitError
from .distributed import all_trainable, register

__all__ = ["FreezeCallback"]

_KEY = "freezekit"
"""Where the state stands among Trainer's. Under the name of the class, Trainer would replace the
callback by a new one when it restores callbacks, and drop the one that the optimizer belongs to."""

_Factory: TypeAlias = Callable[[], Callable[..., torch.optim.Optimizer]]


class FreezeCallback(TrainerCallback):
    """Carries out a plan on the model of a `Trainer`.

    Epochs and steps are Trainer's own: a step is one update of the optimizer. `at_metric` rules see
    what an evaluation during training measured, with and without `eval_` in front. The state is
    saved in Trainer's checkpoints; a checkpoint without it is resumed by the clock alone.

    Of a PEFT model the base model follows the plan, whose patterns name the base model's modules;
    adapters stay trainable, and take learning rates like all that stands at their place.

    Attributes:
        applied: the plan on Trainer's model.

    Args:
        plan: what trains when.
        steps_per_epoch: updates per epoch, for plans that mix epochs and steps.
        total_epochs: taken from the arguments of the training if it is not given.
        total_steps: likewise.
        on_freeze: whether what freezes keeps its optimizer state; see `FreezePlan.apply`.
        guard: check at the end of training that what was frozen throughout did not change.

    Example:
        >>> import torch, tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.transformers import FreezeCallback
        >>> class Model(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
        ...     def forward(self, x, labels):
        ...         return {"loss": (self.head(self.body(x)) - labels).pow(2).mean()}
        >>> data = [{"x": torch.ones(2), "labels": torch.ones(1)}] * 8
        >>> plan = FreezePlan().freeze("body").unfreeze("body", lr_mult=0.1, at_epoch=1)
        >>> freeze = FreezeCallback(plan)
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     print("what Trainer says:")
        ...     trainer = Trainer(
        ...         Model(),
        ...         TrainingArguments(
        ...             folder, num_train_epochs=2, learning_rate=0.01, report_to="none",
        ...             disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        ...         ),
        ...         train_dataset=data,
        ...         callbacks=[freeze],
        ...         optimizer_cls_and_kwargs=freeze.optimizer(),
        ...     )
        ...     _ = trainer.train()
        what Trainer says:
        ...
        >>> freeze.applied
        <AppliedPlan: in phase 1, from epoch 1>
    """

    def __init__(
        self,
        plan: FreezePlan,
        *,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        on_freeze: Literal["keep", "drop"] = "keep",
        guard: bool = False,
    ) -> None:
        """Keeps the plan until there is a model."""
        if not isinstance(plan, FreezePlan):
            raise FreezekitError(f"FreezeCallback takes a FreezePlan, got {type(plan).__name__}")
        self._plan = plan
        self._totals = {
            "steps_per_epoch": steps_per_epoch,
            "total_epochs": total_epochs,
            "total_steps": total_steps,
        }
        self._on_freeze: Literal["keep", "drop"] = on_freeze
        self._guards = guard
        self._args: TrainingArguments | None = None
        self._applied: AppliedPlan | None = None
        self._fresh: dict[str, Any] = {}
        self._undecayed: set[str] = set()
        self._open = ExitStack()
        self._while_training = ExitStack()
        self._training = False
        self._epoch = 0
        self._entry: dict[str, Any] = {}
        self._phase: object = None
        self._rates: dict[str, float] = {}

    @property
    def applied(self) -> AppliedPlan:
        """The plan on Trainer's model; there is one once Trainer is built."""
        if self._applied is None:
            raise FreezekitError(
                "the plan is not applied yet: Trainer(callbacks=[freeze]) does that when it is "
                "built"
            )
        return self._applied

    def optimizer(
        self,
        cls: type[torch.optim.Optimizer] | None = None,
        *,
        lr: float | None = None,
        weight_decay: float | None = None,
        **options: Any,  # noqa: ANN401 - they are the optimizer's
    ) -> tuple[_Factory, dict[str, Any]]:
        """Returns what Trainer takes as `optimizer_cls_and_kwargs`, for the groups of the plan.

        What is not given is taken from the arguments of the training. Where the plan sets no weight
        decay, parameters have none that Trainer gives none: biases and norms.

        Args:
            cls: an optimizer class that takes param groups; None: the one that the arguments name.
            lr: base learning rate.
            weight_decay: weight decay for what the plan gives none.
            **options: the optimizer's own arguments, such as `betas`.
        """
        given = {"cls": cls, "lr": lr, "weight_decay": weight_decay, "options": options}
        return (lambda: self._build), given

    def log_first(self, trainer: Trainer) -> None:
        """Puts this callback before all others of a Trainer, so that reporters see what it logs.

        Trainer calls those that report (TensorBoard, Weights & Biases, the progress bar) before its
        user's callbacks. Without this call, `lr/<group>` is in `trainer.state.log_history` only.

        Args:
            trainer: has this callback among its own.

        Raises:
            FreezekitError: it has not.
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            raise FreezekitError("this Trainer has other callbacks; pass Trainer(callbacks=[...])")
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: object,
        **known: Any,  # noqa: ANN401 - Trainer's
    ) -> None:
        """Applies the plan, and lets all train that ever trains."""
        if _KEY in _states(state):
            raise FreezekitError(
                "this Trainer has two FreezeCallbacks; give it one, with one plan: later rules of "
                "a plan win over earlier ones"
            )
        _states(state)[_KEY] = {}
        self._args = args
        self._apply(known["model"], args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: object,
        **known: Any,  # noqa: ANN401 - Trainer's
    ) -> None:
        """Puts the model into the phase in which training begins, or goes on."""
        model = known["model"]
        if not self._is_on(model):
            self._apply(model, args)
            closed = self._closed(self.applied.resolved._tree.flags)
        else:
            flags = [each.requires_grad for each in _parameters(self.applied)]
            closed = [] if self.applied._sync.trusted else self._closed(flags)
        if closed and several_ranks():
            raise FreezekitError(
                "Trainer has wrapped the model while these were frozen, so their gradients are "
                f"never averaged between the ranks: {counted(closed, 'parameter')}; pass "
                "FreezeCallback in Trainer(callbacks=[...]), and let model_init return a model in "
                "which all trains that the plan ever trains"
            )
        applied, updates = self.applied, _updates_per_epoch(args, known.get("train_dataloader"))
        self._check_totals(args, state, updates)
        optimizer = _bare(known["optimizer"])
        _check_optimizer(applied, optimizer)
        self._open.close()
        register(applied, model)
        saved = _states(state).get(_KEY) if state.global_step else None
        epoch = state.global_step // updates if updates else int(state.epoch or 0)
        clock = {"clock": {"epoch": epoch, "step": state.global_step}}
        applied.load_state_dict((saved["applied"] if saved else self._fresh) | clock)
        applied.attach(optimizer)  # In the phase of its state, or that would be dropped.
        self._entry = {"applied": {}, "metrics": dict(saved["metrics"]) if saved else {}}
        _states(state)[_KEY] = self._entry
        self._advance(epoch, state.global_step, {})
        self._epoch, self._training = epoch - 1, True
        self._while_training = ExitStack()
        if self._guards:
            self._while_training.enter_context(applied.guard())
        _check_checkpoints(applied, model)
        if _checkpointing(model) is False and getattr(model, "_require_grads_hooks", None):
            self._undo_input_gradients(model, args)

    def on_epoch_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Opens and closes what is due in an epoch, also by what was measured before it."""
        self._epoch += 1
        self._advance(self._epoch, state.global_step, self._entry["metrics"])

    def on_step_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Opens and closes what is due at an update."""
        by_epoch = self.applied.resolved._cascade.time.unit == "epoch"
        metrics = {} if by_epoch else self._entry["metrics"]
        self._advance(self._epoch, state.global_step, metrics)

    def on_evaluate(self, *_: object, **known: Any) -> None:  # noqa: ANN401 - Trainer's
        """Keeps what was measured for the moment that comes next."""
        if self._training:
            measured = known.get("metrics") or {}
            numbers = {k: float(v) for k, v in measured.items() if isinstance(v, int | float)}
            bare = {name.removeprefix("eval_"): value for name, value in numbers.items()}
            self._entry["metrics"] |= bare | numbers

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """Notes the learning rates of the update, before the scheduler moves on."""
        self._rates = self.applied.lrs()

    def on_log(
        self,
        args: object,
        state: TrainerState,
        *_: object,
        **known: Any,  # noqa: ANN401 - Trainer's
    ) -> None:
        """Logs the learning rate of each group where Trainer logs that of the first."""
        logs = known.get("logs") or {}
        if self._training and "learning_rate" in logs:
            rates = {f"lr/{name}": rate for name, rate in self._rates.items()}
            logs |= rates
            if state.log_history:
                state.log_history[-1].update(rates)

    def on_train_end(self, *_: object, **__: object) -> None:
        """Leaves the model in its last phase; checks what was frozen throughout."""
        self._training = False
        self._while_training.close()

    def _apply(self, model: torch.nn.Module, args: TrainingArguments) -> None:
        """Applies the plan to a model and lets all train that ever trains."""
        self._open.close()
        if self._applied is not None:
            self._applied.release()
            self._applied = None
        base = _base_model(model)
        applied = _with_adapters(self._plan, model, base).apply(
            base, on_freeze=self._on_freeze, **self._given(args)
        )
        try:
            _check_arguments(applied, model, args)
        except FreezekitError:
            applied.release()
            raise
        # It makes no use of the Trainer, which a callback does not know.
        decayed = set(Trainer.get_decay_parameter_names(None, base))  # type: ignore[arg-type]
        self._undecayed = set(applied.resolved._tree.names) - decayed
        self._applied, self._fresh = applied, applied.state_dict()
        self._open.enter_context(all_trainable(applied))

    def _given(self, args: TrainingArguments) -> dict[str, int | None]:
        """Returns the totals of training: those given, or what the arguments say."""
        totals = dict(self._totals)
        if totals["total_epochs"] is None and totals["total_steps"] is None:
            if args.max_steps > 0:
                totals["total_steps"] = args.max_steps
            elif float(args.num_train_epochs).is_integer() and args.num_train_epochs > 0:
                totals["total_epochs"] = int(args.num_train_epochs)
        return totals

    def _is_on(self, model: torch.nn.Module) -> bool:
        """Returns whether the plan is applied to a model or to what is inside it."""
        if self._applied is None or self._applied._released:
            return False
        return any(each is self._applied._modules[0] for each in model.modules())

    def _closed(self, flags: list[bool]) -> list[str]:
        """Returns what the plan ever trains and is frozen by some flags."""
        names = self.applied.resolved._tree.names
        return [names[row] for row in self.applied._trained(any) if not flags[row]]

    def _check_totals(
        self, args: TrainingArguments, state: TrainerState, updates: int | None
    ) -> None:
        """Raises if training is longer or shorter than the plan was told."""
        context = self.applied.resolved._cascade.time.context
        real = {
            "steps_per_epoch": updates,
            "total_epochs": args.num_train_epochs if args.max_steps <= 0 else None,
            "total_steps": state.max_steps,
        }
        for name, value in real.items():
            if None not in (value, context[name]) and value != context[name]:
                raise FreezekitError(
                    f"FreezeCallback: {name}={context[name]}, but Trainer has {value}; pass "
                    f"{name}={value}, or leave it out where the plan does not need it"
                )

    def _advance(self, epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Puts the model into the phase of a moment, and the state into Trainer's."""
        applied = self.applied
        applied.advance(epoch=epoch, step=step, metrics=dict(metrics) or None)
        if metrics or applied.phase is not self._phase or not self._entry["applied"]:
            self._phase = applied.phase
            self._entry["applied"] = applied.state_dict()
        metrics.clear()

    def _undo_input_gradients(self, model: Any, args: TrainingArguments) -> None:  # noqa: ANN401
        """Lets backward stop where the plan lets it, under checkpoints of activations.

        For them transformers makes the output of the embeddings require gradients, and backward
        then runs through everything. Only reentrant checkpoints need that.
        """
        model.disable_input_require_grads()
        if not args.gradient_checkpointing:  # It was the user who asked for them, not Trainer.
            self._while_training.callback(model.enable_input_require_grads)

    def _build(
        self,
        model: torch.nn.Module,
        cls: type[torch.optim.Optimizer] | None,
        lr: float | None,
        weight_decay: float | None,
        options: Mapping[str, Any],
    ) -> torch.optim.Optimizer:
        """Builds the optimizer of a training, over all that its plan ever trains."""
        args = self._args
        if args is None:
            raise FreezekitError(
                "the optimizer of this FreezeCallback is used without it; pass both: "
                "Trainer(callbacks=[freeze], optimizer_cls_and_kwargs=freeze.optimizer(...))"
            )
        if not self._is_on(model):
            self._apply(model, args)
        if cls is None:
            cls, own = _named_by(args, model)
            options = own | dict(options)
        lr = args.learning_rate if lr is None else lr
        weight_decay = args.weight_decay if weight_decay is None else weight_decay
        groups = self._groups(model, lr, weight_decay)
        optimizer = cls(groups, lr=lr, **options)  # type: ignore[call-arg]
        self.applied.attach(optimizer)
        return optimizer

    def _groups(
        self, model: torch.nn.Module, lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Returns the param groups of the plan, and one for what PEFT trains outside its model."""
        applied = self.applied
        names = applied.resolved._tree.names
        decided = [
            all(each.weight_decay is not None for each in outcome.decisions if each.trainable)
            for outcome in applied.resolved._outcomes
        ]
        ids = applied.resolved._outcome_ids
        spared = [row for row, name in enumerate(names)
                  if name in self._undecayed and not decided[ids[row]]]  # fmt: skip
        others = sorted(set(range(len(names))) - set(spared))
        groups = applied._groups(others, lr, weight_decay)
        groups += applied._groups(spared, lr, 0.0, spared=True)
        known = {id(each) for each in _parameters(applied)}
        outside = [(n, p) for n, p in model.named_parameters()
                   if p.requires_grad and id(p) not in known]  # fmt: skip
        if outside:
            named = {"name": "outside of the plan", "lr": lr, "weight_decay": weight_decay}
            groups.append({"params": outside} | named)
        return groups


def _states(state: TrainerState) -> dict[str, Any]:
    """Returns what Trainer saves of its callbacks in its checkpoints, by name."""
    return state.stateful_callbacks  # type: ignore[return-value]


def _parameters(applied: AppliedPlan) -> Iterator[torch.nn.Parameter]:
    """Yields the parameters of an applied plan's model, in order."""
    for row in range(len(applied.resolved._tree.names)):
        yield applied._writer.parameter(row)


def _bare(optimizer: Any) -> torch.optim.Optimizer:  # noqa: ANN401 - accelerate's wrapper, or none
    """Returns torch's optimizer, inside the wrappers of others."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer  # type: ignore[no-any-return]


def _updates_per_epoch(args: TrainingArguments, loader: Any) -> int | None:  # noqa: ANN401
    """Returns the updates of one epoch as Trainer counts them; None if there is no length."""
    try:
        batches = len(loader)
    except TypeError:
        return None
    return max(-(-batches // args.gradient_accumulation_steps), 1)


def _base_model(model: torch.nn.Module) -> torch.nn.Module:
    """Returns what a plan is written for: the model inside torch's wrappers and PEFT's."""
    inner = unwrap(model)
    if hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
        return inner.get_base_model()  # type: ignore[operator, no-any-return]
    return inner


def _with_adapters(plan: FreezePlan, model: torch.nn.Module, base: torch.nn.Module) -> FreezePlan:
    """Adds to a plan what holds for the adapters of PEFT, which stand among the base's modules."""
    if base is unwrap(model) and not getattr(base, "_hf_peft_config_loaded", False):
        return plan
    names = [name for name, _ in base.named_parameters()]
    trained = [name for name, each in base.named_parameters() if each.requires_grad]
    copied = [
        f"{path}.original_module."
        for path, module in base.named_modules()
        if hasattr(module, "original_module") and hasattr(module, "modules_to_save")
    ]
    unused = [name for name in names if name.startswith(tuple(copied))]
    if unused:
        plan = plan.freeze(_exactly(unused))
    return plan.unfreeze(_exactly(trained)) if trained else plan


def _exactly(names: list[str]) -> str:
    return "re:" + "|".join(map(re.escape, names))


def _check_arguments(applied: AppliedPlan, model: torch.nn.Module, args: TrainingArguments) -> None:
    """Raises if Trainer is told to train in a way in which the plan goes wrong."""
    if applied._trained(any) == applied._trained(all):
        return
    if args.deepspeed:
        raise FreezekitError(
            "DeepSpeed keeps moving what it trained once, also while it is frozen; train a plan "
            "that changes what trains without it, with DDP or FSDP"
        )
    if args.world_size == 1 or args.fsdp:
        return
    unused, checkpointing = args.ddp_find_unused_parameters, _checkpointing(model) is not None
    checkpointing = checkpointing or bool(args.gradient_checkpointing)
    problem, remedy = "", "set ddp_find_unused_parameters=True in TrainingArguments"
    if args.auto_find_batch_size:
        problem = "auto_find_batch_size wraps the model anew, in the midst of the plan"
        remedy = "set per_device_train_batch_size"
    elif getattr(args, "ddp_static_graph", None):
        problem = "ddp_static_graph expects the parameters that train in the first step in all"
        remedy = "leave it out"
    elif unused is False:
        problem = "with ddp_find_unused_parameters=False DDP waits for gradients of what is frozen"
    elif unused is None and checkpointing and isinstance(model, PreTrainedModel):
        problem = (
            "with activation checkpointing Trainer builds DDP with find_unused_parameters=False, "
            "and it waits for gradients of what is frozen"
        )
    if problem:
        raise FreezekitError(f"the plan changes what trains, and {problem}; {remedy}")


def _check_optimizer(applied: AppliedPlan, optimizer: torch.optim.Optimizer) -> None:
    """Raises if an optimizer lacks what the plan trains, or the values that it sets."""
    rows = {id(each): row for row, each in enumerate(_parameters(applied))}
    groups = {
        rows[id(each)]: group
        for group in optimizer.param_groups
        for each in group["params"]
        if id(each) in rows
    }
    names, ids = applied.resolved._tree.names, applied.resolved._outcome_ids
    trained = applied._trained(any)
    missing = [names[row] for row in trained if row not in groups]
    remedy = "pass Trainer(optimizer_cls_and_kwargs=freeze.optimizer(...))"
    if missing:
        raise FreezekitError(
            f"the optimizer lacks {counted(missing, 'parameter')}, which the plan trains: it was "
            f"built while they were frozen, or for another model; {remedy}"
        )
    differ = [
        names[row]
        for row in trained
        if groups[row].get("name") not in applied._steps._handed
        and _differs(applied.resolved._outcomes[ids[row]].decisions, groups[row])
    ]
    if differ:
        raise FreezekitError(
            "the plan sets a learning rate, weight decay or options that the optimizer does not "
            f"have, for {counted(differ, 'parameter')}; {remedy}"
        )


def _differs(decisions: tuple[Decision, ...], group: Mapping[str, Any]) -> bool:
    """Returns whether a param group has other values than the plan sets for a parameter in it."""
    first = next(each for each in decisions if each.trainable)
    lr = group.get("initial_lr", group["lr"])
    wanted = dict(first.options) | {"lr": first.lr, "weight_decay": first.weight_decay}
    present = dict(group) | {"lr": lr}
    return first.lr_mult not in (None, 1.0) or any(
        value is not None and present.get(key) != value for key, value in wanted.items()
    )


def _named_by(
    args: TrainingArguments,
    model: Any,  # noqa: ANN401
) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """Returns the optimizer that the arguments name, and its options without lr."""
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    own = {"params", "model", "optimizer_dict"} & options.keys()
    if own or not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise FreezekitError(
            f"optim={str(args.optim)!r} groups the parameters in its own way; name a class that "
            "takes param groups, as in freeze.optimizer(torch.optim.AdamW)"
        )
    return cls, {key: value for key, value in options.items() if key != "lr"}


def _checkpointing(model: torch.nn.Module) -> bool | None:
    """Returns whether checkpoints of activations are reentrant; None if there are none."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False) is True:
            function = getattr(module, "_gradient_checkpointing_func", None)
            return bool(getattr(function, "keywords", {}).get("use_reentrant", True))
    return None


def _check_checkpoints(applied: AppliedPlan, model: torch.nn.Module) -> None:
    """Raises where reentrant checkpoints lose gradients; warns where they spoil the saving."""
    layers = applied.resolved.layers
    if not _checkpointing(model) or not layers:
        return
    stem = set(layers[0].parameter_names)
    if all(stem & phase.trainable for phase in applied.resolved.phases):
        return
    remedy = 'pass activation_checkpointing_kwargs={"use_reentrant": False}'
    if not getattr(model, "_require_grads_hooks", None):
        raise FreezekitError(
            "with reentrant checkpointing, what stands behind a frozen stem gets no gradients at "
            f"all; {remedy}"
        )
    warnings.warn(
        "with reentrant checkpointing, backward runs through everything, also through what is "
        f"frozen; {remedy}",
        stacklevel=2,
    )
