"""ActivationCache: what is frozen is computed once for each sample."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from threading import Lock, get_ident
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .._apply import AppliedPlan
from .._rules import whole_number
from ..errors import FreezekitError
from ._batch import Batch, Layout, layout_of, read_batch, row_keys
from ._entry import Entry, check_key
from ._filling import part, refilled
from ._fingerprint import fingerprint
from ._follow import Diverged, Recorder, Replay
from ._functions import rewinding
from ._identities import Identities, key_of, read_ids
from ._learning import differs, untouched
from ._options import check_options
from ._parts import joined_rows, missing_rows, pays
from ._patches import Forward
from ._refusals import CacheRefusedError, refuse
from ._stats import Record, Stats
from ._store import Store
from ._tap import Tap as StoredTap
from ._turns import Turns
from ._ways import Way, Ways

_MEMORY = 1 << 30
_STRIKES = 8

Call = Callable[[torch.nn.Module, Any], Any]


class _Collected(BaseException):
    """Ends a pass whose arguments are all that is wanted."""


class _Enough(BaseException):
    """Ends a pass of which all is stored that is to be."""


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
        >>> from torch import nn
        >>> from freezekit import FreezePlan
        >>> from freezekit.cache import ActivationCache
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
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
        boundary: str | None = None,
        mask: str | None = "attention_mask",
        key: str | None = None,
        memory: int = _MEMORY,
        folder: str | PathLike[str] | None = None,
        dtype: torch.dtype | None = None,
        tag: str = "",
        audit: int | None = None,
    ) -> None:
        """Stands in for the forward of the model from now on; `close` ends that.

        Args:
            applied: the plan that was applied to the model.
            entry: path of the module whose calls are the passes, "" for the model itself. Where a
                training step calls a part of it, as with Lightning, that part.
            boundary: path of a module, from the entry, to store the output of; None finds what is
                best.
            mask: the argument of its forward that says what is padding (1 for what is not), of
                shape (B, length). Rows whose padding is at their end are stored without it.
            key: the keyword argument in which passes get the ids of samples, for inputs that take
                long to read, such as images; see `WithIds`. None keys rows by their content.
            memory: bytes of rows that are held in memory.
            folder: where all rows are written too, for later runs and other processes. Rows beyond
                `memory` are read from there; without a folder they are computed each time.
            dtype: a smaller floating dtype to store in; None stores what was computed.
            tag: what else the inputs of the model depend on, such as the version of a tokenizer: a
                folder of another tag is refused.
            audit: one row in about so many is computed again and compared; 0 for none; None for
                1,000 with `key`, else 10,000. It is what sees a weight that was written through
                `.data`, or an image that is another one under the same id.

        Raises:
            FreezekitError: the plan was released, there is no such module, or what is in `folder`
                belongs to something else.
        """
        applied._check_live()
        root = applied._modules[0]
        module = _submodule(root, "entry", entry)
        if boundary is not None:
            _submodule(module, "boundary", boundary)
        check_options(mask, key, folder, dtype, tag)
        usual = 10_000 if key is None else 1_000
        self._audit = usual if audit is None else whole_number("audit", audit, 0)
        self._memory = whole_number("memory", memory, 0)
        check_key(module, key)
        where = None if folder is None else Path(folder)
        self._root = root
        self._has_folder = where is not None
        self._mask = mask
        self._key = key
        self._store = Store(
            memory=self._memory,
            folder=where,
            dtype=dtype,
            fingerprint={} if where is None else fingerprint(applied, module, tag),
        )
        self._ways = Ways(
            applied, module, self._store, boundary=boundary, durable=where is not None
        )
        self._identities = Identities()
        if self._store.readonly:
            warnings.warn(
                f"another process writes to {folder}: this one reads what that one has stored, and "
                "keeps what it computes itself in memory",
                stacklevel=2,
            )
        self._layouts: dict[Any, Layout] = {}
        self._lock = Lock()
        self._thread: int | None = None
        self._collected: list[Batch] | None = None
        self._fills = False
        self._record = Record()
        self._turns = Turns(applied)
        self._entry = Entry(module, self._answer, key)

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
        self._entry.remove()
        self._store.close()

    def stats(self) -> Stats:
        """Returns what was answered, what is stored, and the time that it saved."""
        record = self._record
        sizes = (self._store.nbytes, self._store.file_bytes)
        counts = self._store.counts
        unstored = counts.refused + counts.lost
        return Stats(record.hits, record.misses, *sizes, record.saved(), unstored, counts.rounding)

    def warm(
        self,
        batches: Iterable[Any],
        forward: Call | None = None,
        *,
        batch_size: int = 32,
        window: int = 4096,
        progress: bool = True,
    ) -> None:
        """Stores all rows of some batches, those of like length together.

        It takes about half of the time of an epoch, since hardly any padding is computed. The
        model is called once for each batch to see its inputs; nothing is computed in these calls.

        Args:
            batches: what training goes over, such as its data loader.
            forward: calls the model with one of them; by default with a mapping's items as keyword
                arguments, with a sequence's as positional ones.
            batch_size: rows to compute at a time.
            window: rows to sort at a time; the inputs of so many are held in memory.
            progress: show how far it is, on stderr, where tqdm is installed.

        Raises:
            CacheRefusedError: the frozen part cannot be cached, and why.
            FreezekitError: `forward` does not call the model.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> from freezekit.cache import ActivationCache
            >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
            >>> with ActivationCache(FreezePlan().freeze("[0]").apply(model)) as cache:
            ...     data = [(torch.randn(8, 4), torch.zeros(8)) for _ in range(3)]
            ...     cache.warm(data, lambda model, batch: model(batch[0]), progress=False)
            ...     _ = model(data[2][0])
            ...     print(cache.stats().hits)
            8
        """
        pending: list[Batch] = []
        total = len(batches) if isinstance(batches, Sized) else None
        with torch.no_grad(), self._aside(), _bar(batches, progress) as shown:
            for batch in shown:
                inputs = self._inputs(batch, forward or _call)
                if total is not None and not self._record.misses and not pending:
                    self._predict(inputs[0], total)
                pending += inputs
                if sum(each.size for each in pending) >= window:
                    self._fill(pending, batch_size)
                    pending = []
            self._fill(pending, batch_size)
        self._store.flush()

    def _predict(self, batch: Batch, batches: int) -> None:
        """Warns if the rows of so many batches will not fit, and leaves out what can be."""
        way, read = self._ways.of(self._entry.forward, batch)
        if way is None or self._has_folder:
            return
        lengths = read.lengths
        mean = 1.0 if lengths is None else sum(lengths) / len(lengths)
        needed = self._ways.fit(way, batches * batch.size, mean, self._memory)
        if needed > self._memory:
            warnings.warn(
                f"{batches * batch.size:,} rows take about {needed / 2**20:,.0f} MiB, and memory="
                f"{self._memory:,} bytes hold {self._memory / needed:.0%} of them; the others "
                "are computed each time: allow more, or name a folder=...",
                stacklevel=3,
            )

    def export(
        self,
        batches: Iterable[Any],
        forward: Call | None = None,
        *,
        path: str | PathLike[str] | None = None,
    ) -> torch.utils.data.TensorDataset:
        """Returns what is stored for some batches, with whatever else is in them, as a data set.

        For a training loop of one's own over the features. Rows that are not stored are computed.

        Args:
            batches: what training goes over. Of what is in them, tensors with rows are kept that
                the features do not depend on: the labels.
            forward: calls the model with one of them; see `warm`.
            path: a file to write the tensors of the data set to, as a list that
                `torch.load(path)` reads; one that is there is replaced. None writes none.

        Returns:
            A data set of features, one tensor for each that crosses into what trains, and labels.
            Shorter rows are padded with zeros.

        Raises:
            CacheRefusedError: the frozen part cannot be cached, and why.
            FreezekitError: `forward` does not call the model, or not once for each batch; or
                `path` cannot be written to.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> from freezekit import FreezePlan
            >>> from freezekit.cache import ActivationCache
            >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
            >>> with ActivationCache(FreezePlan().freeze("[0]").apply(model)) as cache:
            ...     data = [(torch.randn(8, 4), torch.zeros(8)) for _ in range(3)]
            ...     features = cache.export(data, lambda model, batch: model(batch[0]))
            >>> [tuple(each.shape) for each in features.tensors]
            [(24, 64), (24,)]
        """
        file = None if path is None else Path(path)
        if file is not None and not file.parent.is_dir():
            raise FreezekitError(f"export: path={str(path)!r}: there is no folder {file.parent}")
        parts = []
        for batch in batches:
            inputs = self._inputs(batch, forward or _call)
            if len(inputs) != 1:
                raise FreezekitError(f"export: a batch makes {len(inputs)} passes; expected one")
            with torch.no_grad(), self._aside():
                self._fill(inputs, inputs[0].size)
                way, read = self._ways.of(self._entry.forward, inputs[0])
                values = None if way is None else self._values(way, read, self._keys(way, read))
            if way is None or values is None:
                raise FreezekitError("export: a batch cannot be stored; see the warnings before")
            used = {id(read.leaves[read.layout.labels.index(label)]) for label in way.roots}
            parts.append([*values, *_labels(batch, used, read.size)])
        tensors = [*map(_stacked, zip(*parts, strict=True))]
        if file is not None:
            _save(tensors, file)
        return torch.utils.data.TensorDataset(*tensors)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Leaves buffers and random generators as they were before the block."""
        rewind = rewinding()
        with untouched(self._entry.module), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
        rewind()

    def _inputs(self, batch: object, forward: Call) -> list[Batch]:
        """Returns what the entry is called with in a pass over a batch."""
        found: list[Batch] = []
        self._collected = found
        try:
            forward(self._root, batch)
        except _Collected:
            pass
        finally:
            self._collected = None
        if not found:
            raise FreezekitError(
                f"{forward!r} does not call {type(self._root).__name__}; pass a function that "
                "calls the model with a batch: lambda model, batch: model(batch[0])"
            )
        return found

    def _fill(self, pending: list[Batch], batch_size: int) -> None:
        """Computes the rows of some batches, sorted by length."""
        for batch in refilled(pending, batch_size):
            self._fills = True
            forward = self._entry.forward
            args, kwargs = tree_unflatten(batch.leaves, batch.layout.spec)
            try:
                self._pass(forward, batch, partial(forward, *args, **kwargs))
            except _Enough:
                pass
            finally:
                self._fills = False

    def _answer(self, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Answers a call of the entry."""
        ids = None if self._key is None else kwargs.pop(self._key, None)
        if self._thread == get_ident() or self._turns.over:
            return forward(*args, **kwargs)
        batch = self._read(forward, args, kwargs)
        if ids is not None:
            batch = batch._replace(ids=read_ids(ids, batch.size))
        if self._collected is not None:
            self._collected.append(batch)
            raise _Collected
        return self._pass(forward, batch, lambda: forward(*args, **kwargs))

    def _pass(self, forward: Forward, batch: Batch, run: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Runs a pass the best way there is."""
        with self._lock:
            self._thread = get_ident()
            try:
                way, batch = self._ways.of(forward, batch)
                if way is None:
                    return run()
                result = self._go(way, batch, run)
                self._ways.started = True
                return result
            finally:
                self._thread = None

    def _read(self, forward: Forward, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Batch:
        flat = [*args, *kwargs.values()]
        key: Any = (len(args), *kwargs)
        if not all(isinstance(each, torch.Tensor) for each in flat):
            flat, key = tree_flatten((args, dict(kwargs)))
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = layout_of(forward, args, kwargs, self._mask)
        return read_batch(flat, layout)

    def _go(self, way: Way, batch: Batch, run: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Runs a pass: answered from the store, or computed and stored."""
        start = time.perf_counter()
        undo = self._undoing(way)
        keys = self._keys(way, batch)
        values = self._values(way, batch, keys)
        if values is None and self._store.readonly and self._turns.may_look():
            self._store.refresh()
            values = self._values(way, batch, keys)
        if values is not None and self._fills:
            raise _Enough
        missing: list[int] = []
        if values is None:
            missing = missing_rows(self._taps(way), keys)
            if way.apart and not self._fills and pays(missing, batch.size):
                values = self._completed(way, batch, keys, missing)
                undo()
        apart = time.perf_counter() - start
        due = bool(self._audit) and (
            not way.checked or (values is not None and self._turns.is_due(batch.size, self._audit))
        )
        rows = [0]
        if due:
            rows = [batch.size - 1 if values is None else self._turns.row(batch.size), 0]
        alone = self._alone(way, batch, rows) if due else {}
        try:
            if values is None:
                result = self._computed(way, batch, keys, run)
                stored = self._values(way, batch, keys) if due else None
                if stored is not None:
                    self._agrees(way, rows, alone, stored)
            elif due and not self._agrees(way, rows, alone, values):
                result, values = run(), None
            else:
                sizes = (batch.size, batch.length)
                replay = Replay(way.program, way.modules, values, sizes, way.spares)
                with replay.following():
                    result = run()
        except Diverged:
            undo()
            result, values = run(), None
            self._strike(way)
        else:
            way.strikes = 0
        seconds = time.perf_counter() - start
        if not (due or self._fills):
            way.took(batch.size, len(missing) if values is not None else batch.size, seconds)
        if values is None:
            self._record.miss(batch.size, seconds)
        else:
            self._record.completed(batch.size, seconds, len(missing), apart)
        if torch.is_grad_enabled() and not self._fills:
            if values is not None:
                self._turns.hit()
            elif self._turns.missed():
                self._ways.forget()
        return result

    @staticmethod
    def _undoing(way: Way) -> Callable[[], None]:
        """Returns what puts back random generators and buffers as they are now."""
        rewind = rewinding()
        before = [held[name].clone() for held, name in way.moving]

        def undo() -> None:
            rewind()
            with torch.no_grad():
                for (held, name), buffer in zip(way.moving, before, strict=True):
                    held[name].data.copy_(buffer)

        return undo

    def _strike(self, way: Way) -> None:
        """Gives up a way that passes do not go, after some in a row."""
        way.strikes += 1
        if way.strikes == _STRIKES:
            problem = (
                f"the last {_STRIKES} passes went another way than those that were learned from: "
                "what is computed depends on the values of the batch, or on a value outside"
            )
            self._ways.give_up(way, CacheRefusedError(problem, "control_flow"))

    def _keys(self, way: Way, batch: Batch) -> list[int]:
        roots = [batch.layout.labels.index(label) for label in way.roots]
        small = roots if batch.ids is None else batch.small(roots)
        keys = row_keys(batch, small)
        if batch.ids is not None and len(small) < len(roots):
            return [key_of(value) ^ key for value, key in zip(batch.ids, keys, strict=True)]
        if batch.ids is not None and (batch.layout.mask is None or batch.lengths is not None):
            self._identities.check(batch.ids, keys)
        return keys

    def _values(self, way: Way, batch: Batch, keys: list[int]) -> list[torch.Tensor] | None:
        """Returns the stored tensors for a batch, None if a row is missing."""
        found = []
        for tap in way.program.taps:
            stored = self._store.tap(tap.name, tap.row_shape, tap.dtype)
            slots = stored.find(keys)
            if slots is None:
                return None
            found.append((stored, slots))
        device = next(each.device for each in batch.leaves if isinstance(each, torch.Tensor))
        values = []
        for stored, slots in found:
            length = batch.length if None in stored.row_shape else None
            value = stored.gather(slots, length, device)
            if value is None:
                return None
            values.append(value)
        return values

    def _taps(self, way: Way) -> list[StoredTap]:
        taps = way.program.taps
        return [self._store.tap(tap.name, tap.row_shape, tap.dtype) for tap in taps]

    def _completed(
        self, way: Way, batch: Batch, keys: list[int], missing: list[int]
    ) -> list[torch.Tensor] | None:
        """Computes the rows of a batch that are not stored, as a batch of their own.

        Returns:
            The tensors for the whole batch; None if that cannot be.
        """
        some = part(batch, torch.tensor(missing))
        args, kwargs = tree_unflatten(some.leaves, some.layout.spec)
        run = partial(self._entry.forward, *args, **kwargs)
        fresh: dict[int, torch.Tensor] = {}
        grad = torch.set_grad_enabled(torch.is_grad_enabled())
        try:
            with grad:
                self._computed(way, some, [keys[row] for row in missing], run, fresh)
        except (Exception, Diverged):  # so few rows are no batch for it, or go another way
            fresh = {}
        if len(fresh) < len(way.program.taps):
            way.apart = False
            return None
        values = []
        for number, tap in enumerate(self._taps(way)):
            value = joined_rows(tap, keys, batch, missing, fresh[number])
            if value is None:
                return None
            values.append(value)
        return values

    def _computed(
        self,
        way: Way,
        batch: Batch,
        keys: list[int],
        run: Callable[[], Any],
        fresh: dict[int, torch.Tensor] | None = None,
    ) -> Any:  # noqa: ANN401
        """Runs a pass and stores what crosses, from the nearest boundary below that is stored.

        It ends where all is stored in filling, or with `fresh`, which gets what crosses.
        """
        self._ways.look(way)
        lengths = batch.lengths
        waiting = {tap.name for tap in way.taps()}

        def sink_of(each: Way) -> Callable[[int, torch.Tensor], None]:
            def sink(number: int, tensor: torch.Tensor) -> None:
                tap = each.program.taps[number]
                stored = self._store.tap(tap.name, tap.row_shape, tap.dtype)
                stored.put(keys, tensor, lengths if None in tap.row_shape else None)
                waiting.discard(tap.name)
                if fresh is not None and each is way:
                    fresh[number] = tensor.clone()
                ends = self._fills if fresh is None else len(fresh) == len(way.program.taps)
                if ends and not waiting:
                    raise _Enough

            return sink

        try:
            with ExitStack() as stack:
                for other in self._ways.others(way):
                    values = self._values(other, batch, keys)
                    if values is not None:
                        sizes = (batch.size, batch.length)
                        replay = Replay(other.program, other.modules, values, sizes)
                        stack.enter_context(replay.following())
                        break
                for each in (*reversed(way.ahead), way):
                    recorder = Recorder(each.program, each.modules, sink_of(each))
                    stack.enter_context(recorder.following())
                return run()
        except _Enough:
            return None

    def _alone(self, way: Way, batch: Batch, rows: list[int]) -> dict[int, torch.Tensor]:
        """Computes some rows of a batch by themselves, and returns what is stored of them."""
        some = part(batch, torch.tensor(rows))
        found: dict[int, torch.Tensor] = {}

        def sink(number: int, tensor: torch.Tensor) -> None:
            found[number] = tensor.clone()
            if None in way.program.taps[number].row_shape and some.lengths is not None:
                for row, length in zip(found[number], some.lengths, strict=True):
                    row[length:] = 0
            if len(found) == len(way.program.taps):
                raise _Enough

        recorder = Recorder(way.program, way.modules, sink)
        args, kwargs = tree_unflatten(some.leaves, some.layout.spec)
        grad = torch.set_grad_enabled(torch.is_grad_enabled())
        try:
            with untouched(self._entry.module), grad, recorder.following():
                self._entry.forward(*args, **kwargs)
        except _Enough:
            pass
        except Exception:  # so few rows are no batch for it: what was seen counts
            pass
        return found

    def _agrees(
        self, way: Way, rows: list[int], alone: dict[int, torch.Tensor], values: list[torch.Tensor]
    ) -> bool:
        """Returns whether a way proves right on real rows; if not, does without it from now on.

        Raises:
            FreezekitError: it did before.
            CacheRefusedError: nothing was answered yet.
        """
        try:
            self._compare(way, rows, alone, values)
        except CacheRefusedError as error:
            self._ways.give_up(way, error)
            return False
        return True

    def _compare(
        self, way: Way, rows: list[int], alone: dict[int, torch.Tensor], values: list[torch.Tensor]
    ) -> None:
        """Compares rows computed by themselves with what is stored.

        Raises:
            FreezekitError: they differ.
            CacheRefusedError: they do so the first time.
        """
        for number, tensor in alone.items():
            tap, value = way.program.taps[number], values[number][rows]
            stored = self._store.tap(tap.name, tap.row_shape, tap.dtype).stored_dtype
            if None in tap.row_shape:
                value = value[:, : tensor.shape[1]]
            if not differs(tensor.to(stored), value.to(stored)):
                continue
            if not way.checked:
                refuse(
                    "interactions",
                    f"{tap.text!r} gives another value for a row alone than in its batch: rows "
                    "depend on each other, or on their number or place",
                    "do without the cache, or name a boundary below with boundary=...",
                )
            raise FreezekitError(
                f"the cache holds another value for row {rows[0]} of this batch than "
                f"{tap.text!r} computes: a frozen tensor was written through .data, an id names "
                "other data than before, or something has changed that is neither a parameter, a "
                "buffer nor an input; close the cache and make a new one, and see applied.guard()"
            )
        way.checked = True


def _submodule(module: torch.nn.Module, option: str, path: str) -> torch.nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise FreezekitError(f"{option}={path!r}: {error}") from error


def _call(model: torch.nn.Module, batch: Any) -> Any:  # noqa: ANN401
    """Calls a model with a batch as most do."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        return model(*batch)
    return model(batch)


@contextmanager
def _bar(batches: Iterable[Any], progress: bool) -> Iterator[Iterable[Any]]:
    """Yields the batches, shown on stderr as they go."""
    try:
        from tqdm import tqdm
    except ImportError:
        progress = False
    if not progress:
        yield batches
        return
    with tqdm(batches, desc="warming the cache", unit="batch") as bar:
        yield bar


def _labels(batch: object, used: set[int], size: int) -> list[torch.Tensor]:
    """Returns the tensors of a batch with a row for each sample that features do not depend on."""
    tensors = (each for each in tree_leaves(batch) if isinstance(each, torch.Tensor))
    return [each for each in tensors if each.shape[:1] == (size,) and id(each) not in used]


def _save(tensors: list[torch.Tensor], file: Path) -> None:
    """Writes tensors to a file, whole or not at all.

    Raises:
        FreezekitError: it cannot be written.
    """
    new = file.with_name(f"{file.name}.new")
    try:
        torch.save(tensors, new)
        new.replace(file)
    except (OSError, RuntimeError) as error:
        new.unlink(missing_ok=True)
        raise FreezekitError(f"export: path={str(file)!r} cannot be written: {error}") from error


def _stacked(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Returns batches of rows as one tensor, shorter rows padded with zeros."""
    if len({each.shape[1:] for each in parts}) == 1:
        return torch.cat(parts)
    length = max(each.shape[1] for each in parts)
    padded = (
        torch.cat([each, each.new_zeros(len(each), length - each.shape[1], *each.shape[2:])], 1)
        for each in parts
    )
    return torch.cat([*padded])
