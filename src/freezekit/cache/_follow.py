"""Follows a program through a pass: records what it stores, or leaves out what is stored."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from ._events import Source
from ._functions import CREATES, LOOKS, flattened, function_name, uncompiled
from ._patches import Forward, patched
from ._program import Action, Dim, Hole, Program, Slot
from ._spares import Spares

_PLAIN = (torch.Tensor, int, float, str, type(None))


class Diverged(BaseException):
    """A pass went another way than the one its program was made of."""


class _Follow(TorchFunctionMode):
    """Follows the calls and functions of a pass; subclasses say what becomes of each."""

    def __init__(self, program: Program, modules: Sequence[tuple[str, torch.nn.Module]]) -> None:
        super().__init__()
        self._program = program
        self._modules = modules
        self._counts = dict.fromkeys(program.calls, 0)
        self._at = 0
        self._within = 0
        self._marks: dict[int, Source] = {}
        self._holes: set[int] = set()
        self._kept: list[object] = []
        self._watches = bool(program.functions)

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follows the pass inside the block.

        Raises:
            Diverged: it went another way, and what was answered may be wrong.
        """
        with patched(self._modules, self._wrap):
            if self._watches:
                with uncompiled(), self:
                    yield
            else:
                yield
        calls = self._program.calls
        if self._at < len(self._program.functions) or any(
            self._counts[path] != len(found) for path, found in calls.items()
        ):
            self._diverge()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if self._within:
            return func(*args, **kwargs)
        given = self._given(args, kwargs)
        if not given or function_name(func) in LOOKS:
            return func(*args, **kwargs)
        if self._at >= len(self._program.functions):
            return self._beyond(func, args, kwargs)
        expected, action = self._program.functions[self._at]
        if expected != func:
            self._diverge()
            return func(*args, **kwargs)
        self._at += 1
        return self._act(action, given, lambda: func(*args, **kwargs))

    def _beyond(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:  # noqa: ANN401
        """Runs a function that takes outputs of events after the last that matters."""
        creates = function_name(func) in CREATES
        taken = [*flattened((args[creates:], kwargs))]
        if any(id(each) in self._holes for each in taken):
            self._diverge()  # It reads what nothing read in the passes that were learned from.
        return func(*args, **kwargs)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Source, ...]:
        """Returns which outputs of events are among some arguments."""
        marks = self._marks
        if not marks:
            return ()
        found: list[Source] = []
        for each in (*args, *kwargs.values()) if kwargs else args:
            if id(each) in marks:
                found.append(marks[id(each)])
            elif not isinstance(each, _PLAIN):
                found += [marks[id(inner)] for inner in flattened(each) if id(inner) in marks]
        return tuple(found)

    def _act(self, action: Action, given: tuple[Source, ...], run: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Runs an event, or answers for it, and remembers its outputs."""
        if given != action.given:
            self._diverge()
            return run()
        result, leaves = self._answer(action, run) if action.skip else (run(), None)
        if action.marks:
            leaves = _leaves(result) if leaves is None else leaves
            for number, leaf in enumerate(leaves):
                if isinstance(leaf, torch.Tensor):
                    self._marks[id(leaf)] = (action.at, number)
                    self._kept.append(leaf)
        return result

    def _wrap(self, path: str, forward: Forward) -> Forward:
        actions = self._program.calls[path]

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            if self._within:
                return forward(*args, **kwargs)
            at = self._counts[path]
            self._counts[path] += 1
            action = actions[at] if at < len(actions) else None
            if action is None:
                return forward(*args, **kwargs)
            self._within += 1
            try:
                given = self._given(args, kwargs)
                return self._act(action, given, lambda: forward(*args, **kwargs))
            finally:
                self._within -= 1

        return call

    def _answer(self, action: Action, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
        """Returns the outputs of an event that can be left out, as they are and flat."""
        raise NotImplementedError

    def _diverge(self) -> None:
        """Is called where the pass goes another way than its program."""
        raise NotImplementedError


def _leaves(value: object) -> list[Any]:
    return [value] if isinstance(value, torch.Tensor) else tree_flatten(value)[0]


class Recorder(_Follow):
    """Follows a real pass and hands out what is to be stored as soon as it is there.

    Attributes:
        lost: whether the pass went another way; nothing is handed out from then on.
    """

    def __init__(
        self,
        program: Program,
        modules: Sequence[tuple[str, torch.nn.Module]],
        sink: Callable[[int, torch.Tensor], None],
    ) -> None:
        """Prepares to record.

        Args:
            program: what to follow.
            modules: the modules of its calls, by path.
            sink: gets the number of a tap and its tensor, which it must copy.
        """
        super().__init__(program, modules)
        self.lost = False
        self._sink = sink

    def _answer(self, action: Action, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
        result = run()
        leaves, spec = tree_flatten(result)
        if spec != action.spec:
            self._diverge()
        for leaf, place in zip(leaves, action.leaves, strict=False):
            if isinstance(place, Slot) and not self.lost:
                tap = self._program.taps[place.tap]
                if leaf.dtype == tap.dtype and _fits(leaf.shape[1:], tap.row_shape):
                    with torch._C.DisableTorchFunction():  # Those who follow as well do not look.
                        self._sink(place.tap, leaf.detach())
                else:
                    self._diverge()
        return result, leaves

    def _diverge(self) -> None:
        self.lost = True


def _fits(shape: torch.Size, row_shape: tuple[int | None, ...]) -> bool:
    """Returns whether rows have the shape they were learned to have."""
    return len(shape) == len(row_shape) and all(
        size in (found, None) for found, size in zip(shape, row_shape, strict=True)
    )


class Replay(_Follow):
    """Follows a pass in which the frozen part is not computed."""

    def __init__(
        self,
        program: Program,
        modules: Sequence[tuple[str, torch.nn.Module]],
        values: Sequence[torch.Tensor],
        sizes: tuple[int, int | None],
        spares: Spares | None = None,
    ) -> None:
        """Prepares a pass.

        Args:
            program: what to follow.
            modules: the modules of its calls, by path.
            values: for each tap its tensor.
            sizes: rows of the batch, and its length where lengths vary.
            spares: what other passes of this way left.
        """
        super().__init__(program, modules)
        self._values = values
        self._sizes: dict[Dim, int | None] = {"B": sizes[0], "L": sizes[1]}
        self._spares = Spares() if spares is None else spares
        places = (place for action in program.actions for place in action.leaves)
        self._watches = self._watches or any(isinstance(place, Hole) for place in places)

    def _answer(self, action: Action, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
        leaves = []
        for number, place in enumerate(action.leaves):
            if isinstance(place, Slot):
                leaves.append(self._values[place.tap])
            elif isinstance(place, Hole):
                leaves.append(self._spares.hole(place, (action.at, number), self._sizes))
                self._holes.add(id(leaves[-1]))
            else:
                leaves.append(place.fresh())
        assert action.spec is not None
        if len(leaves) == 1 and action.spec.is_leaf():
            return leaves[0], leaves
        return self._spares.output(action.at, action.spec, leaves), leaves

    def _diverge(self) -> None:
        raise Diverged
