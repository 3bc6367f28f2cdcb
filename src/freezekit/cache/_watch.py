"""One forward pass seen from outside its frozen calls: what they give, and who reads it."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ._batch import Layout
from ._events import Event, Known, Pass, Source, Visit, copied, together
from ._functions import (
    COUNTS,
    CREATES,
    HEAVY,
    LOOKS,
    flattened,
    function_name,
    is_tensor,
    place_of,
    random_state,
    tells,
    version,
)
from ._patches import Forward, patched
from ._refusals import (
    check_call,
    is_plain,
    refuse,
    refuse_in_place,
    refuse_random,
    tensors_within,
)


class Watch(TorchFunctionMode):
    """Watches one pass.

    Attributes:
        events: what happened with frozen calls and what they give.
        calls: the calls of modules, in order.
        known: what is known of each tensor, by identity.
        returned: the outputs of events that someone may read who is not seen.
        looked: tensors of the model of which Python read a value.
        decided: functions that gave Python a value that depends on more than the mask.
    """

    def __init__(
        self, watched: Pass, leaves: Sequence[Any], layout: Layout, first: "Watch | None" = None
    ) -> None:
        """Prepares to watch a pass.

        Args:
            watched: the pass.
            leaves: its arguments, flat.
            layout: what they are.
            first: a trace of the same pass over another number of rows.
        """
        super().__init__()
        self.events: list[Event] = []
        self.calls: list[Visit] = []
        self.returned: frozenset[Source] = frozenset()
        self.looked: list[tuple[Any, ...]] = []
        self.decided: list[str] = []
        self._watched = watched
        self._within: int | None = None
        self._looking = False
        self._marks: dict[int, Source] = {}
        self._ambient = Known()
        self._past = False
        self._keep: list[Any] = [leaves]
        self._inner: dict[int, Known] = {}
        self._mask = frozenset(() if layout.mask is None else (layout.mask,))
        self._shapes: list[tuple[str, list[torch.Size]]] = []
        self._rowless: set[int] = set()
        self._first = [] if first is None else first._shapes
        self._all = frozenset(at for at, leaf in enumerate(leaves) if is_tensor(leaf))
        self.known: dict[int, Known] = {}
        for path, module in watched.entry.named_modules():
            tables = (("parameter", module._parameters), ("buffer", module._buffers))
            for kind, table in (*tables, ("attribute", module.__dict__)):
                for name, tensor in table.items():
                    if is_tensor(tensor):
                        hot = id(tensor) in watched.hot
                        self.known.setdefault(id(tensor), Known(hot=hot, origin=(kind, path, name)))
        for at in self._all:
            self.known[id(leaves[at])] = Known(
                roots=frozenset((at,)), origin=("argument", layout.labels[at])
            )

        self._held = [*_held(watched.entry)]
        before = set() if first is None else {id(each) for each in first._held}
        self._stale = set() if first is None else {id(each) for each in self._held} - before

    def run(self, leaves: Sequence[Any]) -> Any:  # noqa: ANN401
        """Runs the pass and returns what it returns."""
        modules = dict(self._watched.entry.named_modules())
        modules.pop("", None)
        with patched(modules.items(), self._wrap), self:
            result = self._watched.run(leaves)
            with self._unseen():
                given = [self._of(leaf) for leaf in tree_flatten(result)[0] if is_tensor(leaf)]
        self.returned = together(given).sources
        known, inner = self.known, self._inner
        for each in self._escaped():
            if each in inner:
                _check_kept(inner[each])
            else:
                self.returned |= known[each].sources
        return result

    def trains_before(self, event: int) -> bool:
        """Returns whether a module with something of its own that trains is called before that."""
        entry, hot = self._watched.entry, self._watched.hot
        numbers = [-1 if call.event is None else call.event for call in self.calls]
        last = max((at for at, number in enumerate(numbers) if 0 <= number <= event), default=0)
        return any(
            call.event is None and call.within is None and not hot.isdisjoint(
                map(id, entry.get_submodule(call.path)._parameters.values())
            )
            for call in self.calls[:last]
        )  # fmt: skip

    def _escaped(self) -> set[int]:
        """Returns the tensors that something holds besides this trace: it may read them.

        They may be in objects that are returned, in attributes of modules, in lists of hooks. The
        trace lets go of all that it kept.
        """
        held = {id(each): weakref.ref(each) for each in self._keep if is_tensor(each)}
        self._keep.clear()
        alive = [each for each in (held.values()) if each() is not None]
        if any(id(each()) in self._inner for each in alive):
            gc.collect()
        found = {at: tensor for at, each in held.items() if (tensor := each()) is not None}
        bases = {id(each._base) for each in found.values() if each._is_view()}
        return {at for at in found if at not in bases or at not in self._inner}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        name = function_name(func)
        if self._looking:
            return func(*args, **kwargs)
        if self._stale and any(id(each) in self._stale for each in flattened((args, kwargs))):
            refuse(
                "state",
                f"a pass reads ({name}) a tensor that the pass before has left behind on a module",
                "let each pass compute it anew, or do without the cache",
            )
        if name in LOOKS:
            return func(*args, **kwargs)
        flat = [*flattened((args, kwargs))]
        tensors = [each for each in flat if is_tensor(each)]
        if self._within is not None:
            return self._inside(name, func(*args, **kwargs), tensors)
        given = [self._of(each) for each in tensors]
        versions = [version(each) for each in tensors]
        before = random_state()
        result = func(*args, **kwargs)
        random = not torch.equal(before, random_state())
        mutated = [
            tensor
            for tensor, before_it in zip(tensors, versions, strict=True)
            if version(tensor) != before_it
        ]
        joined = together([self._ambient, *(given[1:] if name in CREATES else given)])
        known = joined._replace(
            hot=joined.hot or random,
            sources=frozenset(),
            origin=self._origin(name, (args, kwargs)),
            mixed=joined.mixed or self._mixes(name, result, tensors, joined.roots),
        )
        event = None
        if any(id(each) in self._marks for each in tensors):
            event = self._event("function", name, func, (args, kwargs), joined)
            event.leaves, event.spec = copied(result)
            same = any(each is one for each in tree_flatten(result)[0] for one in tensors)
            changes = known.hot or mutated or same or self._past
            event.skippable = not changes and self._pays(event, tensors)
            known = known._replace(behind=event.behind)
        if tells(name, result, tensors):
            self._decide(name, known, tensors)
        if mutated:
            self._spread(mutated, known)
        for number, tensor in enumerate(tree_flatten(result)[0]):
            if is_tensor(tensor) and not any(tensor is each for each in tensors):
                if event is not None:
                    place = (len(self.events) - 1, number)
                    sources = frozenset((place,)) if event.skippable else frozenset()
                    known = known._replace(sources=sources, origin=("event", *place))
                    if event.skippable:
                        self._marks[id(tensor)] = place
                    if known.mixed:
                        event.mixed.add(number)
                    self._learn(tensor, known)
                else:
                    self._learn(tensor, known._replace(origin=("part", number, known.origin)))
        return result

    def _pays(self, event: Event, tensors: list[torch.Tensor]) -> bool:
        """Returns whether a function gives tensors only, no larger than those it takes."""
        out = [leaf for leaf in event.leaves if leaf is not None]
        if not out or not all(is_tensor(leaf) for leaf in out):
            return False
        taken = sum(each.nbytes for each in tensors if id(each) in self._marks)
        given: int = sum(each.nbytes for each in out)
        return given <= taken

    def _origin(self, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns where the result of a function comes from that is no event."""
        return ("function", name, *self._arguments(given))

    def _arguments(self, given: tuple[Any, ...]) -> list[Any]:
        """Returns where arguments come from, flat, and last how they are nested and named."""
        leaves, spec = tree_flatten(given)
        flat = [each for leaf in leaves for each in flattened(leaf)]
        told = [self._of(each).origin if is_tensor(each) else _told(each) for each in flat]
        return [*told, repr(spec)]

    def _event(
        self,
        kind: Literal["call", "function"],
        name: str,
        func: object,
        given: tuple[Any, ...],
        joined: Known,
    ) -> Event:
        at = len(self.events)
        flat = [*flattened(given)]
        arguments = self._arguments(given)
        event = Event(
            kind,
            name,
            func,
            skippable=False,
            arguments=arguments,
            given=tuple(self._marks[id(each)] for each in flat if id(each) in self._marks),
            reads=joined.sources,
            roots=joined.roots,
            behind=joined.behind | {at},
        )
        self.events.append(event)
        return event

    def _spread(self, mutated: list[torch.Tensor], known: Known) -> None:
        """Lets all that shares memory with what was written in place depend on what was written."""
        places = {place_of(each) for each in mutated}
        for tensor in [each for each in self._keep if is_tensor(each)]:
            if place_of(tensor) in places and id(tensor) in self.known:
                joined = together([self.known[id(tensor)], known])
                origin = ("written", *known.origin, self.known[id(tensor)].origin)
                self.known[id(tensor)] = joined._replace(hot=joined.hot, origin=origin)

    def _decide(self, name: str, known: Known, tensors: list[torch.Tensor]) -> None:
        """Lets all that follows depend on a value that Python got.

        What depends on arguments may differ from batch to batch, whichever rows are in it, and so
        may what follows. Only of what says what is padding, all rows together may be asked.
        """
        if not known.roots <= self._mask:
            self.decided.append(name)
            known = known._replace(hot=True)
        self.looked += [self._of(each).origin for each in tensors]
        self._ambient = together([self._ambient, known])

    def _inside(self, name: str, result: object, tensors: list[torch.Tensor]) -> object:
        """Notes a function within a frozen call, and what it reads that is no argument of it."""
        assert self._within is not None
        event = self.events[self._within]
        event.heavy = event.heavy or any(part in name for part in HEAVY)
        read = [self._of_inner(each) for each in tensors]
        joined = together(read)
        event.reads |= joined.sources
        event.roots |= joined.roots
        event.behind |= joined.behind
        event.hot = event.hot or joined.hot
        if tells(name, result, tensors) and not joined.roots <= self._mask:
            refuse(
                "control_flow",
                f"{event.name!r} reads values of the batch in Python ({name}), on which what it "
                "computes may depend, for all rows together",
                "compute with tensors there, as with torch.where, or do without the cache",
            )
        own = (self._of_inner(each) for each in tensors if id(each) in self.known)
        self.looked += [each.origin for each in own if not (each.hot or each.roots)]
        mixed = joined.mixed or self._mixes(name, result, tensors, joined.roots)
        known = joined._replace(sources=frozenset(), derived=True, mixed=mixed)
        for each in flattened(result):
            if is_tensor(each) and id(each) not in self.known:
                self._inner[id(each)] = known
                self._keep.append(each)
        return result

    def _mixes(
        self, name: str, result: object, tensors: list[torch.Tensor], roots: frozenset[int]
    ) -> bool:
        """Returns whether a function makes of rows what has none: something of all of them.

        It is known in a second trace, from shapes that do not depend on the number of rows. What
        depends on nothing but the mask tells of padding.
        """
        at = len(self._shapes)
        leaves = [leaf for leaf in tree_flatten(result)[0] if is_tensor(leaf)]
        self._shapes.append((name, [leaf.shape for leaf in leaves]))
        if at >= len(self._first) or self._first[at][0] != name:
            self._first = []
            return False
        pairs = zip(leaves, self._first[at][1], strict=False)
        rowless = [leaf for leaf, shape in pairs if leaf.shape == shape]
        if roots <= self._mask or not rowless:
            return False
        self._rowless.update(map(id, rowless))
        read = (each for each in tensors if self._of_inner(each).roots)
        return name not in COUNTS and not all(id(each) in self._rowless for each in read)

    def _of_inner(self, tensor: torch.Tensor) -> Known:
        """Returns what is known of a tensor within a frozen call."""
        found = self._inner.get(id(tensor)) or self.known.get(id(tensor))
        if found is None and self._within is None:
            found = self._of(tensor)
        elif found is None:  # made by what is not seen, such as a script, of what it was given
            assert self._within is not None
            event = self.events[self._within]
            found = Known(roots=event.roots, behind=event.behind)
            self._inner[id(tensor)] = found
            self._keep.append(tensor)
        if tensor.requires_grad and not found.hot:
            found = found._replace(hot=True)
        return found

    def _of(self, tensor: torch.Tensor) -> Known:
        """Returns what is known of a tensor; of one from nowhere, that it may be anything."""
        found = self.known.get(id(tensor))
        if found is None:
            if id(tensor) in self._inner:
                refuse(
                    "smuggled",
                    "a tensor that a frozen module computed reaches the rest of the model by "
                    "another way than its output (it is stored on a module, or in an object)",
                    "return it, or name a boundary above with boundary=...",
                )
            found = Known(hot=True, roots=self._all)
            self._learn(tensor, found)
        elif tensor.requires_grad and not found.hot:
            found = found._replace(hot=True)
        return found

    def _learn(self, tensor: torch.Tensor, known: Known) -> None:
        self._inner.pop(id(tensor), None)
        self.known[id(tensor)] = known
        self._keep.append(tensor)

    @contextmanager
    def _unseen(self) -> Iterator[None]:
        """Lets functions pass inside the block that belong to the watching."""
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def _wrap(self, path: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._within is not None:
                self.calls.append(Visit(path, None, self._within))
                return forward(*args, **kwargs)
            flat = [*flattened((args, kwargs))]
            with self._unseen():
                given = [self._of(each) for each in flat if is_tensor(each)]
                joined = together([self._ambient, *given])
            weighty = path in self._watched.weighty
            computed = path in self._watched.hot_paths or joined.hot or self._is_beyond(path)
            if computed or not (weighty or joined.derived):
                if path == self._watched.boundary and not self._past:
                    refuse(
                        "boundary",
                        f"boundary={path!r}: something in it trains, or comes before it and trains",
                        "name a module that is frozen with all before it, or leave boundary away",
                    )
                self.calls.append(Visit(path, None, None))
                return forward(*args, **kwargs)
            return self._frozen(path, forward, (args, kwargs), joined)

        return call

    def _is_beyond(self, path: str) -> bool:
        """Returns whether a call reaches beyond the boundary, if there is one."""
        boundary = self._watched.boundary
        return boundary is not None and (self._past or boundary.startswith(f"{path}."))

    def _frozen(self, path: str, forward: Forward, given: tuple[Any, Any], joined: Known) -> Any:  # noqa: ANN401
        """Runs a frozen call and notes it, unless it draws random numbers without parameters."""
        at, module = len(self.events), self._watched.entry.get_submodule(path)
        flat = [*flattened(given)]
        with self._unseen():
            event = self._event("call", path, None, given, joined._replace(sources=frozenset()))
            self.calls.append(Visit(path, at, None))
            buffers = [(name, each, version(each)) for name, each in module.named_buffers()]
            states = [(each, tensors_within(each)) for each in flat if not is_plain(each)]
            taken = {id(each): version(each) for each in flat if is_tensor(each)}
            before, self._within = random_state(), at
        try:
            result = forward(*given[0], **given[1])
        finally:
            self._within = None
            self._past = self._past or path == self._watched.boundary
        with self._unseen():
            random = not torch.equal(before, random_state())
            if random and path in self._watched.weighty:
                refuse_random(path, module)
            if any(version(each) != taken.get(id(each)) for each in flat if is_tensor(each)):
                refuse_in_place(path)
            check_call(path, module, states, buffers, result)
            event.leaves, event.spec = copied(result)
            hot = random or event.hot
            known = Known(hot=hot, derived=True, roots=event.roots, behind=event.behind)
            out = [leaf for leaf in tree_flatten(result)[0] if is_tensor(leaf)]
            event.skippable = not hot and any(id(leaf) not in taken for leaf in out)
            for number, leaf in enumerate(tree_flatten(result)[0]):
                if is_tensor(leaf):
                    place = (at, number)
                    sources = frozenset((place,))
                    here = self._inner.get(id(leaf)) or self._of(leaf)
                    if not (here.roots or here.hot):
                        event.free.add(number)
                    if id(leaf) in taken:  # it hands on what it was given
                        sources |= here.sources
                    roots = frozenset() if number in event.free else known.roots
                    if here.mixed:
                        event.mixed.add(number)
                    found = known._replace(
                        sources=sources, roots=roots, origin=("event", *place), mixed=here.mixed
                    )
                    self._learn(leaf, found)
                    self._marks[id(leaf)] = place
        return result


def _held(entry: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Yields the tensors that modules hold besides parameters, in lists and dicts too."""
    for module in entry.modules():
        for value in (*module._buffers.values(), *module.__dict__.values()):
            if value is not module._parameters and value is not module._buffers:
                yield from (each for each in flattened(value) if is_tensor(each))


def _check_kept(known: Known) -> None:
    """Raises if what a frozen module computed and something keeps depends on the batch."""
    if known.roots or known.behind or known.hot:
        refuse(
            "state",
            "a frozen module keeps a tensor that it computed from the batch (on a module, or in "
            "an object), and would not compute it again",
            "let it return it instead, or name a boundary above with boundary=...",
        )


def _told(value: object) -> object:
    return value if is_plain(value) else type(value).__name__
