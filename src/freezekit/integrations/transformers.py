"""Plans in the Trainer of transformers: a callback, and optimizers with the plan's groups.

Trainer makes its optimizer and wraps the model after `on_init_end` and before `on_train_begin`, and
both ask once which parameters train. So between the two the callback keeps all trainable that the
plan ever trains; from then on the model follows the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal, TypeAlias

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from .._apply import AppliedPlan
from .._plan import FreezePlan
from .._sync import several_ranks
from .._verbs import counted
from ..errors import FreezekitError
from ._trainer import (
    bare,
    base_model,
    check_arguments,
    check_checkpoints,
    check_optimizer,
    check_saved,
    checkpointing,
    is_adapted,
    named_by,
    parameters,
    states,
    updates_per_epoch,
    with_adapters,
)
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
        ...     freeze.log_first(trainer)
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
        self._midway = False
        self._epoch = 0
        self._entry: dict[str, Any] = {}
        self._phase: object = None
        self._rates: dict[str, float] = {}

    @property
    def applied(self) -> AppliedPlan:
        """The plan on Trainer's model; there is one once Trainer is built.

        Raises:
            FreezekitError: Trainer is not built yet.
        """
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

        Raises:
            FreezekitError: when Trainer builds the optimizer, if it lacks this callback or its
                arguments name an optimizer that groups parameters in its own way.
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
        if _KEY in states(state):
            raise FreezekitError(
                "this Trainer has two FreezeCallbacks; give it one, with one plan: later rules of "
                "a plan win over earlier ones"
            )
        states(state)[_KEY] = {}
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
            flags = [each.requires_grad for each in parameters(self.applied)]
            closed = [] if self.applied._sync.trusted else self._closed(flags)
        if closed and several_ranks():
            raise FreezekitError(
                "Trainer has wrapped the model while these were frozen, so their gradients are "
                f"never averaged between the ranks: {counted(closed, 'parameter')}; pass "
                "FreezeCallback in Trainer(callbacks=[...]), and let model_init return a model in "
                "which all trains that the plan ever trains"
            )
        applied, updates = self.applied, updates_per_epoch(args, known.get("train_dataloader"))
        self._check_totals(args, state, updates)
        optimizer = bare(known["optimizer"])
        check_optimizer(applied, optimizer)
        self._open.close()
        register(applied, model)
        saved = states(state).get(_KEY) if state.global_step else None
        epoch = state.global_step // updates if updates else int(state.epoch or 0)
        clock = {"clock": {"epoch": epoch, "step": state.global_step}}
        try:
            applied.load_state_dict((saved["applied"] if saved else self._fresh) | clock)
        except FreezekitError as error:
            error.add_note(f"in Trainer: go on by taking {_KEY!r} out of trainer_state.json")
            raise
        applied.attach(optimizer)  # In the phase of its state, or that would be dropped.
        self._entry = {"applied": {}, "metrics": dict(saved["metrics"]) if saved else {}}
        states(state)[_KEY] = self._entry
        self._advance(epoch, state.global_step, {})
        self._epoch, self._training = epoch - 1, True
        self._midway = bool(updates and state.global_step % updates)
        self._while_training = ExitStack()
        if self._guards:
            self._while_training.enter_context(applied.guard())
        check_checkpoints(applied, model)
        if checkpointing(model) is False and getattr(model, "_require_grads_hooks", None):
            self._undo_input_gradients(model, args)

    def on_epoch_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Opens and closes what is due in an epoch, also by what was measured before it."""
        self._epoch += 1
        waits = self._midway and self._by_epoch  # What was measured in an epoch is for the next.
        self._midway = False
        self._advance(self._epoch, state.global_step, {} if waits else self._entry["metrics"])

    def on_step_begin(self, args: object, state: TrainerState, *_: object, **__: object) -> None:
        """Opens and closes what is due at an update."""
        metrics = {} if self._by_epoch else self._entry["metrics"]
        self._advance(self._epoch, state.global_step, metrics)

    def on_evaluate(self, *_: object, **known: Any) -> None:  # noqa: ANN401 - Trainer's
        """Keeps what was measured for the moment that comes next.

        Evaluations under another name than `eval` are not Trainer's own; they count only if the
        plan waits for what they measure.
        """
        if not self._training:
            return
        measured = known.get("metrics") or {}
        numbers = {k: float(v) for k, v in measured.items() if isinstance(v, int | float)}
        monitors = {dict(rule.at_metric or ())["monitor"] for rule in self.applied.resolved.metrics}
        if monitors & numbers.keys() or any(name.startswith("eval_") for name in numbers):
            short = {name.removeprefix("eval_"): value for name, value in numbers.items()}
            self._entry["metrics"] |= short | numbers

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
        base = base_model(model)
        applied = with_adapters(self._plan, model, base).apply(
            base, on_freeze=self._on_freeze, **self._given(args)
        )
        try:
            check_arguments(applied, model, args)
        except FreezekitError:
            applied.release()
            raise
        # It makes no use of the Trainer, which a callback does not know.
        decayed = set(Trainer.get_decay_parameter_names(None, base))  # type: ignore[arg-type]
        self._undecayed = set(applied.resolved._tree.names) - decayed
        self._applied, self._fresh = applied, applied.state_dict()
        if is_adapted(model, base):
            check_saved(self._closed(applied.resolved._tree.flags))
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

    @property
    def _by_epoch(self) -> bool:
        return self.applied.resolved._cascade.time.unit == "epoch"

    def _closed(self, flags: list[bool]) -> list[str]:
        """Returns what the plan ever trains and is frozen by some flags."""
        names = self.applied.resolved._tree.names
        return [names[row] for row in self.applied._trained(any) if not flags[row]]

    def _check_totals(
        self, args: TrainingArguments, state: TrainerState, updates: int | None
    ) -> None:
        """Raises if training is longer or shorter than the plan was told, where that matters."""
        context = self.applied.resolved._cascade.time.context
        edges = [edge for rule in self._plan.rules for edge in (rule.opening, rule.closing)]
        has_fractions = any(edge is not None and edge[0] == "fraction" for edge in edges)
        real = {
            "steps_per_epoch": updates,
            "total_epochs": args.num_train_epochs if args.max_steps <= 0 else None,
            "total_steps": state.max_steps,
        }
        for name, value in real.items():
            if None in (value, context[name]) or value == context[name]:
                continue
            if self._totals[name] is not None:
                raise FreezekitError(
                    f"FreezeCallback: {name}={context[name]}, but Trainer has {value}; pass "
                    f"{name}={value}, or leave it out where the plan does not need it"
                )
            if has_fractions:
                raise FreezekitError(
                    f"the plan counts in fractions of {name}={context[name]}, which was so when "
                    f"Trainer was built, but now is {value}; build a Trainer with the arguments "
                    "that it trains with"
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
            cls, own = named_by(args, model)
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
        known = {id(each) for each in parameters(applied)}
        outside = [(n, p) for n, p in model.named_parameters()
                   if p.requires_grad and id(p) not in known]  # fmt: skip
        if outside:
            named = {"name": "outside of the plan", "lr": lr, "weight_decay": weight_decay}
            groups.append({"params": outside} | named)
        return groups
