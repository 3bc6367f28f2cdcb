"""Lightning: a callback that carries a plan out in `Trainer.fit`.

Lightning builds DDP and the optimizers before training starts, and goes on from a checkpoint at
once with the optimizers' state. So all that a plan ever trains is trainable while both are built,
and the plan takes its own state back before the optimizers get theirs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden

from .._apply import AppliedPlan
from .._plan import FreezePlan
from .._verbs import counted
from ..errors import FreezekitError, PlanError
from .distributed import all_trainable, register

__all__ = ["FreezeCallback", "applied_to"]

_EARLY = (
    "layers that setup() or configure_model() build come after the plan; build them in __init__"
)


class FreezeCallback(Callback):
    """Applies a plan for the length of a fit and keeps it in step with training.

    The plan is applied when `fit` sets up, and released when it ends, also by an exception; `test`,
    `validate` and `predict` are left alone. A step of the plan is one optimizer update, with
    several optimizers the mean of theirs. Rules with `at_metric` see what was logged by the end of
    each validation, or of each training epoch where nothing validates; of several validations in
    one epoch, a plan that counts in epochs sees the last.

    Args:
        plan: the plan.
        module: the part of the LightningModule that the plan names the parts of, such as "model";
            None for all of it.
        steps_per_epoch: as in `FreezePlan.apply`.
        total_epochs: as in `FreezePlan.apply`; taken from the Trainer's `max_epochs` if neither it
            nor `total_steps` is given.
        total_steps: as in `FreezePlan.apply`.
        on_freeze: as in `FreezePlan.apply`.
        guard: prove, epoch by epoch, that what is frozen did not change.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from freezekit import FreezePlan
        >>> from freezekit.integrations.lightning import FreezeCallback, applied_to
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body, self.head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
        ...
        ...     def configure_optimizers(self):
        ...         return applied_to(self).optimizer(torch.optim.AdamW, lr=1e-3)
        >>> plan = FreezePlan().freeze("body").unfreeze("body", at_epoch=1, lr_mult=0.1)
        >>> callback = FreezeCallback(plan, guard=True)  # Trainer(callbacks=[callback]).fit(...)
    """

    def __init__(
        self,
        plan: FreezePlan,
        *,
        module: str | None = None,
        steps_per_epoch: int | None = None,
        total_epochs: int | None = None,
        total_steps: int | None = None,
        on_freeze: Literal["keep", "drop"] = "keep",
        guard: bool = False,
    ) -> None:
        """Takes the plan; nothing is applied before a fit."""
        if not isinstance(plan, FreezePlan):
            raise PlanError(f"FreezeCallback takes a FreezePlan, got {type(plan).__name__}")
        self.plan = plan
        self._module = module
        self._settings: dict[str, Any] = {
            "steps_per_epoch": steps_per_epoch,
            "total_epochs": total_epochs,
            "total_steps": total_steps,
            "on_freeze": on_freeze,
        }
        self._guard = guard
        self._idle({})

    def _idle(self, state: dict[str, Any]) -> None:
        """Is in no fit; keeps the state that the last one ended with."""
        self._applied: AppliedPlan | None = None
        self._trainer: Trainer | None = None
        self._state = state
        self._union = ExitStack()
        self._is_built = False
        self._guarded = ExitStack()
        self._pending: dict[str, Any] | None = None
        self._measured: dict[str, float] = {}
        self._is_fresh = False

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the plan and the settings, and nothing of a fit."""
        kept = ("plan", "_module", "_settings", "_guard")
        return {name: vars(self)[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begins in no fit."""
        vars(self).update(state)
        self._idle({})

    @property
    def applied(self) -> AppliedPlan:
        """The plan applied to the model, from the setup of a fit to its end.

        Raises:
            FreezekitError: no fit is under way.
        """
        if self._applied is None:
            raise FreezekitError(
                "the plan of a FreezeCallback is applied while Trainer.fit runs: in "
                "configure_optimizers() and in every hook of training, not before or after"
            )
        return self._applied

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Applies the plan, and lets all that it ever trains be trainable for now."""
        if stage != "fit":
            return
        goes_on = trainer is self._trainer and trainer.global_step > 0
        before = self._state if goes_on else None
        self._close()
        try:
            applied = self.plan.apply(self._part(pl_module), **_totals(trainer, self._settings))
        except FreezekitError as error:
            if is_overridden("setup", pl_module) or is_overridden("configure_model", pl_module):
                error.add_note(_EARLY)
            raise
        self._applied, self._trainer, self._pending = applied, trainer, before or None
        self._union.enter_context(all_trainable(applied))
        if applied._changes_what_trains and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise FreezekitError(
                "DeepSpeed asks once what trains, and this plan changes it during training; use "
                "another strategy, such as 'ddp_find_unused_parameters_true' or 'fsdp'"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the optimizers and the wrapper, and the state of a run that goes on."""
        applied = self.applied
        self._union.close()
        self._is_built = True
        own = {id(applied._writer.find(row)) for row in range(len(applied.resolved.rows))}
        model = applied._modules[0]
        late = [name for name, each in model.named_parameters() if id(each) not in own]
        if late:
            raise FreezekitError(f"the plan does not know {counted(late, 'parameter')}; {_EARLY}")
        if trainer.world_size > 1 and trainer.strategy.model is not None:
            _register(applied, trainer.strategy.model)
        for each in trainer.optimizers:
            optimizer = each.optimizer if isinstance(each, LightningOptimizer) else each
            if any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
                applied.attach(optimizer)
        state, self._pending = self._pending, None
        if state is not None:
            self.load_state_dict(state)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enters the phase that training starts or goes on in."""
        self._turn(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens and closes what is due at an epoch."""
        self._turn(trainer, self._take())

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ANN401
        batch_idx: int,
    ) -> None:
        """Opens and closes what is due at a step."""
        by_epoch = self.applied.resolved._cascade.time.unit == "epoch"
        self._advance(trainer, None if by_epoch else self._take())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there are new metrics; those of `Trainer.validate` are not for the plan."""
        if self._applied is not None and not trainer.sanity_checking:
            self._is_fresh = True
            self._measured = self._metrics()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that there are new metrics, where nothing validates."""
        self._is_fresh |= not trainer.enable_validation

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Proves that what was frozen to the end did not change."""
        self._guarded.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the model back as it was."""
        if stage == "fit":
            self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Gives the model back as it was."""
        self._is_fresh = False  # To read metrics may wait for ranks that did not fail.
        self._close()

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of the plan, and what was measured that it has not seen yet."""
        if self._pending is not None or self._applied is None:
            return self._pending or self._state
        return {"plan": self._applied.state_dict(), "measured": self._metrics()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back a state within a fit; at another time there is no plan that it is of."""
        if self._applied is None:
            return
        if self._is_built:
            self._applied.load_state_dict(state_dict["plan"])
            self._measured = dict(state_dict["measured"])
        else:  # What trains while DDP is built must be all, not that of the phase of this state.
            self._pending = state_dict

    def _part(self, pl_module: LightningModule) -> torch.nn.Module:
        """Returns what the plan names the parts of."""
        if self._module is None:
            return pl_module
        try:
            return pl_module.get_submodule(self._module)
        except AttributeError:
            known = ", ".join(name for name, _ in pl_module.named_children())
            raise FreezekitError(
                f"FreezeCallback: there is no part {self._module!r} in {type(pl_module).__name__}, "
                f"which has: {known}"
            ) from None

    def _close(self) -> None:
        """Releases the plan, if it is applied, and keeps its state."""
        if self._applied is not None:
            trainer, state = self._trainer, self.state_dict()
            self._union.close()
            self._applied.release()
            self._idle(state)
            self._trainer = trainer

    def _turn(self, trainer: Trainer, metrics: dict[str, float] | None = None) -> None:
        """Ends one guarded stretch and begins the next, with a transition between them."""
        self._guarded.close()
        self._advance(trainer, metrics)
        if self._guard:
            self._guarded.enter_context(self.applied.guard())

    def _advance(self, trainer: Trainer, metrics: dict[str, float] | None) -> None:
        """Opens and closes what is due."""
        updates = trainer.global_step // max(1, len(trainer.optimizers))
        self.applied.advance(epoch=trainer.current_epoch, step=updates, metrics=metrics)

    def _metrics(self) -> dict[str, float]:
        """Returns what was measured and the plan has not seen."""
        if not self._is_fresh or self._trainer is None or not self.applied.resolved.metrics:
            return self._measured
        known = self._trainer.callback_metrics
        return self._measured | {n: float(each) for n, each in known.items() if each.numel() == 1}

    def _take(self) -> dict[str, float] | None:
        """Returns what was measured, once; None where there is nothing new."""
        metrics = self._metrics() if self._is_fresh or self._measured else None
        self._is_fresh, self._measured = False, {}
        return metrics


def applied_to(module: LightningModule) -> AppliedPlan:
    """Returns the plan that the Trainer's `FreezeCallback` has applied, during a fit.

    For `configure_optimizers()` and for logging: `self.log_dict(...)` takes what `lrs()` returns.

    Args:
        module: the LightningModule, in its own methods `self`.

    Raises:
        FreezekitError: its Trainer has no `FreezeCallback`, or no fit is under way.
        RuntimeError: it has no Trainer, as Lightning says.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> from freezekit.integrations.lightning import applied_to
        >>> class Classifier(LightningModule):
        ...     def configure_optimizers(self):
        ...         optimizer = applied_to(self).optimizer(torch.optim.AdamW, lr=1e-3)
        ...         return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]
    """
    for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FreezeCallback):
            return callback.applied
    raise FreezekitError(
        "applied_to: this Trainer has no FreezeCallback; say Trainer(callbacks=[FreezeCallback("
        "plan), ...])"
    )


def _totals(trainer: Trainer, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings, with the length of the fit where it is known and not given."""
    given = settings["total_epochs"] or settings["total_steps"]
    epochs = trainer.max_epochs
    if given or trainer.max_steps != -1 or epochs is None or epochs < 1:
        return settings
    return settings | {"total_epochs": epochs}


def _register(applied: AppliedPlan, wrapper: torch.nn.Module) -> None:
    """Tells the plan what Lightning wrapped the model in."""
    try:
        register(applied, wrapper)
    except FreezekitError as error:
        raise FreezekitError(
            f"{error}; in Lightning: Trainer(strategy='ddp_find_unused_parameters_true')"
        ) from None
