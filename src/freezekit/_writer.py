"""The only module that writes to a model: flags, gradients, modes and what remembers them."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from operator import getitem, is_not, length_hint
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from ._names import MARK, unwrap
from ._resolved import ResolvedPlan
from ._sharding import reshard
from .errors import FreezekitError


class Hold:
    """Keeps one module in a mode, standing in for its `train` method.

    Placed as `train` in the module's own `__dict__`, where every switch of mode finds it, from
    whichever parent it comes. Travels with copies and pickles of the model.
    """

    def __init__(
        self, module: torch.nn.Module, mode: bool, before: bool, replaced: object = None
    ) -> None:
        self.module = module
        self.mode = mode
        self.before = before
        self.replaced = replaced
        self.asked: bool | None = None
        self.dropout: float | None = None

    def __call__(self, mode: bool = True) -> torch.nn.Module:
        """Answers `module.train(mode)` with the held mode."""
        self.asked = mode
        module, held = self.module, self.mode
        if not _is_plain(module):
            type(module).train(module, held)
            return module
        module.__dict__["training"] = held
        for child in module._modules.values():
            if child is not None:
                child.train(held)
        return module

    def remove(self) -> None:
        """Takes itself out of the module; the mode stays."""
        if self.replaced is None:
            del self.module.__dict__["train"]
        else:
            self.module.__dict__["train"] = self.replaced
        self.give_dropout_back()

    def give_dropout_back(self) -> None:
        """Gives the module its dropout back."""
        if self.dropout is not None:
            self.module.__dict__["dropout"] = self.dropout
            self.dropout = None


class Mark:
    """What a module of an applied model remembers: the flags its own parameters had, by name.

    A copy or an unpickled model keeps the flags but has no handle: there `live` is false. `inner`
    is true for all modules but the one the plan was applied to.
    """

    def __init__(self, flags: dict[str, bool], inner: bool) -> None:
        self.flags = flags
        self.inner = inner
        self.live = True

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"live": False}


class Places(NamedTuple):
    """Parameters, in columns: where each of them is found whenever it is written.

    Attributes:
        rows: their rows.
        tables: for each, its module's table of parameters.
        leaves: its name there.
    """

    rows: Sequence[int] = ()
    tables: Sequence[dict[str, Any]] = ()
    leaves: Sequence[str] = ()


class Edges(NamedTuple):
    """Modules on the way to others, in columns.

    Attributes:
        rows: their rows.
        tables: for each, the table of children it stands in.
        leaves: its name there.
        children: itself.
    """

    rows: Sequence[int] = ()
    tables: Sequence[Mapping[str, torch.nn.Module | None]] = ()
    leaves: Sequence[str] = ()
    children: Sequence[torch.nn.Module] = ()


class Holding(NamedTuple):
    """Modules to hold, in columns.

    Attributes:
        rows: their rows.
        tables: their attributes.
        holds: what holds each.
        kept: the rows of those that are held in train mode.
    """

    rows: Sequence[int] = ()
    tables: Sequence[dict[str, Any]] = ()
    holds: Sequence[Hold] = ()
    kept: Collection[int] = ()


class LettingGo(NamedTuple):
    """Modules to hold no more, in columns, parents first.

    Attributes:
        rows: their rows.
        tables: their attributes.
        above: those of their parents.
    """

    rows: Sequence[int] = ()
    tables: Sequence[dict[str, Any]] = ()
    above: Sequence[dict[str, Any]] = ()


class Change(NamedTuple):
    """What differs between two phases, and the way to it.

    Attributes:
        freeze: parameters to freeze.
        unfreeze: parameters to let train.
        hold: modules to hold.
        let_go: modules to hold no more.
        edges: the way to the modules of all these.
    """

    freeze: Places = Places()
    unfreeze: Places = Places()
    hold: Holding = Holding()
    let_go: LettingGo = LettingGo()
    edges: Edges = Edges()


class Writer:
    """Puts the modules of one model into the phases of a resolved plan.

    A parameter is found by module and name whenever it is written: its object may have been
    replaced since.
    """

    def __init__(self, resolved: ResolvedPlan, modules: list[torch.nn.Module]) -> None:
        """Binds the plan to the modules of a model."""
        self.modules = modules
        self._resolved = resolved
        self._modes = [module.training for module in modules]
        tree = resolved._tree
        self._leaves = [
            sys.intern(name[len(tree.prefixes[owner]) :])
            for name, owner in zip(tree.names, tree.owners, strict=True)
        ]
        self._tables = [modules[owner]._parameters for owner in tree.owners]
        self._dicts = [module.__dict__ for module in modules]
        # Modules whose mode is more than a flag in a table, and the root, which has no parent.
        self._special = {row for row, module in enumerate(modules) if not _is_plain(module)} | {0}
        self._holds: list[Hold | None] = [None] * len(modules)
        self._rows: list[list[int]] = [[] for _ in resolved._outcomes]
        for row, outcome in enumerate(resolved._outcome_ids):
            self._rows[outcome].append(row)
        self._changes: dict[tuple[int, int], Change] = {}

    def start(self) -> None:
        """Marks the model and carries out the first phase. Everything was checked."""
        tree, resolved = self._resolved._tree, self._resolved
        self._let_go_special(range(len(self.modules)), restore=True)
        self._modes = [module.training for module in self.modules]
        flags: dict[int, dict[str, bool]] = {0: {}}
        for row, flag in enumerate(tree.flags):
            self.parameter(row).requires_grad = flag
            flags.setdefault(tree.owners[row], {})[self._leaves[row]] = flag
        for owner, known in flags.items():
            self.modules[owner].__dict__[MARK] = Mark(known, inner=owner > 0)
        first = [outcome.decisions[0] for outcome in resolved._outcomes]
        rows = [*enumerate(first[each] for each in resolved._outcome_ids)]
        held, kept = resolved._held(0)
        self.carry_out(
            Change(
                self.places([row for row, each in rows if each.decided and not each.trainable]),
                self.places([row for row, each in rows if each.trainable and not tree.flags[row]]),
                hold=self._holding([row for row, is_held in enumerate(held) if is_held], kept),
            )
        )
        for before, after in pairwise(resolved.phases):
            self.change(before.index, after.index)

    def change(self, before: int, after: int) -> Change:
        """Returns what differs between two phases; once known, it costs nothing more."""
        found = self._changes.get((before, after))
        if found is None:
            found = self._changes[before, after] = self._compare(before, after)
        return found

    def _compare(self, before: int, after: int) -> Change:
        resolved = self._resolved
        freeze: list[int] = []
        unfreeze: list[int] = []
        for outcome, rows in zip(resolved._outcomes, self._rows, strict=True):
            turn = outcome.decisions[after].trainable - outcome.decisions[before].trainable
            if turn:
                (unfreeze if turn > 0 else freeze).extend(rows)
        (old, old_kept), (new, new_kept) = resolved._held(before), resolved._held(after)
        hold = [
            row
            for row, is_held in enumerate(new)
            if is_held and (not old[row] or (row in old_kept) != (row in new_kept))
        ]
        let_go = [row for row, was in enumerate(old) if was and not new[row]]
        owners = resolved._tree.owners
        touched = {owners[row] for row in (*freeze, *unfreeze)}.union(hold, let_go)
        return Change(
            self.places(freeze),
            self.places(unfreeze),
            self._holding(hold, new_kept),
            self._letting_go(let_go),
            self._edges(touched),
        )

    def places(self, rows: Sequence[int]) -> Places:
        """Returns where parameters are found."""
        tables, leaves = self._tables, self._leaves
        return Places(rows, [tables[row] for row in rows], [leaves[row] for row in rows])

    def _holding(self, rows: Sequence[int], kept: Collection[int]) -> Holding:
        holds = self._holds
        for row in rows:
            if holds[row] is None:
                holds[row] = Hold(self.modules[row], False, self._modes[row])
        found = [hold for hold in map(holds.__getitem__, rows) if hold is not None]
        return Holding(rows, [self._dicts[row] for row in rows], found, kept)

    def _letting_go(self, rows: Sequence[int]) -> LettingGo:
        dicts, parents = self._dicts, self._resolved._tree.parents
        above = [dicts[parents[row]] for row in rows]
        return LettingGo(rows, [dicts[row] for row in rows], above)

    def joined(self, waiting: Change, change: Change) -> Change:
        """Returns a change with what still waits to be opened, unless it closes again."""
        closing, held = set(change.freeze.rows), set(change.hold.rows)
        unfreeze = [row for row in waiting.unfreeze.rows if row not in closing]
        let_go = [row for row in waiting.let_go.rows if row not in held]
        return change._replace(
            unfreeze=self.places([*unfreeze, *change.unfreeze.rows]),
            let_go=self._letting_go(sorted([*let_go, *change.let_go.rows])),
        )

    def _edges(self, rows: Iterable[int]) -> Edges:
        tree, modules = self._resolved._tree, self.modules
        way: list[int] = []
        known = {0}
        for row in rows:
            while row not in known:
                known.add(row)
                way.append(row)
                row = tree.parents[row]
        way.sort()
        above = [tree.parents[row] for row in way]
        return Edges(
            way,
            [modules[parent]._modules for parent in above],
            [
                sys.intern(tree.prefixes[row][len(tree.prefixes[parent]) : -1])
                for row, parent in zip(way, above, strict=True)
            ],
            [modules[row] for row in way],
        )

    def check(self, change: Change) -> None:
        """Raises if a module that a change touches was replaced since the plan was applied."""
        rows, tables, leaves, children = change.edges
        try:
            if not any(map(is_not, map(getitem, tables, leaves), children)):
                return
        except KeyError:
            pass
        for row, table, leaf, module in zip(rows, tables, leaves, children, strict=True):
            child = table.get(leaf)
            if child is not module and (child is None or unwrap(child) is not module):
                path = self._resolved._tree.prefixes[row][:-1]
                raise FreezekitError(
                    f"{path!r} was replaced since the plan was applied; release the plan and apply "
                    "it again"
                )

    def check_whole(self) -> None:
        """Raises if any module was replaced since the plan was applied."""
        self.check(Change(edges=self._edges(range(len(self.modules)))))

    def carry_out(self, change: Change) -> None:
        """Writes a change: flags, cleared gradients, modes.

        Raises:
            FreezekitError: a parameter is gone or cannot be written; nothing is written then.
        """
        self._open(change.unfreeze)
        try:
            self._close(change.freeze)
        except FreezekitError:
            self._flag(change.unfreeze.rows, False)
            raise
        self._let_go(change.let_go)
        self._hold(change.hold)

    def _open(self, places: Places) -> None:
        """Lets parameters train; all of them or none."""
        tables = iter(places.tables)
        parameter: Any
        try:
            for parameter in map(getitem, tables, places.leaves):
                parameter.requires_grad = True
        except (KeyError, AttributeError, RuntimeError):
            raise self._undone(places, tables, False) from None

    def _close(self, places: Places) -> None:
        """Freezes parameters and clears their gradients; all of them or none."""
        tables = iter(places.tables)
        parameter: Any
        cleared: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for parameter in map(getitem, tables, places.leaves):
                parameter.requires_grad = False
                grad = parameter.grad
                if grad is not None:
                    cleared.append((parameter, grad))
                    parameter.grad = None
        except (KeyError, AttributeError, RuntimeError):
            error = self._undone(places, tables, True)
            for parameter, grad in cleared:
                parameter.grad = grad
            raise error from None

    def _undone(self, places: Places, left: Iterator[object], trained: bool) -> FreezekitError:
        """Undoes flags up to the one that could not be written; returns what is wrong with that."""
        at = len(places.rows) - length_hint(left) - 1
        self._flag(places.rows[:at], trained)
        return self._unwritable(places.rows[at])

    def _flag(self, rows: Iterable[int], trains: bool) -> None:
        """Writes back the flags of parameters that were just written."""
        for row in rows:
            self.parameter(row).requires_grad = trains

    def _unwritable(self, row: int) -> FreezekitError:
        """Returns what is wrong with a parameter that could not be written."""
        try:
            parameter, name = self.parameter(row), self._resolved._tree.names[row]
            check_writable(name, parameter)
        except FreezekitError as error:
            return error
        return FreezekitError(
            f"{name!r} is {parameter.dtype} since the plan was applied and cannot train; release "
            "the plan and apply it again"
        )

    def release(self) -> None:
        """Gives the model back as it was; passes over what is gone meanwhile."""
        self.reshard()
        resolved = self._resolved
        ruled = [any(d.decided for d in outcome.decisions) for outcome in resolved._outcomes]
        for row, outcome in enumerate(resolved._outcome_ids):
            parameter = self.find(row)
            if ruled[outcome] and parameter is not None:
                parameter.requires_grad = resolved._tree.flags[row]
        self._let_go_special(range(len(self.modules)), restore=True)
        for module in self.modules:
            module.__dict__.pop(MARK, None)

    def reshard(self) -> None:
        """Makes sure that the parameters found are those that stay."""
        reshard(self.modules)

    def find(self, row: int) -> torch.nn.Parameter | None:
        """Finds a parameter by module and name."""
        return self._tables[row].get(self._leaves[row])

    def finder(self, row: int) -> Callable[[], torch.nn.Parameter]:
        """Returns what finds one parameter."""
        return partial(self.parameter, row)

    def parameter(self, row: int) -> torch.nn.Parameter:
        """Finds a parameter by module and name.

        Raises:
            FreezekitError: it is gone.
        """
        parameter = self.find(row)
        if parameter is None:
            raise FreezekitError(
                f"{self._resolved._tree.names[row]!r} is gone from the model since the plan was "
                "applied; release the plan and apply it again"
            )
        return parameter

    def _hold(self, holding: Holding) -> None:
        """Holds modules in eval, or in train mode without dropout where told to."""
        rows, tables, holds, kept = holding
        others = {id(self._dicts[row]) for row in self._special.intersection(rows)}
        for table, hold in zip(tables, holds, strict=True):
            if "train" in table or (others and id(table) in others):
                others.add(id(table))
                continue
            hold.asked = None
            table["train"] = hold
            table["training"] = False
        if others:  # These may have a `train` of the user's now: let go as carefully as held.
            rest = [row for row, each in zip(rows, tables, strict=True) if id(each) in others]
            self._special.update(rest)
            self._hold_special([(row, row in kept) for row in rest], rows)

    def _hold_special(self, rows: Sequence[tuple[int, bool]], all_rows: Sequence[int]) -> None:
        """Holds modules with a `train` of their own, with a hold already, or in train mode."""
        for row, train in rows:
            module = self.modules[row]
            hold = module.__dict__.get("train")
            if not isinstance(hold, Hold):
                replaced = module.__dict__.get("train")
                hold = Hold(module, train, self._modes[row], replaced)
                module.__dict__["train"] = hold
            hold.mode = train
            hold.give_dropout_back()
            if train:
                hold.dropout = module.__dict__["dropout"]
                module.__dict__["dropout"] = 0.0
        holds = [self.modules[row].__dict__["train"] for row in all_rows]
        asked = [hold.asked for hold in holds]
        for row, train in rows:
            _set_mode(self.modules[row], train)
        for hold, mode in zip(holds, asked, strict=True):
            hold.asked = mode

    def _let_go(self, letting_go: LettingGo) -> None:
        """Takes holds away: a module takes its parent's mode."""
        rows, tables, above = letting_go
        if not self._special.isdisjoint(rows):
            self._let_go_special(rows, restore=False)
            return
        for table, parent in zip(tables, above, strict=True):
            if isinstance(table.get("train"), Hold):
                del table["train"]
                table["training"] = parent["training"]

    def _let_go_special(self, rows: Iterable[int], *, restore: bool) -> None:
        """Takes holds away where switching the mode may do more than write it.

        A module takes its parent's mode, or, to `restore`, the mode it had before if nobody
        switched since. Below a class with a `train` of its own, that one decides.
        """
        dicts, special = self._dicts, self._special
        holds: list[tuple[int, Hold]] = []
        for row in rows:
            hold = dicts[row].get("train")
            if isinstance(hold, Hold):
                holds.append((row, hold))
                hold.remove()
        parents, settled = self._resolved._tree.parents, set[int]()
        for row, hold in holds:
            parent = parents[row]
            kept = hold.replaced is not None or (restore and hold.asked is None)
            if kept or parent < 0:
                mode = hold.before if kept or hold.asked is None else hold.asked
            elif parent in settled:
                settled.add(row)
                continue
            else:
                mode = dicts[parent]["training"]
            if row not in special:
                dicts[row]["training"] = mode
                continue
            _set_mode(hold.module, mode)
            if not kept and _has_own_train(hold.module):
                settled.add(row)


def check_writable(name: str, parameter: torch.nn.Parameter) -> None:
    """Raises where torch cannot change whether a parameter trains."""
    if is_lazy(parameter) or (parameter.is_leaf and not parameter.is_inference()):
        return
    kind = "not a leaf tensor" if parameter.is_inference() is False else "an inference tensor"
    raise FreezekitError(
        f"{name!r} is {kind}, so torch cannot change whether it trains; rebuild it as a "
        "torch.nn.Parameter outside torch.inference_mode()"
    )


def _has_own_train(module: torch.nn.Module) -> bool:
    return type(module).train is not torch.nn.Module.train


def _is_plain(module: torch.nn.Module) -> bool:
    """Returns whether writing `training` is all that a switch of mode does, its children aside."""
    cls = type(module)
    return (
        cls.train is torch.nn.Module.train
        and cls.__setattr__ is torch.nn.Module.__setattr__
        and not isinstance(module, torch.nn.RNNBase)
    )


def _set_mode(module: torch.nn.Module, mode: bool) -> None:
    """Sets the mode of one module; a `train` of its class's own is asked to do it."""
    if _has_own_train(module):
        type(module).train(module, mode)
    else:
        module.training = mode
