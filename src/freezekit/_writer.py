"""The only module that writes to a model: flags, gradients, modes and what remembers them."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

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

    def __init__(self, module: torch.nn.Module, mode: bool, before: bool) -> None:
        self.module = module
        self.mode = mode
        self.before = before
        self.replaced = module.__dict__.get("train")
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


Edge: TypeAlias = tuple[Mapping[str, torch.nn.Module | None], str, int]
"""A module's table of children, a name in it, and the row of the module that stands there."""


class Change(NamedTuple):
    """What differs between two phases, by row, and the way to it.

    Attributes:
        freeze: parameters to freeze.
        unfreeze: parameters to let train.
        hold: modules to hold, and whether in train mode.
        let_go: modules to hold no more, parents first.
        edges: the way to each of their modules.
    """

    freeze: Sequence[int]
    unfreeze: Sequence[int]
    hold: Sequence[tuple[int, bool]]
    let_go: Sequence[int]
    edges: Sequence[Edge]


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
                freeze=[row for row, each in rows if each.decided and not each.trainable],
                unfreeze=[row for row, each in rows if each.trainable and not tree.flags[row]],
                hold=[(row, row in kept) for row, is_held in enumerate(held) if is_held],
                let_go=(),
                edges=(),
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
            (row, row in new_kept)
            for row, is_held in enumerate(new)
            if is_held and (not old[row] or (row in old_kept) != (row in new_kept))
        ]
        let_go = [row for row, was in enumerate(old) if was and not new[row]]
        owners = resolved._tree.owners
        touched = {owners[row] for row in (*freeze, *unfreeze)} | {row for row, _ in hold}
        return Change(freeze, unfreeze, hold, let_go, self._edges(touched.union(let_go)))

    def _edges(self, rows: Iterable[int]) -> list[Edge]:
        tree = self._resolved._tree
        edges: list[Edge] = []
        known = {0}
        for row in rows:
            while row not in known:
                known.add(row)
                parent = tree.parents[row]
                leaf = sys.intern(tree.prefixes[row][len(tree.prefixes[parent]) : -1])
                edges.append((self.modules[parent]._modules, leaf, row))
                row = parent
        return edges

    def check(self, change: Change) -> None:
        """Raises if a module that a change touches was replaced since the plan was applied."""
        modules = self.modules
        for table, leaf, row in change.edges:
            child = table.get(leaf)
            if child is not modules[row] and (child is None or unwrap(child) is not modules[row]):
                path = self._resolved._tree.prefixes[row][:-1]
                raise FreezekitError(
                    f"{path!r} was replaced since the plan was applied; release the plan and apply "
                    "it again"
                )

    def check_whole(self) -> None:
        """Raises if any module was replaced since the plan was applied."""
        edges = self._edges(range(len(self.modules)))
        self.check(Change((), (), (), (), edges))

    def carry_out(self, change: Change) -> None:
        """Writes a change: flags, cleared gradients, modes.

        Raises:
            FreezekitError: a parameter is gone or cannot be written; nothing is written then.
        """
        self._open(change.unfreeze)
        try:
            self._close(change.freeze)
        except FreezekitError:
            self._flag(change.unfreeze, False)
            raise
        self._let_go(change.let_go)
        self._hold(change.hold)

    def _open(self, rows: Sequence[int]) -> None:
        """Lets parameters train; all of them or none."""
        tables, leaves = self._tables, self._leaves
        row = -1
        try:
            for row in rows:
                tables[row][leaves[row]].requires_grad = True  # type: ignore[union-attr]
        except (KeyError, AttributeError, RuntimeError):
            self._flag(rows[: rows.index(row)], False)
            raise self._unwritable(row) from None

    def _close(self, rows: Sequence[int]) -> None:
        """Freezes parameters and clears their gradients; all of them or none."""
        tables, leaves = self._tables, self._leaves
        cleared: list[tuple[torch.Tensor, torch.Tensor]] = []
        row = -1
        try:
            for row in rows:
                parameter: Any = tables[row][leaves[row]]
                parameter.requires_grad = False
                grad = parameter.grad
                if grad is not None:
                    cleared.append((parameter, grad))
                    parameter.grad = None
        except (KeyError, AttributeError, RuntimeError):
            self._flag(rows[: rows.index(row)], True)
            for parameter, grad in cleared:
                parameter.grad = grad
            raise self._unwritable(row) from None

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

    def _hold(self, rows: Sequence[tuple[int, bool]]) -> None:
        """Holds modules in eval, or in train mode without dropout where told to."""
        dicts, holds, special = self._dicts, self._holds, self._special
        rest = []
        for row, train in rows:
            table = dicts[row]
            if row in special or "train" in table:
                rest.append((row, train))
                continue
            hold = holds[row]
            if hold is None:
                hold = holds[row] = Hold(self.modules[row], False, self._modes[row])
            hold.asked = None
            table["train"] = hold
            table["training"] = False
        if rest:  # These may have a `train` of the user's now: let go as carefully as held.
            special.update(row for row, _ in rest)
            self._hold_special(rest, [row for row, _ in rows])

    def _hold_special(self, rows: Sequence[tuple[int, bool]], all_rows: Sequence[int]) -> None:
        """Holds modules with a `train` of their own, with a hold already, or in train mode."""
        for row, train in rows:
            module = self.modules[row]
            hold = module.__dict__.get("train")
            if not isinstance(hold, Hold):
                hold = Hold(module, train, self._modes[row])
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

    def _let_go(self, rows: Sequence[int]) -> None:
        """Takes holds away, parents first: a module takes its parent's mode."""
        if not self._special.isdisjoint(rows):
            self._let_go_special(rows, restore=False)
            return
        dicts, parents = self._dicts, self._resolved._tree.parents
        for row in rows:
            table = dicts[row]
            if isinstance(table.get("train"), Hold):
                del table["train"]
                table["training"] = dicts[parents[row]]["training"]

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
