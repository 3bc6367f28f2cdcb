"""Learns how a pass goes without its frozen part, and proves it before it is believed."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import torch
from torch.utils._pytree import tree_flatten

from .._gradients import undisturbed
from ._batch import Batch, prefixes
from ._events import Pass
from ._filling import distinct
from ._follow import Diverged, Replay
from ._functions import uncompiled
from ._program import Program, Sizes, Slot, combine
from ._refusals import CacheRefusedError, check_module, refuse
from ._state import State
from ._watch import Watch

_PROBES = ([0, 1], [2, 3, 4], [2, 3, 0, 4, 1])
"""Which rows are in the two batches that are traced, and in the one that is compared."""
_LENGTH = 12
"""How long rows are that are traced, where they may be cut."""
_SLACK = 2_000
"""How many times the rounding of a dtype two results may differ, relative to the largest value."""
_ROUGH = 0.05
"""How much they may differ at most, for dtypes whose rounding is coarse."""
_FLOOR = 0.01
"""How small a gradient is compared relative to the largest of all gradients instead."""

Outcome = tuple[list[Any], list[torch.Tensor | None]]


class Probes(NamedTuple):
    """Rows of a real batch, of which three small ones are made.

    Attributes:
        batch: the rows.
        lengths: how long the rows of the first and second small batch are, padding included;
            None where rows are not to be cut.
    """

    batch: Batch
    lengths: tuple[int, int] | None

    def leaves(self, number: int) -> list[Any]:
        """Returns the arguments of one of the small batches."""
        length = None if self.lengths is None else self.lengths[number == 1]
        taken = self.batch.taken(torch.tensor(_PROBES[number]), length)
        return [each.clone() if _is_inference(each) else each for each in taken]

    @property
    def sizes(self) -> Sizes:
        """The sizes of the two that are traced."""
        return Sizes((len(_PROBES[0]), len(_PROBES[1])), self.lengths)


def _is_inference(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_inference()


def learn(watched: Pass, batch: Batch) -> tuple[Program, bool]:
    """Returns the program of a pass, and whether rows are stored without their padding.

    Two small batches are traced, of other sizes and, if rows may be cut, other lengths. Then a
    third of rows of both is run for real and by the program, with NaN for all that is not to be
    read: outputs and gradients must agree.

    Args:
        watched: the pass.
        batch: a real batch; it is not changed.

    Raises:
        CacheRefusedError: there is no such program, and why.
    """
    last: CacheRefusedError | None = None
    grad = torch.is_grad_enabled()
    # Once for all passes: what one leaves behind, the next one finds.
    with untouched(watched.entry), torch.set_grad_enabled(grad), uncompiled():
        for trims in (True, False) if batch.length is not None else (False,):
            try:
                probes = _probes(batch, trims=trims)
                first = _traced(watched, probes, 0, None)
                traces = [first, _traced(watched, probes, 1, first)]
            except CacheRefusedError as error:
                last = error
                if error.reason not in _DEPENDS:
                    raise
                continue
            for functions in (True, False):
                try:
                    return _proven(watched, probes, traces, functions=functions), trims
                except CacheRefusedError as error:
                    last = error
                    if error.reason not in _DEPENDS:
                        raise
    assert last is not None
    raise last


_DEPENDS = ("interactions", "control_flow", "no_prefix", "probes")
"""Reasons that may not hold for rows with their padding, or without functions."""


def _probes(batch: Batch, *, trims: bool) -> Probes:
    """Returns rows of a batch, some of them padded: how they go may depend on it."""
    some = distinct(batch)
    rows = torch.tensor([some[at % len(some)] for at in range(5)])
    leaves = batch.taken(rows, None)
    length = batch.length
    if length is None or length < 3 or batch.lengths is None or batch.layout.mask is None:
        return Probes(batch._replace(leaves=leaves, size=5, length=None, lengths=None), None)
    if trims:  # Rows that are cut are rows too, and cheaper.
        length = min(length, _LENGTH)
        leaves = batch._replace(leaves=leaves, size=5).taken(torch.arange(5), length)
    short = max(2, int(0.7 * length))
    if len(_PROBES[0]) * length == len(_PROBES[1]) * short:
        short -= 1  # or tensors (B * length, ...) would look the same in both
    most = (
        [length, length - 1, short, short, max(1, short - 1)] if trims else [length, length - 1] * 2
    )
    own = [batch.lengths[row] for row in rows.tolist()]
    lengths = [*map(min, own, [*most, length])]
    mask = leaves[batch.layout.mask]
    leaves[batch.layout.mask] = prefixes(lengths, length).to(mask)
    found = batch._replace(leaves=leaves, size=5, length=length, lengths=lengths)
    if not trims:
        return Probes(found._replace(length=None, lengths=None), None)
    return Probes(found, (length, short))


def _traced(watched: Pass, probes: Probes, number: int, first: Watch | None) -> Watch:
    leaves = probes.leaves(number)
    trace = Watch(watched, leaves, probes.batch.layout, first)
    with _reported():
        trace.run(leaves)
    return trace


@contextmanager
def _reported() -> Iterator[None]:
    """Says that it was no pass of the user's that failed."""
    try:
        yield
    except CacheRefusedError:
        raise
    except Exception as error:
        raise CacheRefusedError(
            "the frozen part cannot be cached: to learn how a pass goes, a few rows of the batch "
            f"were passed through the model, which failed ({type(error).__name__}: {error}); let "
            "it take batches of any size, or do without the cache",
            "probes",
        ) from error


def _proven(watched: Pass, probes: Probes, traces: list[Watch], *, functions: bool) -> Program:
    """Returns the program of two traces if a third pass comes to the same with and without it."""
    program = combine(traces[0], traces[1], probes.sizes, functions=functions)
    if not program.taps:
        _refuse_no_prefix(watched, [*traces[0].decided, *traces[1].decided])
    for path in program.modules:
        check_module(path, watched.entry.get_submodule(path))
    modules = [(path, watched.entry.get_submodule(path)) for path in program.calls]
    sizes = (len(_PROBES[2]), None if probes.lengths is None else probes.lengths[0])
    replay = Replay(program, modules, _values(program, traces, probes), sizes)
    with _others(watched):
        leaves, real = _real(watched, probes, program.roots)
        try:
            found = _outcome(watched, leaves, replay)
        except Diverged:
            refuse(
                "control_flow",
                "what is computed depends on the values of the batch, or on what a frozen module "
                "does besides giving its output",
                "name a boundary below it with boundary=..., or do without the cache",
            )
        except Exception as error:
            refuse(
                "interactions",
                f"without its frozen part the pass fails ({type(error).__name__}: {error}), as "
                "where its outputs are changed in place or read in a way that is not seen",
                "name a boundary with boundary=..., or do without the cache",
            )
    _compare(real, found)
    return program


@contextmanager
def _others(watched: Pass) -> Iterator[None]:
    """Gives what trains other values: nothing that is stored may depend on them."""
    trained = [each for each in watched.entry.parameters() if id(each) in watched.hot]
    hot = [each.data for each in trained if each.is_floating_point() or each.is_complex()]
    before = [each.clone() for each in hot]
    try:
        for each in hot:
            each.mul_(0.75).add_(0.03)
        yield
    finally:
        for each, values in zip(hot, before, strict=True):
            each.copy_(values)


def _real(watched: Pass, probes: Probes, roots: frozenset[int]) -> tuple[list[Any], Outcome]:
    """Returns the arguments of the third pass, and its outcome.

    In them, what nothing that is stored depends on belongs to other rows, and other values stand
    in the padding.

    Raises:
        CacheRefusedError: the pass changes what it may depend on.
    """
    plain = probes.leaves(2)
    other = list(plain)
    batch = probes.batch
    for at, leaf in enumerate(plain):
        if not batch.rows_at(at) or at == batch.layout.mask:
            continue
        if at not in roots:
            other[at] = leaf.flip(0)
        elif batch.lengths is not None and probes.lengths and batch.follows_length(at):
            kept = prefixes(_third(batch.lengths), leaf.shape[1])
            kept = kept.view(*kept.shape, *[1] * (leaf.dim() - 2)).to(leaf.device)
            other[at] = torch.where(kept, leaf, leaf[:, :1])
    state = State(watched.entry.named_modules())
    try:
        leaves, outcome = other, _outcome(watched, other, None, state)
    except CacheRefusedError:
        raise
    except Exception:
        with _reported():
            leaves, outcome = plain, _outcome(watched, plain, None, state)
    return leaves, outcome


def _third(lengths: list[int]) -> list[int]:
    return [lengths[at] for at in _PROBES[2]]


def _values(program: Program, traces: list[Watch], probes: Probes) -> list[torch.Tensor]:
    """Returns what the third pass gets for each tap: rows of the two that were traced."""
    found = []
    for trace in traces:
        here = {}
        for event, action in zip(trace.events, program.actions, strict=True):
            for leaf, place in zip(event.leaves, action.leaves, strict=False):
                if isinstance(place, Slot):
                    here[place.tap] = leaf
        found.append(here)
    values = []
    for number, tap in enumerate(program.taps):
        one, other = (here[number] for here in found)
        if None in tap.row_shape:
            tail = other.new_zeros(len(other), one.shape[1] - other.shape[1], *other.shape[2:])
            other = torch.cat([other, tail], 1)
        value = torch.cat([one, other])[_PROBES[2]]
        if None in tap.row_shape and probes.batch.lengths is not None:
            padding = ~prefixes(_third(probes.batch.lengths), value.shape[1]).to(value.device)
            value = value.masked_fill(padding.view(*padding.shape, *[1] * (value.dim() - 2)), 0)
        values.append(value)
    return values


def _outcome(
    watched: Pass, leaves: list[Any], replay: Replay | None, state: State | None = None
) -> Outcome:
    """Returns the tensors a pass gives, and the gradients of what trains."""
    grad = torch.is_grad_enabled()
    with untouched(watched.entry), torch.set_grad_enabled(grad):
        torch.manual_seed(0)
        if replay is None:
            result = watched.run(leaves)
        else:
            with replay.following():
                result = watched.run(leaves)
        if state is not None and (name := state.changed()):
            refuse(
                "state",
                f"each pass changes {name!r}, on which what is computed may depend",
                "change it outside of the forward, or do without the cache",
            )
        out = [*_tensors(result, 4)]
        losses = [_weighed(each) for each in out if each.requires_grad]
        hot = [each for each in watched.entry.parameters() if id(each) in watched.hot]
        hot = [each for each in hot if each.requires_grad]
        gradients: Sequence[torch.Tensor | None] = ()
        if losses and hot:
            gradients = torch.autograd.grad(sum(losses, losses[0] * 0), hot, allow_unused=True)
    return [each.detach() for each in out], list(gradients)


def _tensors(value: object, depth: int) -> Iterator[torch.Tensor]:
    """Yields the tensors in what a pass returns, in objects too."""
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, torch.Tensor):
            yield leaf
        elif depth and not isinstance(leaf, torch.nn.Module) and hasattr(leaf, "__dict__"):
            yield from _tensors(dict(vars(leaf)), depth - 1)


def _weighed(out: torch.Tensor) -> torch.Tensor:
    """Returns a scalar on which every element has its own influence."""
    weights = torch.linspace(0.5, 1.5, max(1, out.numel()), device=out.device)
    real = out.abs() if out.is_complex() else out
    return (real.float() * weights[: out.numel()].view(out.shape)).sum()


def _compare(real: Outcome, found: Outcome) -> None:
    """Raises if two outcomes differ by more than rounding."""
    kinds = ("an output", "a gradient")
    for kind, ones, others in zip(kinds, real, found, strict=True):
        if len(ones) != len(others):
            refuse(
                "interactions",
                f"the pass gives {len(ones)} tensors, and {len(others)} without its frozen part "
                "(as where hidden states of frozen layers are collected)",
                "do not ask for them, or name a boundary with boundary=...",
            )
        sizes = [_size(one) for one in ones if one is not None]
        largest = max((size for size in sizes if math.isfinite(size)), default=0.0)
        for one, other in zip(ones, others, strict=True):
            if one is None or other is None:
                unlike = (one is None) != (other is None)
            else:
                unlike = differs(one, other, _FLOOR * largest)
            if unlike:
                refuse(
                    "interactions",
                    f"{kind} differs between a batch and the same rows stored from other batches: "
                    "rows depend on each other, or on their padding",
                    "do without the cache, or name a boundary below with boundary=...",
                )


def differs(one: torch.Tensor, other: torch.Tensor, least: float = 0.0) -> bool:
    """Returns whether two results differ by more than rounding.

    Args:
        one: a result.
        other: the other.
        least: differences are relative to the largest value, and to this at least: a gradient that
            is zero but for rounding, as that of a bias before softmax, tells nothing.
    """
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    if not (one.is_floating_point() or one.is_complex()):
        return not torch.equal(one, other)
    if one.is_complex():
        one, other = (torch.view_as_real(each.resolve_conj()) for each in (one, other))
    bound = min(_ROUGH, _SLACK * torch.finfo(one.dtype).eps)
    largest, distance = _size(one), _size(one - other)
    if not math.isfinite(distance):  # What is not finite must be so at the same places.
        finite = torch.isfinite(one)
        if not torch.equal(one[~finite], other[~finite]) or not other[finite].isfinite().all():
            return True
        largest, distance = _size(one[finite]), _size(one[finite] - other[finite])
    return distance > bound * max(largest, least)


def _size(tensor: torch.Tensor) -> float:
    """Returns the largest absolute value."""
    if not tensor.numel():
        return 0.0
    if tensor.is_floating_point():
        return float(torch.linalg.vector_norm(tensor, math.inf))
    return float(tensor.abs().max())


def _refuse_no_prefix(watched: Pass, decided: list[str]) -> NoReturn:
    if decided:
        refuse(
            "control_flow",
            f"values of the batch are read in Python ({decided[0]}) before anything that is worth "
            "storing, and what follows may depend on them, for all rows together",
            "compute with tensors there, as with torch.where, or do without the cache",
        )
    trains = [name for name, each in watched.entry.named_parameters() if id(each) in watched.hot]
    some = ", ".join(map(repr, trains[:3])) + (", ..." if len(trains) > 3 else "")
    kind = type(watched.entry).__name__
    refuse(
        "no_prefix",
        f"nothing in {kind} that is worth storing comes before what trains"
        + (f": {some} train at its bottom" if trains else ""),
        "freeze what comes first in the model, embeddings and their norms too",
    )


@contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    """Leaves no trace of the passes inside, in buffers neither."""
    before = [(each, each._version, each.detach().clone()) for each in module.buffers()]
    with undisturbed(module):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in before:
                    # Batch norm changes its statistics without another version.
                    if buffer._version != version or not torch.equal(buffer, value):
                        buffer.data.copy_(value)  # a graph of the user's may have saved it
