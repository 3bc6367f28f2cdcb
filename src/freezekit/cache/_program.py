"""What two traces have in common: what is stored of a pass, and what is left out when it is."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.utils._pytree import TreeSpec

from ._events import Event, Source
from ._refusals import refuse
from ._watch import Watch

Origin: TypeAlias = tuple[Any, ...]
Dim: TypeAlias = int | Literal["B", "L"]
"""One dimension of a tensor: a size, that of the batch, or the length of its longest row."""


class Tap(NamedTuple):
    """A tensor that crosses from what is constant into the rest: stored row by row.

    Attributes:
        name: a digest of where its values come from.
        text: the module or function that gives it.
        row_shape: the shape of a row; None for the length of the row.
        dtype: of the values.
    """

    name: str
    text: str
    row_shape: tuple[int | None, ...]
    dtype: torch.dtype


class Slot(NamedTuple):
    """An output that is stored: the number of its tap."""

    tap: int


class Hole(NamedTuple):
    """An output that nothing reads but its shape, dtype and device."""

    dims: tuple[Dim, ...]
    dtype: torch.dtype
    device: torch.device


class Given(NamedTuple):
    """An output that is the same in every pass."""

    value: Any

    def fresh(self) -> Any:  # noqa: ANN401
        """Returns the value, a tensor as a copy."""
        return self.value.clone() if isinstance(self.value, torch.Tensor) else self.value


class Action(NamedTuple):
    """What becomes of an event: left out, its outputs come from elsewhere; or run as it is.

    Attributes:
        skip: whether it is left out.
        at: its number.
        given: which outputs of events it takes.
        marks: whether functions count that take its outputs.
        spec: how its outputs are nested.
        leaves: where they come from.
    """

    skip: bool
    at: int
    given: tuple[Source, ...]
    marks: bool
    spec: TreeSpec | None
    leaves: tuple[Slot | Hole | Given, ...]


class Sizes(NamedTuple):
    """The sizes of the batches of two traces, and the lengths of their rows where those vary."""

    batch: tuple[int, int]
    length: tuple[int, int] | None


class Program(NamedTuple):
    """How a pass goes when what is constant is not computed.

    Attributes:
        taps: what is stored.
        calls: for each path of a module of which calls matter, what becomes of each call that is
            not within another; None for one that is nothing special.
        functions: the functions of torch outside of these calls that take what events give, up
            to the last that is left out or gives something to a call.
        roots: the arguments that what is stored depends on.
        modules: paths of the modules that are left out, or have a part in what is stored.
        tensors: what else has a part in it: kind, path of the module, and name of a tensor there.
        actions: what becomes of each event, in order.
        early: whether a module that trains is called before all is there that is stored.
    """

    taps: tuple[Tap, ...]
    calls: dict[str, list[Action | None]]
    functions: list[tuple[object, Action]]
    roots: frozenset[int]
    modules: tuple[str, ...]
    tensors: tuple[tuple[str, str, str], ...]
    actions: tuple[Action, ...]
    early: bool


def combine(first: Watch, second: Watch, sizes: Sizes, *, functions: bool) -> Program:
    """Returns the program that two traces over different batches agree on.

    Args:
        first: a trace.
        second: another, of another number of rows.
        sizes: what they were of.
        functions: whether functions are left out too that only work on what frozen calls give.

    Raises:
        CacheRefusedError: the passes went different ways, or what crosses has no rows.
    """
    _check_same(first, second)
    choice = _Choice(first, second, sizes, functions=functions)
    names = _Names(first.events, second.events)
    taps: list[Tap] = []
    numbers: dict[Source, int] = {}
    for at, number in sorted(choice.cuts):
        leaf = first.events[at].leaves[number]
        if number in second.events[at].mixed:
            refuse(
                "interactions",
                f"rows depend on each other: in what {first.events[at].name!r} gives, something "
                "has a part that is made of all rows of a batch, such as a maximum or a mean",
                "compute it of each row, or name a boundary below with boundary=...",
            )
        dims = choice.dims((at, number))
        row_shape = tuple(None if dim == "L" else dim for dim in dims[1:] if dim != "B")
        digest = hashlib.blake2b(
            f"{names.of(at)} {number} {row_shape} {leaf.dtype}".encode(), digest_size=16
        ).hexdigest()
        numbers[at, number] = len(taps)
        taps.append(Tap(digest, first.events[at].name, row_shape, leaf.dtype))
    actions = [choice.action(at, numbers) for at in range(len(first.events))]
    calls: dict[str, list[Action | None]] = {}
    for call in first.calls:
        if call.within is None:
            action = None if call.event is None else actions[call.event]
            calls.setdefault(call.path, []).append(action)
    kept = [at for at, event in enumerate(first.events) if event.kind == "function"]
    listed = [(first.events[at].func, actions[at]) for at in kept]
    wanted = {at for event in first.events if event.kind == "call" for at, _ in event.given}
    while listed and not (listed[-1][1].skip or listed[-1][1].at in wanted):
        listed.pop()
    behind = choice.skipped.union(*(first.events[at].behind for at, _ in choice.cuts))
    part = [first.events[at] for at in sorted(behind)]
    return Program(
        taps=tuple(taps),
        calls={path: found for path, found in calls.items() if any(found)},
        functions=listed,
        roots=frozenset().union(*(first.events[at].roots for at, _ in choice.cuts)),
        modules=tuple(dict.fromkeys(event.name for event in part if event.kind == "call")),
        tensors=tuple(dict.fromkeys(_own_tensors(part, first.looked))),
        actions=tuple(actions),
        early=first.trains_before(max((at for at, _ in choice.cuts), default=-1)),
    )


def _own_tensors(events: Iterable[Event], looked: Iterable[object]) -> Iterator[Origin]:
    """Yields the tensors of modules that functions outside of frozen calls take."""
    waiting = [origin for event in events for origin in event.arguments]
    waiting += looked
    seen: set[int] = set()
    while waiting:
        origin = waiting.pop()
        if not isinstance(origin, tuple) or id(origin) in seen:
            continue
        seen.add(id(origin))  # One tensor may have a part in many, in many ways.
        if origin[:1] in (("parameter",), ("buffer",), ("attribute",)):
            yield origin
        else:
            waiting += origin


def _check_same(first: Watch, second: Watch) -> None:
    """Raises if two passes went different ways."""
    for one, other in zip(first.events, second.events, strict=False):
        if (one.kind, one.name, one.given) != (other.kind, other.name, other.given) or (
            one.spec != other.spec
        ):
            refuse(
                "control_flow",
                f"what is computed depends on the values of the batch: where one batch went "
                f"through {one.name!r}, another went through {other.name!r}",
                "name a boundary below it with boundary=..., or do without the cache",
            )
    if len(first.events) != len(second.events) or first.calls != second.calls:
        refuse(
            "control_flow",
            f"what is computed depends on the values of the batch: one took "
            f"{len(first.events)} operations around its frozen parts, another "
            f"{len(second.events)}",
            "name a boundary below it with boundary=..., or do without the cache",
        )


class _Choice:
    """Which events are left out, and which of their outputs are stored for that.

    Everything that can be left out is, at first. Then comes back what cannot be replaced (what is
    read and has no rows, and what nothing is known of), what costs nothing to compute, such as a
    lookup, and what saves nothing, since all that it takes is there.
    """

    def __init__(self, first: Watch, second: Watch, sizes: Sizes, *, functions: bool) -> None:
        self._events = (first.events, second.events)
        self._sizes = sizes
        self._returned = first.returned
        self.skipped = {
            at
            for at, event in enumerate(first.events)
            if event.skippable and (functions or event.kind == "call")
        }
        while lost := [at for at in sorted(self.skipped) if not self._replaceable(at)]:
            self.skipped.discard(lost[0])
        while cheap := [at for at, _ in sorted(self.cuts) if not self._heavy(at)]:
            self.skipped.discard(cheap[-1])
        while idle := [at for at in sorted(self.skipped) if self._idle(at)]:
            self.skipped.discard(idle[0])

    @property
    def read(self) -> set[Source]:
        """The outputs whose values are read by something that runs."""
        found = set(self._returned)
        for at, event in enumerate(self._events[0]):
            if at not in self.skipped:
                found |= event.reads
        return found

    @property
    def cuts(self) -> set[Source]:
        """The outputs that are stored."""
        return {
            source for source in self.read if source[0] in self.skipped and self._has_rows(source)
        }

    def dims(self, source: Source) -> tuple[Dim, ...]:
        """Returns the dimensions of an output; none where they are not understood."""
        one, other = self._pair(source)
        if one.dim() != other.dim():
            return ()
        dims: list[Dim] = []
        for at, pair in enumerate(zip(one.shape, other.shape, strict=True)):
            if at == 0 and pair == self._sizes.batch:
                dims.append("B")
            elif pair == self._sizes.length and pair[0] != pair[1]:
                dims.append("L")
            elif pair[0] == pair[1]:
                dims.append(pair[0])
            else:
                return ()
        return tuple(dims)

    def action(self, at: int, numbers: dict[Source, int]) -> Action:
        """Returns what becomes of an event."""
        event = self._events[0][at]
        marks = event.kind == "call" or event.skippable
        if at not in self.skipped:
            return Action(False, at, event.given, marks, None, ())
        leaves: list[Slot | Hole | Given] = []
        for number, leaf in enumerate(event.leaves):
            if not isinstance(leaf, torch.Tensor):
                leaves.append(Given(leaf))
            elif (at, number) in numbers:
                leaves.append(Slot(numbers[at, number]))
            elif (at, number) in self.read:
                leaves.append(Given(leaf))
            else:
                leaves.append(Hole(self.dims((at, number)), leaf.dtype, leaf.device))
        return Action(True, at, event.given, marks, event.spec, tuple(leaves))

    def _pair(self, source: Source) -> tuple[torch.Tensor, torch.Tensor]:
        at, number = source
        return self._events[0][at].leaves[number], self._events[1][at].leaves[number]

    def _replaceable(self, at: int) -> bool:
        """Returns whether every output of an event can come from elsewhere."""
        read = self.read
        for number, (leaf, other) in enumerate(
            zip(*(events[at].leaves for events in self._events), strict=True)
        ):
            if not isinstance(leaf, torch.Tensor):
                if leaf != other:
                    return False
            elif (at, number) in read:
                if not (self._has_rows((at, number)) or self._is_given((at, number))):
                    return False
            elif len(self.dims((at, number))) != leaf.dim():
                return False
        return True

    def _has_rows(self, source: Source) -> bool:
        dims = self.dims(source)
        return bool(dims) and dims[0] == "B" and "L" not in dims[2:]

    def _is_given(self, source: Source) -> bool:
        """Returns whether an output is the same in every pass, whatever the arguments are."""
        one, other = self._pair(source)
        free = source[1] in self._events[0][source[0]].free
        return free and one.shape == other.shape and torch.equal(one, other)

    def _heavy(self, at: int) -> bool:
        """Returns whether the values of an event are dearer to compute than to store."""
        events = self._events[0]
        return any(events[behind].heavy for behind in events[at].behind)

    def _idle(self, at: int) -> bool:
        """Returns whether leaving a function out saves nothing: all that it reads is there."""
        event = self._events[0][at]
        if event.kind == "call":
            return False
        holes = (
            source for source in event.reads if source[0] in self.skipped
            and source not in self.cuts and not self._read_given(source)
        )  # fmt: skip
        return not any(True for _ in holes)

    def _read_given(self, source: Source) -> bool:
        return source in self.read and self._is_given(source)


class _Names:
    """Names events by all that has a part in their values, the same in every pass."""

    def __init__(self, first: Sequence[Event], second: Sequence[Event]) -> None:
        self._events = (first, second)
        self._known: dict[int, str] = {}
        self._told: dict[tuple[int, int], str] = {}

    def of(self, at: int) -> str:
        """Returns the name of an event."""
        if at not in self._known:
            one, other = (events[at] for events in self._events)
            pairs = zip(one.arguments, other.arguments, strict=True)
            text = ", ".join(self._origin(*pair) for pair in pairs)
            digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            self._known[at] = f"{one.name}({digest})"
        return self._known[at]

    def _origin(self, one: object, other: object) -> str:
        if not (isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other)):
            return repr(one) if one == other else "*"
        if one[:1] == ("event",):
            return f"{self.of(one[1])}.{one[2]}"
        known = (id(one), id(other))
        if known not in self._told:
            text = " ".join(self._origin(*pair) for pair in zip(one, other, strict=True))
            self._told[known] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        return f"<{self._told[known]}>"
