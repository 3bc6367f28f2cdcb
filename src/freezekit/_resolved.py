"""ResolvedPlan: what a plan means for one model, as data without tensors."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

import torch

from ._cascade import Cascade, Decision, Outcome
from ._layering import Layering
from ._layers import Layers, layers_of, place_layers
from ._modes import Fate, ModuleRow, held_modules, module_rows
from ._names import Tree, Walk
from ._placing import Placed
from ._plan import FreezePlan
from ._rules import Rule, parse_rows, whole_number
from ._timeline import ClockUnit
from ._verbs import closest, counted, offered
from .errors import PlanError

if TYPE_CHECKING:
    from ._cost import Cost
    from ._explain import Explanation, PlanDiff
    from ._frontier import Compute
    from ._summary import Summary

Placement: TypeAlias = tuple[Placed, list[str]]
"""Where the parameters of a model belong among its layers, and what is to be noted."""


class Row(NamedTuple):
    """One parameter of a resolved plan.

    Attributes:
        name: canonical name.
        shape: None for a lazy parameter without a shape yet.
        aliases: its further names.
        decisions: what holds for it in each phase.
    """

    name: str
    shape: torch.Size | None
    aliases: tuple[str, ...]
    decisions: tuple[Decision, ...]


class Rows(Sequence[Row]):
    """The parameters of a resolved plan in the order of `named_parameters()`, made on access."""

    def __init__(self, resolved: ResolvedPlan) -> None:
        """Views a resolved plan."""
        self._resolved = resolved

    def __len__(self) -> int:
        return len(self._resolved._tree.names)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[at] for at in range(len(self))[index]]
        at = range(len(self))[index]
        resolved, tree = self._resolved, self._resolved._tree
        return Row(
            tree.names[at],
            tree.shapes[at],
            tuple(resolved._aliases.get(at, ())),
            resolved._outcomes[resolved._outcome_ids[at]].decisions,
        )


class Phase:
    """A maximal stretch of training in which nothing changes.

    Where a rule waits for a metric, the phases before and after it opens follow each other in
    the list, and `start` and `end` hold as far as the clock decides.

    Attributes:
        index: 0 for the first phase.
        start: its first epoch or step, 0-based.
        end: the first epoch or step after it; None for the last phase.
        unit: "epoch", "step", or None for a plan without moments.
        stalls: how many metric-driven rules have opened.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> plan = FreezePlan().freeze("[0]").unfreeze("[0]", lr_mult=0.1, at_epoch=3)
        >>> first, second = plan.resolve(model).phases
        >>> print(first, "|", second)
        epochs 0 to 2 | from epoch 3
        >>> sorted(second.trainable - first.trainable), second.lr("0.bias", base=0.5)
        (['0.bias', '0.weight'], 0.05)
    """

    def __init__(
        self,
        resolved: ResolvedPlan,
        index: int,
        start: int,
        end: int | None,
        stalls: int,
    ) -> None:
        """Views one phase of a resolved plan."""
        self.index = index
        self.start = start
        self.end = end
        self.unit: ClockUnit | None = resolved._cascade.time.unit
        self.stalls = stalls
        self._resolved = resolved

    @cached_property
    def trainable(self) -> frozenset[str]:
        """Canonical names of the parameters that train."""
        return frozenset(self._resolved._names_where(self.index, trains=True))

    @cached_property
    def frozen(self) -> frozenset[str]:
        """Canonical names of the parameters that do not."""
        return frozenset(self._resolved._names_where(self.index, trains=False))

    def lr(self, name: str, base: float | None = None) -> float | None:
        """Returns the learning rate the plan gives a parameter in this phase.

        Args:
            name: canonical or further name of a parameter.
            base: the optimizer's own lr, which `lr_mult` multiplies.

        Returns:
            The learning rate per step; `base` where no rule says.

        Raises:
            PlanError: no parameter has that name, or `lr_mult` has no `base` to multiply.

        Example:
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            >>> resolved = FreezePlan().group("[0]", lr_mult=0.1).resolve(model)
            >>> resolved.at().lr("0.weight", base=0.5)
            0.05
        """
        decision = self._resolved._decision(name, self.index)
        if decision.lr is not None:
            return decision.lr
        if decision.lr_mult is None:
            return base
        if base is None:
            raise PlanError(f"{name!r} trains at lr_mult={decision.lr_mult!r}; pass base=...")
        return decision.lr_mult * base

    def _text(self, end: int | None) -> str:
        """Returns the phase, and those after it up to a moment, in words.

        Args:
            end: the first moment after them; None for the end of training.
        """
        event = self._event()
        if self.unit is None or (self.start == 0 and end is None and event):
            time = ""
        elif end is None:
            time = f"from {self.unit} {self.start}"
        elif end == self.start + 1:
            time = f"{self.unit} {self.start}"
        else:
            time = f"{self.unit}s {self.start} to {end - 1}"
        return ", ".join(filter(None, [time, event])) or "all of training"

    def __str__(self) -> str:
        return self._text(self.end)

    def _event(self) -> str:
        """Returns which metric the phase follows, or waits for if it is the first."""
        monitors = [dict(rule.at_metric or ())["monitor"] for rule in self._resolved.metrics]
        if not monitors:
            return ""
        if not self.stalls:
            return f"until {monitors[0]} stalls"
        last = monitors[self.stalls - 1]
        times = monitors[: self.stalls].count(last)
        return f"once {last} has stalled" + (f" {times} times" if times > 1 else "")

    def __repr__(self) -> str:
        live, all_ = len(self.trainable), len(self._resolved.rows)
        return f"<Phase {self.index}: {self}, {live} of {all_} parameters train>"


class ResolvedPlan:
    """What a plan means for one model. Holds no tensors and no modules.

    Attributes:
        plan: the plan.
        phases: the phases, first to last; one for a plan without moments.
        warnings: what is allowed but probably not meant, one sentence each.
        rows: the parameters, in the order of `named_parameters()`.
        compute: what is computed in each phase, and where backward stops; None without
            `example_inputs`.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> resolved = FreezePlan().freeze("[0]").resolve(model)
        >>> [row.name for row in resolved.rows if not row.decisions[0].trainable]
        ['0.weight', '0.bias']
        >>> resolved.unmentioned
        ('1.weight', '1.bias')
    """

    def __init__(
        self,
        plan: FreezePlan,
        tree: Tree,
        cascade: Cascade,
        outcomes: Sequence[Outcome],
        outcome_ids: list[int],
        buffer_ids: dict[int, int],
        warnings: tuple[str, ...],
        placement: Placement | None,
    ) -> None:
        """Joins the stretches in which nothing changes to phases."""
        self.plan = plan
        self.warnings = warnings
        self.rows = Rows(self)
        self.compute: Compute | None = None
        self._tree = tree
        self._cascade = cascade
        self._outcome_ids = outcome_ids
        self._buffer_ids = buffer_ids
        self._outcomes = outcomes
        self._placement = placement
        cells = cascade.time.cells
        kept = [k for k, cell in enumerate(cells) if cell.start == 0 or self._begins(k)]
        self._outcomes = [outcome.at(kept) for outcome in outcomes]
        following = [*(cells[k] for k in kept[1:]), None]
        self.phases = tuple(
            Phase(
                self,
                index,
                cells[k].start,
                after.start if after and after.stalls == cells[k].stalls else None,
                cells[k].stalls,
            )
            for index, (k, after) in enumerate(zip(kept, following, strict=True))
        )
        self._starts = [(phase.stalls, phase.start) for phase in self.phases]

    @cached_property
    def layers(self) -> Layers:
        """The layers of the model, as `infer_layers` finds them with the plan's own `layers`.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> [layer.name for layer in FreezePlan().resolve(model).layers]
            ['0', '1']
        """
        # A plan whose layers are given by patterns was placed when it was resolved.
        placement = self._placement or place_layers(Walk(self._tree, []), Layering())
        return layers_of(self._tree, *placement)

    @property
    def metrics(self) -> tuple[Rule, ...]:
        """The rules that wait for a metric, in the order in which they open."""
        return self._cascade.time.metrics

    def at(self, *, epoch: int | None = None, step: int | None = None, stalls: int = 0) -> Phase:
        """Returns the phase at a moment of training.

        Args:
            epoch: 0-based epoch; needed where the plan counts in epochs.
            step: 0-based optimizer step; needed where the plan counts in steps.
            stalls: how many of the rules that wait for a metric have opened by then.

        Raises:
            PlanError: the clock the plan uses is missing or negative, or fewer rules wait for a
                metric.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> plan = FreezePlan().freeze("weight", until_step=100)
            >>> resolved = plan.resolve(torch.nn.Linear(2, 2))
            >>> resolved.at(step=99).frozen, resolved.at(step=100).frozen
            (frozenset({'weight'}), frozenset())
        """
        waiting = len(self.metrics)
        if whole_number("stalls", stalls, 0) > waiting:
            raise PlanError(f"stalls={stalls}, but the plan's rules wait for {waiting} metrics")
        return self._phase_at(self._now(epoch, step), stalls)

    def _now(self, epoch: int | None, step: int | None) -> int:
        """Returns the moment in the unit that the plan counts in, 0 if it counts in none."""
        unit = self._cascade.time.unit
        if unit is None:
            return 0
        now = {"epoch": epoch, "step": step}[unit]
        if now is None:
            raise PlanError(f"the plan counts in {unit}s; pass {unit}=...")
        return whole_number(unit, now, 0)

    def _phase_at(self, now: int, stalls: int) -> Phase:
        return self.phases[bisect(self._starts, (stalls, now)) - 1]

    def _path(self, now: int, opened: Sequence[int]) -> list[tuple[int, int]]:
        """Returns start and index of each phase of training up to a moment.

        Args:
            now: the moment.
            opened: the moments at which the rules that wait for a metric opened.
        """
        path: list[tuple[int, int]] = []
        edges = [0, *(at for at in opened if at <= now)]
        for stalls, (begins, ends) in enumerate(zip(edges, [*edges[1:], now + 1], strict=True)):
            path += [
                (max(begins, phase.start), phase.index)
                for phase in self.phases
                if phase.stalls == stalls
                and phase.start < ends
                and (phase.end is None or phase.end > begins)
            ]
        return path

    @cached_property
    def unmentioned(self) -> tuple[str, ...]:
        """Names of the parameters that no rule selects; they keep the flag they had."""
        silent = [not any(outcome.histories) for outcome in self._outcomes]
        return tuple(
            name
            for name, outcome in zip(self._tree.names, self._outcome_ids, strict=True)
            if silent[outcome]
        )

    def explain(self, name: str) -> Explanation:
        """Says for each property of a parameter which rule decided and which it overrode.

        Args:
            name: canonical or further name of a parameter.

        Raises:
            PlanError: no parameter has that name.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> plan = FreezePlan().freeze("**").unfreeze("bias", lr=0.1)
            >>> print(plan.resolve(torch.nn.Linear(2, 2)).explain("bias"))
            bias [2]
              trainable = True   rule 2, unfreeze('bias', lr=0.1); overrides rule 1, freeze('**')
              lr = 0.1           rule 2, unfreeze('bias', lr=0.1)
        """
        from ._explain import explain

        return explain(self, name)

    def diff(self, other: ResolvedPlan) -> PlanDiff:
        """Says where another resolved plan treats a parameter differently, and how.

        Args:
            other: what this plan is compared with.

        Raises:
            PlanError: one counts in epochs and the other in steps.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Linear(2, 2)
            >>> old, new = FreezePlan(), FreezePlan().freeze("bias")
            >>> print(old.resolve(model).diff(new.resolve(model)))
            trainable: True -> False for 1 parameter: bias
        """
        from ._explain import diff

        return diff(self, other)

    def module_rows(
        self, *, epoch: int | None = None, step: int | None = None, stalls: int = 0
    ) -> list[ModuleRow]:
        """Returns the model module by module, in the order of `named_modules()`.

        Args:
            epoch: as in `at`; the start of training if neither clock is given.
            step: as in `at`.
            stalls: as in `at`.

        Raises:
            PlanError: as in `at`.

        Example:
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
            >>> rows = FreezePlan().freeze("[0]").resolve(model).module_rows()
            >>> [(row.path, row.state) for row in rows]
            [('', 'partial'), ('0', 'frozen'), ('1', 'trainable')]
        """
        return self._module_rows(self._phase(epoch, step, stalls))

    def _module_rows(self, phase: Phase) -> list[ModuleRow]:
        trains = [outcome.decisions[phase.index].trainable for outcome in self._outcomes]
        flags = [trains[each] for each in self._outcome_ids]
        held, kept = self._held(phase.index)
        return module_rows(self._tree, flags, held, kept, self._partly(phase.index))

    def _partly(self, phase: int) -> dict[int, int]:
        """Returns how many elements train of the parameters of which some rows do."""
        found = {}
        limited = {
            number: outcome.decisions[phase]
            for number, outcome in enumerate(self._outcomes)
            if outcome.decisions[phase].rows is not None and outcome.decisions[phase].trainable
        }
        for row, number in enumerate(self._outcome_ids if limited else ()):
            shape = self._tree.shapes[row]
            if number in limited and shape:
                named = len(range(shape[0])[parse_rows(limited[number].rows or ":")])
                rows = named if limited[number].rows_train else shape[0] - named
                found[row] = rows * shape[1:].numel()
        return found

    def summary(
        self,
        *,
        depth: int | None = None,
        epoch: int | None = None,
        step: int | None = None,
        stalls: int = 0,
    ) -> Summary:
        """Returns the model as a tree with counts and states; `str` is the text.

        Args:
            depth: deepest nesting shown; None chooses.
            epoch: as in `at`; the start of training if neither clock is given.
            step: as in `at`.
            stalls: as in `at`.

        Raises:
            PlanError: as in `at`.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
            >>> summary = FreezePlan().freeze("[0]").resolve(model).summary()
            >>> "trainable params: 3 || all params: 9 || trainable%: 33.3333" in str(summary)
            True
        """
        from ._summary import summarize

        return summarize(self, self._phase(epoch, step, stalls), depth=depth)

    def cost(
        self,
        optimizer: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "AdamW",
        *,
        on_freeze: Literal["keep", "drop"] = "keep",
    ) -> Cost:
        """Returns what the plan costs in memory, phase by phase, beside full fine-tuning.

        Counts the bytes of all parameters, of the gradients after a backward pass and of the
        optimizer's state after a step, which is measured: the optimizer steps one tensor of each
        shape on the meta device, or one with data if it needs some. Buffers are not counted, and
        activations and FLOPs only with `example_inputs`, for a step on these, in columns of their
        own: `total` is without activations. What has trained before keeps its state; of a plan
        that waits for metrics, every phase that may have come before counts as passed.

        Args:
            optimizer: name of a class in `torch.optim`, whatever its case, a class, or a function
                from param groups, as `param_groups` gives them, to an optimizer, such as
                `partial(torch.optim.SGD, momentum=0.9)`. It is called for one tensor at a time.
            on_freeze: as in `FreezePlan.apply`.

        Raises:
            PlanError: there is no such optimizer, it does not step a parameter that trains, or
                `on_freeze` is neither of the two.

        Example:
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 2))
            >>> plan = FreezePlan().freeze("[0]", until_epoch=2)
            >>> print(plan.resolve(model).cost())
            phase             trainable  weights  gradients  optimizer state    total  of full
            epochs 0 to 1         1,026  1.0 MiB    4.0 KiB          8.0 KiB  1.0 MiB   25.3 %
            from epoch 2        263,682  1.0 MiB    1.0 MiB          2.0 MiB  4.0 MiB  100.0 %
            full fine-tuning    263,682  1.0 MiB    1.0 MiB          2.0 MiB  4.0 MiB  100.0 %
            optimizer: AdamW
        """
        from ._cost import cost

        return cost(self, optimizer, on_freeze)

    def save_html(
        self,
        path: str | PathLike[str],
        *,
        other: ResolvedPlan | None = None,
        base_lr: float | None = None,
        optimizer: str | Callable[[list[dict[str, Any]]], torch.optim.Optimizer] = "AdamW",
    ) -> None:
        """Writes a report for a browser: one HTML file that loads nothing, to look at and to send.

        It has the layers over time, the modules and parameters with a search, why each parameter
        is treated as it is, and the costs; all of it in the phase that is chosen.

        Args:
            path: where to; a file that is there is replaced.
            other: a plan that this one is compared with.
            base_lr: what `lr_mult` multiplies; without it, rates that no rule sets are multipliers.
            optimizer: whose state the costs count, as in `cost`.

        Raises:
            PlanError: `other` is not a resolved plan or counts in another unit, `base_lr` is not a
                positive number, or `optimizer` cannot be used.
            OSError: the file cannot be written; its folder must be there.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> import torch
            >>> from freezekit import FreezePlan
            >>> resolved = FreezePlan().freeze("weight").resolve(torch.nn.Linear(2, 2))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     resolved.save_html(Path(folder) / "plan.html", base_lr=1e-3)
            ...     print([path.name for path in Path(folder).iterdir()])
            ['plan.html']
        """
        from ._report import save_html

        save_html(self, path, other=other, base_lr=base_lr, optimizer=optimizer)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __repr__(self) -> str:
        return f"<ResolvedPlan: {len(self.rows)} parameters, {len(self.phases)} phases>"

    def _begins(self, cell: int) -> bool:
        """Returns whether something changes where a cell of the timeline begins."""
        changed = {
            number
            for number, outcome in enumerate(self._outcomes)
            if _differ(outcome.decisions[cell - 1], outcome.decisions[cell])
        }
        if not changed:
            return False
        if not changed.isdisjoint(self._outcome_ids):
            return True
        return self._held(cell - 1) != self._held(cell)

    def _phase(self, epoch: int | None, step: int | None, stalls: int) -> Phase:
        if epoch is None and step is None and not stalls:
            return self.phases[0]
        return self.at(epoch=epoch, step=step, stalls=stalls)

    @cached_property
    def _aliases(self) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for alias in self._tree.aliases:
            found.setdefault(alias.row, []).append(alias.name)
        return found

    @cached_property
    def _row_of(self) -> dict[str, int]:
        rows = {alias.name: alias.row for alias in self._tree.aliases}
        rows.update((name, row) for row, name in enumerate(self._tree.names))
        return rows

    def _row(self, name: str) -> int:
        row = self._row_of.get(name)
        if row is not None:
            return row
        spelled = self._tree.spelled.get(name)
        below = [each for each in self._row_of if each.startswith(f"{spelled or name}.")]
        if below:
            what = "is parametrized, made of" if spelled else "is a module; below it stand"
            raise PlanError(f"{name!r} {what} {counted(below, 'parameter')}; name one of them")
        offer = offered(closest(str(name), self._row_of, 3))
        raise PlanError(f"no parameter is named {name!r} among {len(self.rows)}{offer}")

    def _numel(self, row: int) -> int:
        """Returns the elements of a parameter, 0 for a lazy one without a shape yet."""
        shape = self._tree.shapes[row]
        return 0 if shape is None else shape.numel()

    def _decision(self, name: str, phase: int) -> Decision:
        return self._outcomes[self._outcome_ids[self._row(name)]].decisions[phase]

    def _names_where(self, phase: int, *, trains: bool) -> list[str]:
        wanted = [outcome.decisions[phase].trainable is trains for outcome in self._outcomes]
        return [
            name
            for name, outcome in zip(self._tree.names, self._outcome_ids, strict=True)
            if wanted[outcome]
        ]

    def _held(self, phase: int, frozen: Collection[int] = ()) -> tuple[list[bool], set[int]]:
        """Returns which modules are held in a phase, and which of them stay in train mode.

        Args:
            phase: its index.
            frozen: rows of parameters taken to be frozen as well.
        """
        fates = [_fate(outcome.decisions[phase]) for outcome in self._outcomes]
        rows = [fates[each] for each in self._outcome_ids]
        for row in frozen:
            rows[row] = Fate(False, True, rows[row].leave)
        buffers = {row: fates[each] for row, each in self._buffer_ids.items()}
        return held_modules(self._tree, rows, buffers)


def _differ(before: Decision, after: Decision) -> bool:
    """Returns whether something changes; who lets a parameter train is not a change."""
    if before.trainable and after.trainable:
        before, after = before._replace(decided=True), after._replace(decided=True)
    return before != after


def _fate(decision: Decision) -> Fate:
    frozen = decision.decided and not decision.trainable
    return Fate(decision.trainable, frozen, decision.frozen_mode == "train")
