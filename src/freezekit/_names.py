"""The names of a model: one walk over its modules, wrappers stripped, aliases kept.

The walk carries a plan's automaton down with it and reads names, classes, shapes and flags; it
writes nothing and keeps no tensor.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.nn.utils.parametrize import is_parametrized

from ._automaton import Automaton, Reached, State
from ._glob import class_name
from ._sharding import is_flattened, may_be_sharded, own_shapes

MARK = "_freezekit"
"""Where the modules of an applied model keep the flags they had before: in their `__dict__`."""

_WRAPPERS = {
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
    ("torch.optim.swa_utils", "AveragedModel"): "module",
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    (
        "torch.distributed.fsdp.fully_sharded_data_parallel",
        "FullyShardedDataParallel",
    ): "_fsdp_wrapped_module",
    (
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper",
        "CheckpointWrapper",
    ): "_checkpoint_wrapped_module",
}
"""Torch's wrapper classes, and the child in which each holds the wrapped module."""


class Alias(NamedTuple):
    """A further name of a parameter that has a row already.

    Attributes:
        name: the further name.
        row: the parameter's row.
        accept: accept id of the further name.
        owner: row of the module under which the name stands.
    """

    name: str
    row: int
    accept: int
    owner: int


class Tree:
    """A model's structure in columns.

    Parameters stand in the order of `named_parameters()`, modules in that of `named_modules()`;
    both are pre-orders, so whatever lies below a module is contiguous.

    Attributes:
        names: canonical parameter names.
        shapes: their shapes; None for a lazy parameter without one yet.
        dtypes: their dtypes.
        flags: their `requires_grad`.
        accepts: accept id of each.
        owners: row of the module each stands in.
        prefixes: module paths, each with a dot behind it, "" for the root.
        class_names: names of their classes.
        parents: row of each module's parent, -1 for the root.
        module_accepts: accept id of each module's own tensors.
        buffered: rows of the modules with buffers of their own.
        marked: rows of the modules that an applied plan has marked.
        recurrent: rows of the `torch.nn.RNNBase` modules.
        aliases: further names of tied parameters and of what shared modules hold.
        spelled: names that spell parametrized tensors, with the rows' name prefix.
        shared_accepts: accept ids met under second names of shared modules with buffers.
        shared: for each further place of a shared module, the row above and its own.
        cut: names of the parameters of which only a flattened part is known.
    """

    def __init__(self) -> None:
        """Makes columns without rows."""
        self.names: list[str] = []
        self.shapes: list[torch.Size | None] = []
        self.dtypes: list[torch.dtype] = []
        self.flags: list[bool] = []
        self.accepts: list[int] = []
        self.owners: list[int] = []
        self.prefixes: list[str] = []
        self.class_names: list[str] = []
        self.parents: list[int] = []
        self.module_accepts: list[int] = []
        self.buffered: list[int] = []
        self.marked: list[int] = []
        self.recurrent: list[int] = []
        self.aliases: list[Alias] = []
        self.spelled: dict[str, str] = {}
        self.shared_accepts: set[int] = set()
        self.shared: list[tuple[int, int]] = []
        self.cut: list[str] = []

    def bare(self) -> list[int]:
        """Returns the rows of modules with buffers and no parameter at or below them."""
        if not self.buffered:
            return []
        above = {-1}
        for owner in (*self.owners, *(alias.owner for alias in self.aliases)):
            while owner not in above:
                above.add(owner)
                owner = self.parents[owner]
        return [row for row in self.buffered if row not in above]

    def hits(self) -> set[int]:
        """Returns the accept ids of all that a pattern can select."""
        found = set(self.accepts) | self.shared_accepts
        found.update(alias.accept for alias in self.aliases)
        found.update(self.module_accepts[row] for row in self.buffered)
        return found


def is_bias(leaf: str) -> bool:
    """Returns whether a parameter is a bias, by its name in its module."""
    return leaf == "bias" or leaf.startswith("bias_") or leaf.endswith("_bias")


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the module inside torch's wrappers."""
    while inner := _wrapped_name(type(module)):
        module = getattr(module, inner)
    return module


def wrappers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yields torch's wrappers around a module, outermost first."""
    while inner := _wrapped_name(type(module)):
        yield module
        module = getattr(module, inner)


def _wrapped_name(cls: type) -> str | None:
    bases = ((base.__module__, base.__qualname__) for base in cls.__mro__)
    return next((_WRAPPERS[base] for base in bases if base in _WRAPPERS), None)


class Walk(NamedTuple):
    """A tree with the modules it was read from.

    Attributes:
        tree: the columns.
        modules: the module of each row.
    """

    tree: Tree
    modules: list[torch.nn.Module]


def walk(model: torch.nn.Module, automaton: Automaton) -> Walk:
    """Visits every module once, in the order of `named_modules()`.

    The inner function runs once per module of models with 100,000 of them: whatever can be read
    from the collected lists afterwards is, and rare things are left to functions of their own.

    Raises:
        PatternError: an index reaches children that are numbered with gaps.
    """
    tree = Tree()
    modules: list[torch.nn.Module] = []
    parameters: list[torch.nn.Parameter] = []
    shared: list[_Shared] = []
    seen: set[int] = set()
    plain: set[type] = set()
    wrapped = [*wrappers(model)]
    spelled: dict[int, int] = {}
    add_module, add_parameter, add_name = modules.append, parameters.append, tree.names.append
    add_accept, add_owner = tree.accepts.append, tree.owners.append
    add_prefix, add_parent = tree.prefixes.append, tree.parents.append
    add_module_accept = tree.module_accepts.append

    def visit(module: torch.nn.Module, prefix: str, parent: int, state: State) -> None:
        key = id(module)
        if key in seen:
            shared.append(_Shared(module, prefix, parent, state))
            return
        seen.add(key)
        row = len(modules)
        add_module(module)
        add_prefix(prefix)
        add_parent(parent)
        add_module_accept(state.accept)
        attributes = module.__dict__  # looked up once: this runs for every module
        if attributes["_buffers"] and _has_buffers(module):
            tree.buffered.append(row)
        if MARK in attributes:
            tree.marked.append(row)
        children = attributes["_modules"]
        reached = _reached(automaton, module, prefix, state) if state.indices else _NOTHING
        known = state.parameters
        for name, parameter in attributes["_parameters"].items():
            if parameter is not None:
                accept = None if reached else known.get(name)
                if accept is None:
                    accept = automaton.parameter(state, name, reached.get(name, ()))
                add_name(prefix + name)
                add_parameter(parameter)
                add_accept(accept)
                add_owner(row)
        if not children:
            return
        if "parametrizations" in children and is_parametrized(module):
            spelled.update(_spell(automaton, module, prefix, state, reached, tree))
        steps = state.children
        for name, child in children.items():
            if child is None:
                continue
            cls = type(child)
            if cls not in plain:
                wrapped.extend(wrappers(child))
                child = unwrap(child)
                cls = type(child)
                plain.add(cls)
            by_name = None if reached else steps.get(cls)
            step = by_name.get(name) if by_name else None
            if step is None:
                step = automaton.child(state, name, cls, reached.get(name, ()))
            if spelled and id(child) in spelled:
                step = automaton.covered(step, spelled[id(child)])
            visit(child, f"{prefix}{name}.", row, step)

    root = unwrap(model)
    visit(root, "", -1, automaton.start(type(root)))
    _read_modules(tree, modules)
    _read_parameters(tree, parameters, automaton)
    if wrapped or may_be_sharded():
        _unflatten(tree, parameters, wrapped)
    rows = {id(parameter): row for row, parameter in enumerate(parameters)} if shared else {}
    if shared:
        module_rows = {id(module): row for row, module in enumerate(modules)}
        tree.shared = [(each.owner, module_rows[id(each.module)]) for each in shared]
    for second in shared:
        _alias(tree, automaton, second, rows, {}, frozenset(), set())
    return Walk(tree, modules)


class _Shared(NamedTuple):
    """A module met under a further name."""

    module: torch.nn.Module
    prefix: str
    owner: int
    state: State


_NOTHING: dict[str, Reached] = {}
_MANY_ALIASES = 1_000


def _reached(
    automaton: Automaton, module: torch.nn.Module, prefix: str, state: State
) -> dict[str, Reached]:
    names = [
        name
        for table in (module._parameters, module._modules)
        for name, value in table.items()
        if value is not None
    ]
    return automaton.numbered(state, prefix[:-1], names)


def _spell(
    automaton: Automaton,
    module: torch.nn.Module,
    prefix: str,
    state: State,
    reached: dict[str, Reached],
    tree: Tree,
) -> dict[int, int]:
    """Returns what patterns that name a parametrized tensor select, by the list it is made of."""
    found = {}
    lists = module._modules["parametrizations"]
    assert lists is not None
    for name, below in lists.named_children():
        accept = automaton.parameter(state, name, reached.get(name, ()))
        found[id(below)] = automaton.with_regexes(accept, prefix + name)
        tree.spelled[prefix + name] = f"{prefix}parametrizations.{name}"
    return found


def _read_modules(tree: Tree, modules: list[torch.nn.Module]) -> None:
    classes = [type(module) for module in modules]
    names = {cls: class_name(cls) for cls in set(classes)}
    tree.class_names = [names[cls] for cls in classes]
    recurrent = {cls for cls in names if issubclass(cls, torch.nn.RNNBase)}
    if recurrent:
        tree.recurrent = [row for row, cls in enumerate(classes) if cls in recurrent]


def _read_parameters(
    tree: Tree, parameters: list[torch.nn.Parameter], automaton: Automaton
) -> None:
    """Fills the parameters' columns, moving further names of a tied tensor to the aliases."""
    if automaton.regexes:
        tree.accepts[:] = map(automaton.with_regexes, tree.accepts, tree.names)
    if len(set(map(id, parameters))) < len(parameters):
        _split_tied(tree, parameters)
    shapes: dict[torch.Size, torch.Size] = {}  # one object per shape: fewer for the collector
    flags, dtypes, found = tree.flags, tree.dtypes, tree.shapes
    for parameter in parameters:  # in one go: a parameter's memory is far away
        flags.append(parameter.requires_grad)
        dtypes.append(parameter.dtype)
        try:
            shape = parameter.shape
        except RuntimeError:  # it has none yet
            found.append(None)
        else:
            found.append(shapes.setdefault(shape, shape))


def _unflatten(
    tree: Tree, parameters: list[torch.nn.Parameter], wrapped: Iterable[torch.nn.Module]
) -> None:
    """Gives flattened and emptied parameters the shapes they have in the model."""
    shapes = dict(own_shapes(wrapped))
    for row, parameter in enumerate(parameters):
        if hasattr(parameter, "ds_shape"):  # ZeRO 3
            tree.shapes[row] = parameter.ds_shape
        elif is_flattened(parameter):
            shape = shapes.get(id(parameter))
            if shape is None:
                tree.cut.append(tree.names[row])
            else:
                tree.shapes[row] = shape


def _split_tied(tree: Tree, parameters: list[torch.nn.Parameter]) -> None:
    rows: dict[int, int] = {}
    columns = list(zip(tree.names, parameters, tree.accepts, tree.owners, strict=True))
    kept: list[tuple[str, torch.nn.Parameter, int, int]] = []
    for name, parameter, accept, owner in columns:
        row = rows.setdefault(id(parameter), len(kept))
        if row == len(kept):
            kept.append((name, parameter, accept, owner))
        else:
            tree.aliases.append(Alias(name, row, accept, owner))
    tree.names[:] = [each[0] for each in kept]
    parameters[:] = [each[1] for each in kept]
    tree.accepts[:] = [each[2] for each in kept]
    tree.owners[:] = [each[3] for each in kept]


def _alias(
    tree: Tree,
    automaton: Automaton,
    second: _Shared,
    rows: dict[int, int],
    spelled: dict[int, int],
    above: frozenset[int],
    done: set[tuple[int, int]],
) -> None:
    """Notes the further names of everything below a module that has a row already.

    Modules that share each other have exponentially many names; past a bound, a place where the
    patterns stand as they did before is not entered again.
    """
    module, prefix, owner, state = second
    place = (id(module), id(state))
    crowded = len(tree.aliases) > _MANY_ALIASES + 10 * len(tree.names) or len(done) > _MANY_ALIASES
    if id(module) in above or (crowded and place in done):
        return
    done.add(place)
    if _has_buffers(module):
        tree.shared_accepts.add(state.accept)
    reached = _reached(automaton, module, prefix, state) if state.indices else _NOTHING
    for name, parameter in module._parameters.items():
        if parameter is not None:
            accept = automaton.parameter(state, name, reached.get(name, ()))
            accept = automaton.with_regexes(accept, prefix + name)
            tree.aliases.append(Alias(prefix + name, rows[id(parameter)], accept, owner))
    if is_parametrized(module):
        spelled = spelled | _spell(automaton, module, prefix, state, reached, tree)
    for name, child in module._modules.items():
        if child is not None:
            inner = unwrap(child)
            step = automaton.child(state, name, type(inner), reached.get(name, ()))
            if id(inner) in spelled:
                step = automaton.covered(step, spelled[id(inner)])
            below = _Shared(inner, f"{prefix}{name}.", owner, step)
            _alias(tree, automaton, below, rows, spelled, above | {id(module)}, done)


def _has_buffers(module: torch.nn.Module) -> bool:
    return any(buffer is not None for buffer in module._buffers.values())
