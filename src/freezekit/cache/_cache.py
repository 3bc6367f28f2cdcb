"""ActivationCache: what is frozen is computed once for each sample."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._apply import _NOTHING, AppliedPlan
from ..errors import FreezekitError
from ._batch import Batch, Layout, layout_of, read_batch, row_keys
from ._entry import Entry
from ._follow import Diverged, Recorder, Replay
from ._guards import Validity
from ._learning import learn
from ._patches import Forward
from ._program import Program
from ._refusals import CacheRefusedError
from ._store import Store, Tap
from ._trace import Pass

_MEMORY = 1 << 30
_FORMS = 64
_PATIENCE = 32


class Stats(NamedTuple):
    """What a cache has done so far.

    Attributes:
        hits: rows that were answered from the store.
        misses: rows that were computed.
        bytes: bytes that are stored.
        seconds_saved: how much longer the forward passes of the hits would have taken.
    """

    hits: int
    misses: int
    bytes: int
    seconds_saved: float

    def __str__(self) -> str:
        """Returns the counts in a line."""
        total = self.hits + self.misses
        share = self.hits / total if total else 0.0
        return (
            f"{self.hits:,} of {total:,} rows from the store ({share:.1%}), "
            f"{self.bytes / 2**20:.1f} MiB, about {self.seconds_saved:.1f} s of forward passes saved"
        )


@dataclass(slots=True, eq=False)
class _Way:
    """How passes of one form go in one phase.

    Attributes:
        program: what is left out and what is stored.
        trims: whether rows are stored without their padding.
        modules: the modules whose calls matter, by path.
        roots: the labels of the arguments that what is stored depends on.
        refused: why there is no such way, in place of all that.
        ahead: the ways of later phases, whose taps are stored along with this one's.
    """

    program: Program
    trims: bool
    modules: list[tuple[str, torch.nn.Module]]
    roots: tuple[str, ...]
    ahead: list["_Way"] = field(default_factory=list)


class _Collected(Exception):
    """Stops a pass whose arguments are all that is wanted."""


class _Enough(Exception):
    """Stops a pass of which all is stored that is to be."""


class _Clock:
    """Seconds that rows took, computed and answered."""

    def __init__(self) -> None:
        self.computed = [0, 0.0]
        self.answered = [0, 0.0]

    def saved(self) -> float:
        """Returns how much longer the answered rows would have taken."""
        rows, seconds = self.computed
        mine, took = self.answered
        return max(0.0, mine * seconds / rows - took) if rows else 0.0


class ActivationCache:
    """Computes what is frozen once for each sample, and answers from a store from then on.

    The training loop, the model's class and the data loader stay as they are. In the first pass
    over a batch, the cache learns which tensors cross from the frozen part of the model into what
    trains, proves on small batches that nothing else is needed, and stores them row by row, keyed
    by the content of the inputs, so that shuffling, other batches and other padding find them
    again. What later phases of the plan need is stored on the way.

    Only what is constant is stored: parameters that are frozen, modules in eval mode, rows that do
    not depend on each other. Anything else is refused with its reason. Whatever changes a frozen
    tensor, a mode or a dtype drops what is stored.

    Example:
        >>> import torch
        >>> from freezekit import FreezePlan
        >>> from freezekit.cache import ActivationCache
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> applied = FreezePlan().freeze("[0]").apply(model)
        >>> cache = ActivationCache(applied)
        >>> batch = torch.randn(8, 4)
        >>> first, second = model(batch), model(batch.flip(0))
        >>> torch.allclose(first, second.flip(0), atol=1e-6)
        True
        >>> cache.stats().hits, cache.stats().misses
        (8, 8)
        >>> cache.close()
    """

    def __init__(
        self,
        applied: AppliedPlan,
        *,
        entry: str = "",
        mask: str | None = "attention_mask",
        memory: int = _MEMORY,
        folder: str | PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Stands in for the forward of the model from now on; `close` ends that.

        Args:
            applied: the plan that was applied to the model.
            entry: path of the module whose calls are the passes, "" for the model itself. Where a
                training step calls a part of it, as with Lightning, that part.
            mask: the argument of its forward that says what is padding (1 for what is not), of
                shape (B, length). Rows whose padding is at their end are stored without it.
            memory: bytes that are held in memory.
            folder: where everything is written too, for later runs and other processes.
            dtype: a floating dtype to store in; None stores what was computed.

        Raises:
            FreezekitError: the plan was released, there is no such module, or what is in `folder`
                belongs to something else.
        """
        applied._check_live()
        self._applied = applied
        root = applied._modules[0]
        try:
            self._entry = root.get_submodule(entry)
        except AttributeError as error:
            raise FreezekitError(f"entry={entry!r}: {error}") from error
        self._mask = mask
        self._store = Store(
            memory=memory, folder=None if folder is None else Path(folder), dtype=dtype
        )
        self._layouts: dict[Any, Layout] = {}
        self._ways: dict[Any, _Way | None] = {}
        self._untrimmed: set[Any] = set()
        self._valid: dict[str, Validity] = {}
        self._names = {id(each): name for name, each in root.named_parameters()}
        self._modules = [*self._entry.modules()]
        self._busy = False
        self._off = False
        self._started = False
        self._collected: list[Batch] | None = None
        self._stops = False
        self._hits = self._misses = 0
        self._phase = applied.phase
        self._clock = _Clock()
        self._idle = 0
        self._stand_in = Entry(self._entry, self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the model its own forward back and lets go of the store. May be repeated."""
        self._stand_in.remove()
        self._store.close()
        self._off = True

    def stats(self) -> Stats:
        """Returns what was answered, what is stored, and the time that it saved."""
        return Stats(self._hits, self._misses, self._store.nbytes, self._clock.saved())

    def warm(
        self,
        batches: Iterable[Any],
        forward: Callable[[torch.nn.Module, Any], Any] | None = None,
        *,
        batch_size: int = 32,
        window: int = 4096,
        progress: bool = True,
    ) -> None:
        """Stores all rows of some batches, those of like length together.

        It takes about half of the time of the first epoch, since little padding is computed. The
        model is called once for each batch to see its inputs; nothing is computed in these calls.

        Args:
            batches: what training goes over, such as its data loader.
            forward: calls the model with one of them; by default with a mapping's items as keyword
                arguments, with a sequence's as positional ones.
            batch_size: rows to compute at a time.
            window: rows to sort at a time; so many rows of inputs are held in memory.
            progress: show how far it is, on stderr.

        Raises:
            CacheRefusedError: the frozen part cannot be cached, and why.
        """
        forward = forward or _call
        with torch.no_grad():
            pending: list[Batch] = []
            for batch in batches:
                pending += self._inputs(batch, forward)
                if sum(each.size for each in pending) >= window:
                    self._fill(pending, batch_size)
                    pending = []
            self._fill(pending, batch_size)

    def _inputs(self, batch: object, forward: Callable[[torch.nn.Module, Any], Any]) -> list[Batch]:
        """Returns what the entry is called with in a pass over a batch."""
        self._collected = found = []
        try:
            forward(self._applied._modules[0], batch)
        except _Collected:
            pass
        finally:
            self._collected = None
        if not found:
            raise FreezekitError(
                f"warm: {forward!r} does not call {type(self._entry).__name__}; pass a function "
                "that calls the model with a batch: forward=lambda model, batch: model(batch[0])"
            )
        return found

    def _fill(self, pending: list[Batch], batch_size: int) -> None:
        """Computes the rows of some batches, sorted by length."""
        forms: dict[Any, list[Batch]] = {}
        for batch in pending:
            forms.setdefault((batch.form(), batch.layout), []).append(batch)
        for some in forms.values():
            joined = _stacked(some)
            order = torch.arange(joined.size)
            if joined.lengths is not None:
                order = joined.lengths.cpu().argsort(descending=True)
            for rows in order.split(batch_size):
                length = None
                if joined.lengths is not None:
                    length = int(joined.lengths[rows.to(joined.lengths.device)].max())
                args, kwargs = tree_unflatten(joined.taken(rows, length), joined.layout.spec)
                self._stops = True
                try:
                    self._answer(self._stand_in.forward, args, kwargs)
                except _Enough:
                    pass
                finally:
                    self._stops = False

    def _answer(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Answers a call of the entry."""
        if self._busy or self._off:
            return forward(*args, **kwargs)
        self._busy = True
        try:
            batch = self._read(forward, args, kwargs)
            if self._collected is not None:
                self._collected.append(batch)
                raise _Collected
            way = self._way(forward, batch)
            if way is None:
                return forward(*args, **kwargs)
            self._started = True
            if not way.trims:
                batch = batch._replace(length=None, lengths=None)
            return self._go(way, batch, lambda: forward(*args, **kwargs))
        finally:
            self._busy = False

    def _read(
        self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Batch:
        flat = [*args, *kwargs.values()]
        if all(isinstance(each, torch.Tensor) for each in flat):
            key: Any = (len(args), *kwargs)
        else:
            flat, key = tree_flatten((args, dict(kwargs)))
        layout = self._layouts.get(key)
        if layout is None:
            layout = layout_of(forward, args, kwargs, self._mask)
            self._layouts[key] = layout
        return read_batch(flat, layout)

    def _way(self, forward: Forward, batch: Batch) -> _Way | None:
        """Returns how to go about a batch, None if as ever."""
        if self._applied.phase is not self._phase:
            self._phase = self._applied.phase
            self._sweep()
        modes = bytes([module.training for module in self._modules])
        form = batch.form()
        if form in self._untrimmed:
            form = batch._replace(length=None, lengths=None).form()
        kind = _autocast(batch)
        key = (self._phase.index, self._applied._waiting is not _NOTHING, form, modes, kind, torch.is_grad_enabled())
        if key in self._ways:
            way = self._ways[key]
            if way is None or self._still(way):
                return way
        if len(self._ways) >= _FORMS * (1 + self._phase.index):
            return None
        way = self._learned(forward, batch)
        if way is not None and not way.trims and batch.length is not None:
            self._untrimmed.add(batch.form())
            form = batch._replace(length=None, lengths=None).form()
            key = (*key[:2], form, *key[3:])
        self._ways[key] = way
        return way

    def _learned(self, forward: Forward, batch: Batch) -> _Way | None:
        """Returns a way that was proven; warns, or raises before anything was stored, if none."""
        try:
            way = self._prepare(forward, batch, self._hot(self._phase.index, self._phase.index))
        except CacheRefusedError as error:
            if not self._started:
                raise
            warnings.warn(f"{error}; going on without it", stacklevel=2)
            return None
        for index in range(self._phase.index + 1, len(self._applied.resolved.phases)):
            try:
                hot = self._hot(self._phase.index, index)
                ahead = self._prepare(forward, batch, hot)
            except CacheRefusedError:
                continue
            known = {tap.name for each in (way, *way.ahead) for tap in each.program.taps}
            if any(tap.name not in known for tap in ahead.program.taps):
                way.ahead.append(ahead)
        return way

    def _prepare(self, forward: Forward, batch: Batch, hot: frozenset[int]) -> _Way:
        entry = self._entry
        named = [*entry.named_modules()]
        below: dict[str, bool] = {}
        weighty = set()
        for path, module in reversed(named):
            parameters = [*module.parameters()]
            below[path] = any(id(each) in hot for each in parameters)
            if parameters:
                weighty.add(path)

        def run(leaves: Sequence[Any]) -> Any:  # noqa: ANN401
            args, kwargs = tree_unflatten(list(leaves), batch.layout.spec)
            return forward(*args, **kwargs)

        hot_paths = frozenset(path for path, found in below.items() if found)
        watched = Pass(entry, run, hot, hot_paths, frozenset(weighty))
        program, trims = learn(watched, batch)
        validity = Validity(entry, program)
        for tap in program.taps:
            self._valid.setdefault(tap.name, validity)
        modules = [(path, entry.get_submodule(path)) for path in program.calls]
        roots = tuple(batch.layout.labels[at] for at in sorted(program.roots))
        return _Way(program, trims, modules, roots)

    def _hot(self, first: int, last: int) -> frozenset[int]:
        """Returns the identities of what trains now or in some phase of a stretch."""
        applied = self._applied
        names: set[str] = set()
        for phase in applied.resolved.phases[first : last + 1]:
            names |= phase.trainable
        rows = (applied.resolved._row_of[name] for name in names)
        found = {id(applied._writer.parameter(row)) for row in rows}
        found |= {id(each) for each in self._entry.parameters() if each.requires_grad}
        return frozenset(found)

    def _still(self, way: _Way) -> bool:
        """Returns whether a way is valid, and drops what is stored if not."""
        valid = self._is_valid(way)
        if not valid:
            self._sweep()
        return valid

    def _is_valid(self, way: _Way) -> bool:
        """Returns whether what is stored for a way still is what the model would compute."""
        checks = [self._valid.get(tap.name) for tap in way.program.taps]
        return all(each is not None and each.holds() for each in {*checks})

    def _sweep(self) -> None:
        """Drops all that is stored and not valid any more."""
        verdicts = {id(each): each.holds() for each in {*self._valid.values()}}
        for name, validity in [*self._valid.items()]:
            if not verdicts[id(validity)]:
                self._store.drop(name)
                del self._valid[name]

    def _taps(self, way: _Way) -> list[Tap]:
        return [
            self._store.tap(tap.name, tap.row_shape, tap.dtype) for tap in way.program.taps
        ]

    def _go(self, way: _Way, batch: Batch, run: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Runs a pass: answered from the store, or computed and stored."""
        roots = [batch.layout.labels.index(label) for label in way.roots]
        keys = row_keys(batch, roots)
        start = time.perf_counter()
        values = self._values(way, batch, keys)
        if values is not None and self._stops:
            raise _Enough
        if values is not None:
            replay = Replay(way.program, way.modules, values, (batch.size, batch.length))
            random = torch.get_rng_state()
            try:
                with replay.following():
                    result = run()
            except Diverged:
                torch.set_rng_state(random)
                return run()
            self._hits += batch.size
            self._clock.answered[0] += batch.size
            self._clock.answered[1] += time.perf_counter() - start
            return result
        random = torch.get_rng_state()
        try:
            result = self._record(way, batch, keys, run)
        except Diverged:
            torch.set_rng_state(random)
            result = run()
        self._misses += batch.size
        self._clock.computed[0] += batch.size
        self._clock.computed[1] += time.perf_counter() - start
        return result

    def _values(self, way: _Way, batch: Batch, keys: list[int]) -> list[torch.Tensor] | None:
        """Returns the stored tensors for a batch, None if a row is missing."""
        taps = self._taps(way)
        found = []
        for tap in taps:
            slots = tap.find(keys)
            if slots is None:
                return None
            found.append(slots)
        device = next(each.device for each in batch.leaves if isinstance(each, torch.Tensor))
        return [
            tap.gather(slots, batch.length if None in spec.row_shape else None, device)
            for tap, spec, slots in zip(taps, way.program.taps, found, strict=True)
        ]

    def _record(
        self, way: _Way, batch: Batch, keys: list[int], run: Callable[[], Any]
    ) -> Any:  # noqa: ANN401
        """Runs a pass and stores what crosses, from the lowest boundary that is stored."""
        with ExitStack() as stack:
            below = self._below(way, batch, keys)
            if below is not None:
                stack.enter_context(below.following())
            waiting = {tap.name for each in (way, *way.ahead) for tap in each.program.taps}
            for each in (*reversed(way.ahead), way):
                sink = self._sink(each, batch, keys, waiting)
                recorder = Recorder(each.program, each.modules, sink)
                stack.enter_context(recorder.following())
            return run()

    def _below(self, way: _Way, batch: Batch, keys: list[int]) -> Replay | None:
        """Returns what answers for the lower part of the frozen part, if that is stored."""
        for other in (*way.ahead, *(each for each in self._ways.values() if each is not None)):
            if other is not way and (other.roots, other.trims) == (way.roots, way.trims):
                values = self._values(other, batch, keys) if self._is_valid(other) else None
                if values is not None:
                    sizes = (batch.size, batch.length)
                    return Replay(other.program, other.modules, values, sizes)
        return None

    def _sink(
        self, way: _Way, batch: Batch, keys: list[int], waiting: set[str]
    ) -> Callable[[int, torch.Tensor], None]:
        taps = self._taps(way)
        lengths = None if batch.lengths is None else batch.lengths.tolist()

        def sink(number: int, tensor: torch.Tensor) -> None:
            spec = way.program.taps[number]
            taps[number].put(keys, tensor, lengths if None in spec.row_shape else None)
            waiting.discard(spec.name)
            if self._stops and not waiting:
                raise _Enough

        return sink


def _call(model: torch.nn.Module, batch: Any) -> Any:  # noqa: ANN401
    """Calls a model with a batch as most do."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    return model(batch)


def _autocast(batch: Batch) -> tuple[Any, ...]:
    kinds = {each.device.type for each in batch.leaves if isinstance(each, torch.Tensor)}
    return tuple(
        (kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
        for kind in sorted(kinds)
    )


def _stacked(batches: list[Batch]) -> Batch:
    """Returns batches of one form as one, padded with zeros to the longest."""
    first = batches[0]
    if len(batches) == 1:
        return first
    length = max((batch.length or 0 for batch in batches)) if first.length is not None else None
    leaves = list(first.leaves)
    for at in range(len(leaves)):
        if first.rows_at(at):
            parts = [batch.leaves[at] for batch in batches]
            if first.follows_length(at) and length is not None:
                parts = [_padded(each, length) for each in parts]
            leaves[at] = torch.cat(parts)
    lengths = None
    if first.lengths is not None:
        lengths = torch.cat([batch.lengths for batch in batches if batch.lengths is not None])
    size = sum(batch.size for batch in batches)
    return Batch(leaves, first.layout, size, length, lengths)


def _padded(leaf: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - leaf.shape[1]
    if not missing:
        return leaf
    return torch.cat([leaf, leaf.new_zeros(len(leaf), missing, *leaf.shape[2:])], 1)
