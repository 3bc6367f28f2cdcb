"""How passes go: learned once for each phase, form of batch and set of modes."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch.utils._pytree import tree_unflatten

from .._apply import AppliedPlan
from .._digest import digest
from ._batch import Batch
from ._events import Pass
from ._filling import distinct, joined, part
from ._guards import Validity
from ._learning import learn
from ._patches import Forward
from ._program import Program, Tap
from ._refusals import CacheRefusedError
from ._rows import predicted_bytes
from ._spares import Spares
from ._state import State
from ._store import Store

_CHANGES = 8
"""How often what is stored may become invalid in one phase before it is given up."""
_SLOWER = 8
"""How many passes in a row may take longer for computing some of their rows only."""
_FORMS = 64
"""How many forms of batches are learned in one phase."""
_ROWS = 3
"""How many rows that differ it takes to learn: of one alone, none can depend on the others."""

_training = itemgetter("training")


@dataclass(slots=True, eq=False)
class Way:
    """How passes of one form go in one phase.

    Attributes:
        program: what is left out and what is stored.
        trims: whether rows are stored without their padding.
        modules: the modules whose calls matter, by path.
        roots: the labels of the arguments that what is stored depends on.
        setting: the form, the modes and what else decides how a pass goes.
        moving: where the buffers stand that a pass may change.
        validity: what its program depends on, constants in it too.
        ahead: the ways of later phases, whose taps are stored along with this one's.
        behind: those of earlier phases, from whose taps this one's can be computed.
        spares: what answered passes leave for later ones.
        strikes: how many passes in a row went another way.
        checked: whether a row of a real batch was computed again and compared.
        look: learns the ways ahead; None once it has.
        apart: whether rows that are not stored may be computed without those that are.
        fastest: the least seconds that a row took where all of a batch were computed.
        slower: how many passes in a row took longer, with only some of their rows computed.
    """

    program: Program
    trims: bool
    modules: list[tuple[str, torch.nn.Module]]
    roots: tuple[str, ...]
    setting: tuple[Any, ...]
    moving: list[tuple[dict[str, Any], str]]
    validity: Validity
    ahead: list[Way] = field(default_factory=list)
    behind: list[Way] = field(default_factory=list)
    spares: Spares = field(default_factory=Spares)
    strikes: int = 0
    checked: bool = False
    look: Callable[[], None] | None = None
    apart: bool = True
    fastest: float = math.inf
    slower: int = 0

    def taps(self) -> Iterator[Tap]:
        """Yields what is stored in a pass: for this phase, then for later ones."""
        for way in (self, *self.ahead):
            yield from way.program.taps

    def took(self, rows: int, computed: int, seconds: float) -> None:
        """Notes how long a pass took in which so many rows were computed.

        Where calls cost more than computing, as in a small model, it is not worth it to compute
        some rows apart.
        """
        if computed == rows:
            self.fastest = min(self.fastest, seconds / rows)
        elif computed:
            self.slower = self.slower + 1 if seconds > self.fastest * rows else 0
            self.apart = self.apart and self.slower < _SLOWER


class Ways:
    """Learns how passes go, and forgets what does not hold any more.

    Attributes:
        started: whether anything was answered; until then a refusal is an error.
    """

    def __init__(
        self,
        applied: AppliedPlan,
        entry: torch.nn.Module,
        store: Store,
        *,
        boundary: str | None,
        durable: bool,
    ) -> None:
        """Nothing is learned yet.

        Args:
            applied: the plan that says what trains.
            entry: the module whose calls are passes.
            store: where rows are dropped that are not valid any more.
            boundary: path of the module, from the entry, after whose call everything is computed.
            durable: whether rows outlive the process, so that weights are part of their names.
        """
        self._applied = applied
        self._entry = entry
        self._store = store
        self._modules = [*entry.modules()]
        self._own = [vars(module) for module in self._modules]
        self._known: dict[Any, Way | None] = {}
        self._proven: dict[Any, Way] = {}
        self._whole: set[Any] = set()
        self._few: dict[Any, Batch] = {}
        self._valid: dict[str, Validity] = {}
        self._digests: dict[int, tuple[int, int, bytes]] = {}
        self._changes: dict[Any, int] = {}
        self._crowded = -1
        self._phase = applied.phase
        self._boundary = boundary
        self._durable = durable
        self.started = False

    def of(self, forward: Forward, batch: Batch) -> tuple[Way | None, Batch]:
        """Returns how to go about a batch, None if as ever, and the batch as it is to be read.

        Raises:
            CacheRefusedError: there is no way, and nothing was answered yet.
        """
        if not batch.size:
            return None, batch
        if self._applied.phase is not self._phase:
            self._phase = self._applied.phase
            self._sweep()
        form = batch.form()
        if form in self._whole:
            batch = batch._replace(length=None, lengths=None)
            form = batch.form()
        modes = self._modes()
        precision = _precision(batch)
        key = (self._phase.index, form, modes, precision, torch.is_grad_enabled())
        if key in self._known:
            way = self._known[key]
            if way is None or self._still(way, modes) or self._restless(key):
                return self._known[key], batch
        elif sum(each[0] == self._phase.index for each in self._known) >= _FORMS:
            self._tell_forms(batch)
            return None, batch
        probed = self._probed(batch)
        if probed is None:
            return None, batch
        way = self._learned(forward, probed, precision)
        if way is not None and not way.trims and batch.length is not None:
            self._whole.add(form)
            batch = batch._replace(length=None, lengths=None)
            key = (key[0], batch.form(), *key[2:])
        self._known[key] = way
        return way, batch

    def _tell_forms(self, batch: Batch) -> None:
        """Warns, once in a phase, that batches of more forms come than are learned."""
        if self._crowded == self._phase.index:
            return
        self._crowded = self._phase.index
        forms = [key[1] for key in self._known if key[0] == self._phase.index]
        count = {
            label: len({form[2 + at] for form in forms if form[0] == batch.layout})
            for at, label in enumerate(batch.layout.labels)
        }
        label = max(count, key=lambda each: count[each])
        warnings.warn(
            f"batches came in {len(forms)} forms in this phase, and those of others are computed "
            f"without the cache: {label!r} alone had {count[label]} values, or shapes. A number "
            "that changes in each pass can be passed as a tensor, or used outside of the model; "
            "padding to multiples of 8 or 16 gives fewer shapes",
            stacklevel=2,
        )

    def _restless(self, key: Any) -> bool:  # noqa: ANN401
        """Gives up a way whose ground changed again and again, and returns whether it did."""
        self._changes[key] = self._changes.get(key, 0) + 1
        if self._changes[key] < _CHANGES:
            return False
        self._known[key] = None
        warnings.warn(
            f"what is stored did not stay valid: {_CHANGES} times in this phase a frozen tensor, "
            "or a value that a module holds, was another one than before (a counter in a module, "
            "weights that are loaded anew); going on without the cache",
            stacklevel=2,
        )
        return True

    def _probed(self, batch: Batch) -> Batch | None:
        """Returns a batch of several rows to learn from; None until there were as many."""
        form = batch.form()
        few = self._few.pop(form, None)
        if few is not None:
            batch = joined([few, batch])
        if len(distinct(batch)) >= _ROWS:
            return batch
        self._few[form] = part(batch, torch.tensor(distinct(batch)))
        return None

    def fit(self, way: Way, rows: int, mean_length: float, budget: int) -> int:
        """Leaves taps of later phases out until all that is stored fits into some bytes.

        The lowest boundary is kept longest: the others can be computed from it.

        Args:
            way: how passes go now; it is changed.
            rows: how many will be stored.
            mean_length: of those without padding.
            budget: bytes.

        Returns:
            How many bytes are expected with what is left.
        """
        self.look(way)

        def needed() -> int:
            taps = {tap.name: tap for tap in way.taps()}.values()
            sizes = ((tap.row_shape, self._store.stored_dtype(tap.dtype)) for tap in taps)
            return sum(predicted_bytes(*each, rows, mean_length) for each in sizes)

        while needed() > budget and way.ahead:
            del way.ahead[0]
        return needed()

    def others(self, way: Way) -> Iterator[Way]:
        """Yields the valid ways whose values are of use for another, the nearest first."""
        modes = self._modes()
        yield from (other for other in (*way.ahead, *way.behind) if self._is_valid(other, modes))

    def _modes(self) -> bytes:
        """Returns the mode of each module."""
        try:
            return bytes(map(_training, self._own))
        except KeyError:  # a property
            return bytes([module.training for module in self._modules])

    def _learned(self, forward: Forward, batch: Batch, precision: str) -> Way | None:
        """Returns a way that was proven; if there is none, warns or raises.

        Raises:
            CacheRefusedError: nothing was answered yet.
        """
        now = self._phase.index
        try:
            way = self._prepared(forward, batch, precision, self._hot(now, now))
        except CacheRefusedError as error:
            if error.reason == "no_prefix" and (self.started or self._freezes_later()):
                return None  # As the plan says.
            if not self.started:
                raise
            warnings.warn(f"{error}; going on without it", stacklevel=2)
            return None
        way.look = partial(self._look, way, forward, batch, precision)
        return way

    def _freezes_later(self) -> bool:
        """Returns whether a later phase freezes what trains now."""
        later = self._applied.resolved.phases[self._phase.index + 1 :]
        return any(self._phase.trainable - phase.trainable for phase in later)

    def look(self, way: Way) -> None:
        """Learns what later phases need, which matters as long as rows are missing."""
        if way.look is not None:
            look, way.look = way.look, None
            look()

    def _look(self, way: Way, forward: Forward, batch: Batch, precision: str) -> None:
        """Learns what is frozen from now to each later phase, and since each earlier one."""
        now, last = self._phase.index, len(self._applied.resolved.phases)
        seen = {self._hot(now, now)}
        for index in (*range(now + 1, last), *range(now - 1, -1, -1)):
            hot = self._hot(min(index, now), max(index, now))
            if hot in seen:
                continue
            seen.add(hot)
            other = self._proven.get((hot, way.setting))
            try:
                if other is None or not self._is_valid(other, self._modes()):
                    other = self._prepared(forward, batch, precision, hot)
            except CacheRefusedError:
                continue  # It says so when that phase begins.
            if (other.trims, other.roots) == (way.trims, way.roots):
                (way.ahead if index > now else way.behind).append(other)

    def _prepared(self, forward: Forward, batch: Batch, precision: str, hot: frozenset[int]) -> Way:
        entry = self._entry
        weighty, hot_paths = set(), set()
        for path, module in entry.named_modules():
            identities = {id(each) for each in module.parameters()}
            if identities:
                weighty.add(path)
            if not hot.isdisjoint(identities):
                hot_paths.add(path)

        def run(leaves: Sequence[Any]) -> Any:  # noqa: ANN401
            args, kwargs = tree_unflatten(list(leaves), batch.layout.spec)
            return forward(*args, **kwargs)

        paths = (frozenset(hot_paths), frozenset(weighty))
        watched = Pass(entry, run, hot, *paths, self._boundary)
        program, trims = learn(watched, batch)
        validity = Validity(entry, program, self._modules)
        setting = (batch.form(), precision, self._modes(), torch.is_grad_enabled())
        full = [precision, validity.modes.hex(), *_plain(batch)]
        if self._durable:
            full += [*self._contents(validity), *_computation(entry, program)]
        program = program._replace(taps=tuple(_salted(tap, full) for tap in program.taps))
        self._sweep()
        for tap in program.taps:
            self._valid.setdefault(tap.name, validity)
        modules = [(path, entry.get_submodule(path)) for path in program.calls]
        roots = tuple(batch.layout.labels[at] for at in sorted(program.roots))
        moving = [
            (each._buffers, name)
            for each in entry.modules()
            if each.training
            for name, buffer in each._buffers.items()
            if buffer is not None
        ]
        way = Way(
            program, trims, modules, roots, setting, moving, validity, apart=not program.early
        )
        self._proven[hot, setting] = way
        return way

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

    def _contents(self, validity: Validity) -> Iterator[str]:
        """Yields a digest of each tensor that matters, computed anew only where it changed."""
        for tensor in validity.tensors():
            state = (tensor._version, tensor.data_ptr())
            known = self._digests.get(id(tensor))
            if known is None or known[:2] != state:
                known = self._digests[id(tensor)] = (*state, digest(tensor))
            yield known[2].hex()

    def _still(self, way: Way, modes: bytes) -> bool:
        """Returns whether a way is valid, and drops what is stored if not."""
        valid = self._is_valid(way, modes)
        if not valid:
            self._sweep()
        return valid

    def _is_valid(self, way: Way, modes: bytes) -> bool:
        """Returns whether a way, and what is stored for it, still is what the model would compute.

        Rows may have been stored by another way, and have become invalid with that one.
        """
        checks = {way.validity, *(self._valid.get(tap.name) for tap in way.program.taps)}
        return all(each is not None and each.holds(modes) for each in checks)

    def forget(self) -> None:
        """Lets go of all that is stored; what is in a folder stays there."""
        self._store.forget([*self._valid])

    def give_up(self, way: Way, error: CacheRefusedError) -> None:
        """Does without a way from now on, and says why.

        Raises:
            CacheRefusedError: nothing was answered yet.
        """
        if not self.started:
            raise error
        warnings.warn(f"{error}; going on without it", stacklevel=2)
        for key, known in self._known.items():
            if known is way:
                self._known[key] = None
        names = [tap.name for tap in way.taps()]
        self._store.forget(names)
        for name in names:
            self._valid.pop(name, None)

    def _sweep(self) -> None:
        """Lets go of what is stored and not valid any more.

        In a folder it stays: its name says of what weights it is, and another run has those.
        """
        verdicts = {each: each.is_unchanged() for each in {*self._valid.values()}}
        gone = [name for name, validity in self._valid.items() if not verdicts[validity]]
        self._store.forget(gone)
        for name in gone:
            del self._valid[name]


def _salted(tap: Tap, salt: Sequence[str]) -> Tap:
    text = "\n".join((tap.name, *salt))
    return tap._replace(name=hashlib.blake2b(text.encode(), digest_size=16).hexdigest())


def _computation(entry: torch.nn.Module, program: Program) -> Iterator[str]:
    """Yields what the modules of a program are and hold besides tensors, in words."""
    for path in program.modules:
        named = [*entry.get_submodule(path).named_modules()]
        for name, module in named:
            yield f"{path}.{name} {type(module).__module__}.{type(module).__qualname__}"
        yield from State(named).told()


def _plain(batch: Batch) -> Iterator[str]:
    """Yields what else a pass is called with than tensors, in words."""
    for label, leaf in zip(batch.layout.labels, batch.leaves, strict=True):
        if not (leaf is None or isinstance(leaf, torch.Tensor)):
            yield f"{label} {type(leaf).__name__} {leaf!r}"


def _precision(batch: Batch) -> str:
    """Returns in what precision things are computed now, beyond the dtypes of tensors."""
    kinds = {each.device.type for each in batch.leaves if isinstance(each, torch.Tensor)}
    cast = (
        f"{kind} {torch.get_autocast_dtype(kind)}"
        for kind in sorted(kinds)
        if torch.is_autocast_enabled(kind)
    )
    return " ".join((torch.get_float32_matmul_precision(), *cast))
