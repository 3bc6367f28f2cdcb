"""What a plan means for a model, the slow way: names and rules one by one, no automaton.

Written from the description of the semantics and from drawn patterns as data; it shares nothing
with freezekit but torch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple

from strategies import Case, DrawnRule, Item, Pattern, spelled_names
from torch import nn
from torch.nn.utils.parametrize import is_parametrized


class NoMatchError(Exception):
    """A pattern that selects nothing, or an index among children numbered with gaps."""


class ContradictionError(Exception):
    """Two names of one tensor of which different things are said."""


class State(NamedTuple):
    """What holds for one parameter at one moment."""

    trainable: bool
    by_rule: bool
    lr: float | None
    lr_mult: float | None
    weight_decay: float | None
    warmup_steps: int | None
    warmup_from: tuple[int, int] | None
    options: tuple[tuple[str, Any], ...]
    frozen_mode: str | None


def trace(model: nn.Module) -> dict[str, Any]:
    """Returns all that applying a plan could leave behind on a model, values aside."""
    modules = dict(model.named_modules())
    named = dict(model.named_parameters(remove_duplicate=False))
    return {
        "flags": {name: parameter.requires_grad for name, parameter in named.items()},
        "objects": {name: id(parameter) for name, parameter in named.items()},
        "modes": {name: module.training for name, module in modules.items()},
        "entries": {name: set(vars(module)) for name, module in modules.items()},
        "hooks": {
            name: {key: list(value) for key, value in vars(module).items() if "_hooks" in key}
            for name, module in modules.items()
        },
        "dropout": {name: vars(module).get("dropout") for name, module in modules.items()},
        "state": list(model.state_dict()),
    }


def child_of(module: nn.Module | None, name: str) -> nn.Module | None:
    """Returns a child module; None for a tensor and for the spelling of a parametrized one."""
    return None if module is None else module._modules.get(name)


def numbered(module: nn.Module) -> list[int]:
    """Returns the numbers among the names of a module's children, in order."""
    names = [name for name, child in module._modules.items() if child is not None]
    names += [name for name, tensor in module._parameters.items() if tensor is not None]
    return sorted(int(name) for name in names if name.isdecimal())


def reached(item: Item, module: nn.Module) -> list[str]:
    """Returns the names of the numbered children that an index reaches."""
    numbers = numbered(module)
    picked = numbers[item.index] if isinstance(item.index, slice) else []
    if isinstance(item.index, int) and -len(numbers) <= item.index < len(numbers):
        picked = [numbers[item.index]]
    return list(map(str, picked))


def is_a(item: Item, module: nn.Module | None) -> bool:
    """Returns whether a class test holds: bases by literal name, globs on the class name.

    The class that `parametrize` makes of the user's goes by both names.
    """
    if module is None:
        return False
    bases = [base.__name__ for base in type(module).__mro__]
    names = bases[:2] if bases[0] == f"Parametrized{bases[1]}" else bases[:1]
    return any(
        any(fnmatchcase(name, text) for name in names) if set(text) & set("*?") else text in bases
        for text in item.texts
    )


def covers(items: Sequence[Item], module: nn.Module | None, rest: Sequence[str]) -> bool:
    """Returns whether a pattern covers what lies at the path `rest` below `module`."""
    if not items:
        return True
    item, after = items[0], items[1:]
    below = child_of(module, rest[0]) if rest else None
    match item.kind:
        case "depth":
            return covers(after, module, rest) or (bool(rest) and covers(items, below, rest[1:]))
        case "class" if not after:
            own_tensor = len(rest) == 1 and below is None
            return is_a(item, module) and (not rest or own_tensor)
        case "class":
            return is_a(item, module) and covers(after, module, rest)
        case "index":
            hit = bool(rest) and module is not None and rest[0] in reached(item, module)
        case "name":
            hit = bool(rest) and any(fnmatchcase(rest[0], text) for text in item.texts)
    return hit and covers(after, below, rest[1:])


def meets_gap(items: Sequence[Item], all_items: Sequence[Item], path: list[nn.Module]) -> bool:
    """Returns whether an index reaches a child among some that are numbered with gaps.

    Where the pattern already covers all below the module, an index on the way down decides
    nothing. One that ends in a class covers a module's own tensors only.
    """
    module = path[-1]
    here = [name for parent, name in zip(path, _names_of(path), strict=False)]
    if not items or (all_items[-1].kind != "class" and covers(all_items, path[0], here)):
        return False
    item, after = items[0], items[1:]
    children = {name: child for name, child in module._modules.items() if child is not None}
    match item.kind:
        case "depth":
            further = [meets_gap(items, all_items, [*path, c]) for c in children.values()]
            return meets_gap(after, all_items, path) or any(further)
        case "class":
            return is_a(item, module) and meets_gap(after, all_items, path)
        case "index":
            names = reached(item, module)
            numbers = numbered(module)
            if names and numbers != list(range(len(numbers))):
                return True
        case "name":
            names = [n for n in children if any(fnmatchcase(n, text) for text in item.texts)]
    return any(meets_gap(after, all_items, [*path, children[n]]) for n in names if n in children)


def _names_of(path: list[nn.Module]) -> Iterator[str]:
    for parent, child in pairwise(path):
        yield next(name for name, module in parent._modules.items() if module is child)


@dataclass
class Target:
    """A tensor or a module with buffers, under one of its names and that name's spellings."""

    names: list[str]
    is_tensor: bool

    def hit_by(self, pattern: Pattern, model: nn.Module) -> bool:
        """Returns whether a pattern selects it."""
        if pattern.regex is not None:
            named = self.names if self.is_tensor else self.names[1:]
            return any(re.fullmatch(pattern.regex, name) for name in named)
        return any(covers(pattern.items, model, n.split(".") if n else []) for n in self.names)

    def selected_by(self, rule: DrawnRule, model: nn.Module) -> bool | None:
        """Returns whether a rule selects it (True), takes it away (False), or does not reach it.

        The last of its patterns that hits it says.
        """
        selected = None
        for pattern in rule.patterns:
            if self.hit_by(pattern, model):
                selected = not pattern.negated
        return selected


class Reference:
    """A plan resolved by brute force."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        """Finds all names and checks every pattern."""
        self.case, self.model = case, model
        self._edges = [
            (self._moment(rule, "at"), self._moment(rule, "until")) for rule in case.rules
        ]
        self._states: dict[tuple[int, ...], dict[str, State]] = {}
        self._held: dict[tuple[int, ...], set[str]] = {}
        self._selected: dict[tuple[int, int], bool | None] = {}
        spelled = spelled_names(model)
        self.tensors = {name: Target(names, True) for name, names in spelled.items()}
        self.buffered = {
            path: Target(_spelled_path(model, path), False)
            for path, module in model.named_modules(remove_duplicate=False)
            if any(buffer is not None for buffer in module._buffers.values())
        }
        self._check_patterns()
        everything = dict(model.named_parameters(remove_duplicate=False))
        self.canonical = [name for name, _ in model.named_parameters()]
        self.aliases = {
            name: [n for n, p in everything.items() if p is everything[name] and n != name]
            for name in self.canonical
        }
        first = {id(module): path for path, module in model.named_modules()}
        self._places: dict[str, set[str]] = {path: set() for path in first.values()}
        for module in model.modules():
            for child in module.children():
                self._places[first[id(child)]].add(first[id(module)])
        self.parameters = {name: everything[name] for name in self.canonical}
        self.flags = {name: p.requires_grad for name, p in self.parameters.items()}

    def in_list(self, moment: int) -> tuple[int, ...]:
        """Returns the numbers of the rules that are in the list at a moment.

        All else that is asked of a moment depends on these alone.
        """
        return tuple(
            number
            for number, (opens, closes) in enumerate(self._edges)
            if (opens is None or opens <= moment) and (closes is None or moment < closes)
        )

    def state(self, name: str, listed: Sequence[int]) -> State:
        """Returns what holds for a parameter with these rules.

        Raises:
            ContradictionError: two of its names disagree.
        """
        own = self.tensors[name]
        decided = self._winners(own, name, listed)
        said, through = dict(decided), dict.fromkeys(decided, name)
        for alias in self.aliases[name]:
            other = self.tensors[alias]
            if any(self._selects(number, other, name) is False for number, _ in decided.values()):
                raise ContradictionError(f"{name} selected, {alias} taken away")
            for key, (number, value) in self._winners(other, name, listed).items():
                if self._selects(number, own, name) is not None:
                    continue
                if key not in said:
                    said[key], through[key] = (number, value), alias
                elif said[key][1] != value:
                    raise ContradictionError(f"{through[key]} and {alias}: {key}")
        values = {key: value for key, (_, value) in said.items()}
        unit, rate = values.get("lr", (None, None))
        warms = said.get("warmup_steps")
        options = {k.removeprefix("options."): v for k, v in values.items() if "options." in k}
        return State(
            values.get("trainable", self.flags[name]),
            "trainable" in values,
            rate if unit == "lr" else None,
            rate if unit == "lr_mult" else None,
            values.get("weight_decay"),
            values.get("warmup_steps"),
            (self._edges[warms[0]][0] or 0, 0) if warms else None,
            tuple(sorted(options.items())),
            values.get("frozen_mode"),
        )

    def states(self, moment: int) -> dict[str, State]:
        """Returns what holds for every parameter, by canonical name."""
        listed = self.in_list(moment)
        if listed not in self._states:
            self._states[listed] = {name: self.state(name, listed) for name in self.canonical}
        return self._states[listed]

    def selection(self, rule: DrawnRule) -> set[str]:
        """Returns the tensors, by canonical name, and modules with buffers a rule selects."""
        first = {id(p): name for name, p in self.parameters.items()}
        named = dict(self.model.named_parameters(remove_duplicate=False))
        hit = {n for n, each in self.tensors.items() if each.selected_by(rule, self.model)}
        return {first[id(named[name])] for name in hit} | {
            f"{path}." for path, each in self.buffered.items()
            if each.selected_by(rule, self.model)
        }  # fmt: skip

    def held(self, moment: int) -> set[str]:
        """Returns the paths of the modules held in eval mode."""
        listed = self.in_list(moment)
        if listed not in self._held:
            self._held[listed] = self._found_held(self.states(moment), listed)
        return self._held[listed]

    def _found_held(self, states: dict[str, State], listed: Sequence[int]) -> set[str]:
        """Returns the paths of the modules held in eval mode with these rules.

        A module is held by what it contains, or because all places it stands at are. A place that
        would be held around a module that is not is opened instead, with all around it.
        """
        by_tensor = {id(p): states[name] for name, p in self.parameters.items()}
        modules = dict(self.model.named_modules())
        says = {path: self._fate(module, path, by_tensor, listed)
                for path, module in modules.items()}  # fmt: skip
        opened = {path for path, each in says.items() if each == "free"}
        while True:
            held = {
                path for path, module in modules.items() if says[path] == "hold"
                and not any(inner is modules[each] for inner in module.modules() for each in opened)
            }  # fmt: skip
            while more := {
                path for path in modules if path not in held and self._places[path]
                and all(place in held for place in self._places[path])
            }:  # fmt: skip
                held |= more
            torn = {
                place for path in modules if path not in held
                for place in self._places[path] if place in held
            }  # fmt: skip
            if not torn:
                return held - self._recurrent_behind_trainable(states, held)
            opened |= torn

    def _fate(
        self, module: nn.Module, path: str, by_tensor: dict[int, State], listed: Sequence[int]
    ) -> str:
        """Returns what a module's own contents say: "hold", "free", or "follow" its parent."""
        states = [by_tensor[id(p)] for p in module.parameters()]
        if states:
            frozen = not any(s.trainable or s.frozen_mode == "train" for s in states)
            return "hold" if frozen and any(s.by_rule for s in states) else "partial"
        if path not in self.buffered:
            return "follow"
        said = self._winners(self.buffered[path], None, listed)
        values = {key: value for key, (_, value) in said.items()}
        if values.get("frozen_mode") == "train":
            return "free"
        return {False: "hold", True: "free", None: "follow"}[values.get("trainable")]

    def _recurrent_behind_trainable(self, states: dict[str, State], held: set[str]) -> set[str]:
        """Returns the held RNNs that come after a parameter that trains."""
        order = [path for path, _ in self.model.named_modules()]
        trains = [order.index(n.rpartition(".")[0]) for n, s in states.items() if s.trainable]
        return {
            path for path in held
            if isinstance(self.model.get_submodule(path), nn.RNNBase)
            and trains and min(trains) < order.index(path)
        }  # fmt: skip

    def _winners(
        self, target: Target, name: str | None, listed: Sequence[int]
    ) -> dict[str, tuple[int, Any]]:
        """Returns, by property, the last rule in the list that sets it, and the value."""
        found: dict[str, tuple[int, Any]] = {}
        for number in listed:
            if self._selects(number, target, name):
                settings = _settings(self.case.rules[number])
                found.update((key, (number, value)) for key, value in settings)
        return found

    def _selects(self, number: int, target: Target, name: str | None) -> bool | None:
        """Returns what `selected_by` says of a target; `name` is a tensor's canonical one."""
        rule = self.case.rules[number]
        if rule.verb == "no_decay" and not (name and self._is_small(name)):
            return None
        key = number, id(target)
        if key not in self._selected:
            self._selected[key] = target.selected_by(rule, self.model)
        return self._selected[key]

    def _is_small(self, name: str) -> bool:
        return name.rpartition(".")[2].startswith("bias") or self.parameters[name].dim() <= 1

    def _moment(self, rule: DrawnRule, edge: str) -> int | None:
        per_epoch = self.case.totals.get("steps_per_epoch", 1)
        by_step = self.case.clock == "step"
        epochs = self.case.totals.get("total_epochs", 0)
        total = self.case.totals.get("total_steps", epochs * per_epoch) if by_step else epochs
        for unit in ("epoch", "step", "fraction"):
            value = rule.properties.get(f"{edge}_{unit}")
            if value is not None:
                if unit == "fraction":
                    return ceil(Fraction(str(value)) * total)
                return value * per_epoch if unit == "epoch" and by_step else value
        return None

    def _check_patterns(self) -> None:
        targets = [*self.tensors.values(), *self.buffered.values()]
        modules = [
            Target([path], False) for path, _ in self.model.named_modules(remove_duplicate=False)
        ]
        for rule in self.case.rules:
            for pattern in rule.patterns:
                for each in [pattern, *_alternatives(pattern)]:
                    if meets_gap(each.items, each.items, [self.model]):
                        raise NoMatchError(f"{pattern}: gap")
                    if rule.properties.get("missing_ok"):
                        continue
                    among = targets if each is pattern else [*targets, *modules]
                    if not any(target.hit_by(each, self.model) for target in among):
                        raise NoMatchError(f"{pattern}: {each}")


def _alternatives(pattern: Pattern) -> Iterator[Pattern]:
    for at, item in enumerate(pattern.items):
        for text in item.texts if len(item.texts) > 1 else ():
            items = [*pattern.items]
            items[at] = Item(item.kind, (text,))
            yield Pattern(tuple(items))


def _settings(rule: DrawnRule) -> Iterator[tuple[str, Any]]:
    if rule.verb in ("freeze", "unfreeze"):
        yield "trainable", rule.verb == "unfreeze"
    if rule.verb == "no_decay":
        yield "weight_decay", 0.0
    for key, value in rule.properties.items():
        if key in ("lr", "lr_mult"):
            yield "lr", (key, value)
        elif key == "options":
            yield from ((f"options.{name}", each) for name, each in value.items())
        elif key in ("weight_decay", "warmup_steps", "frozen_mode"):
            yield key, value


def _spelled_path(model: nn.Module, path: str) -> list[str]:
    """Returns the path of a module, with the spelling of the tensor it parametrizes."""
    head, found, tail = path.rpartition("parametrizations.")
    inside = found and is_parametrized(model.get_submodule(head[:-1]))
    return [path, head + tail.partition(".")[0]] if inside else [path]
