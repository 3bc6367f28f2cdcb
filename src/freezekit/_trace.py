"""What one forward and one backward pass compute, and which module calls backward goes through."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ._calls import HERE, Call, Entry, Places, Sources, counted
from ._execution import call_arguments, storage_of, tensors, uncompiled
from ._gradients import Carrier, undisturbed
from ._names import Tree, Walk


class Setting(NamedTuple):
    """How a model stands while it runs.

    Attributes:
        trains: rows of the parameters that require gradients.
        held: rows of the modules in eval mode; all others are in train mode.
        kept: rows of RNNs in train mode, without dropout.
    """

    trains: frozenset[int]
    held: frozenset[int]
    kept: frozenset[int]


class Trace(NamedTuple):
    """What one pass forward and backward was like.

    Attributes:
        stops: where backward stops, in the order of execution: row of the module, and rows of the
            parameters that train there.
        frozen: rows of the modules of the outermost frozen calls, in order.
        called: rows of the modules that were called.
        crossed: rows of the modules with a call that backward goes through.
        reached: rows of the parameters that got a gradient.
        uses: for each parameter that was used, the FLOPs counted before.
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        saved: bytes saved for backward in memory of their own.
    """

    stops: tuple[tuple[int, tuple[int, ...]], ...]
    frozen: tuple[int, ...]
    called: frozenset[int]
    crossed: frozenset[int]
    reached: frozenset[int]
    uses: dict[int, int]
    forward: int
    backward: int
    saved: int


class Rehearsal:
    """A model with stand-ins for its tensors, and a batch: runs without leaving a trace.

    On fake tensors nothing is computed, and a batch of any size costs the same.
    """

    def __init__(self, walked: Walk, inputs: object, *, fake: bool) -> None:
        """Makes the stand-ins.

        Args:
            walked: the model.
            inputs: a tuple of positional arguments, a mapping of keyword arguments, or one.
            fake: whether they have no data.
        """
        self._tree, self._modules = walked
        self._fake = FakeTensorMode(allow_non_fake_inputs=True) if fake else None
        self._leaves: list[torch.Tensor] = []
        self._by_id: dict[int, torch.Tensor] = {}
        for parameter in parameters_of(walked):
            if id(parameter) not in self._by_id:
                self._by_id[id(parameter)] = self._stand_in(parameter.detach())
            self._leaves.append(self._by_id[id(parameter)])
        given = tree_map_only(torch.Tensor, self._argument, call_arguments(inputs))
        self._args, self._kwargs = given

    def run(self, setting: Setting) -> Trace:
        """Runs forward and backward once.

        Raises:
            Exception: whatever the model raises.
        """
        for row, leaf in enumerate(self._leaves):
            leaf.requires_grad_(row in setting.trains)
        carrier, model = Carrier(self._modules[0]), self._modules[0]
        with undisturbed(model), uncompiled():
            for row, module in enumerate(self._modules):
                module.__dict__["training"] = row not in setting.held
                if row in setting.kept:
                    module.__dict__["dropout"] = 0.0
            slots = carrier.slots(self._by_id, self._copy)
            record = Record(self._tree, self._modules, setting, self._leaves, [*slots.values()])
            work = partial(record.passes, self._args, self._kwargs)
            with self._fake or nullcontext():
                functional_call(carrier, slots, (work,), tie_weights=False)
        return record.trace()

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns a tensor like another; without data it is on the CPU in place of `meta`."""
        if self._fake is None:
            return tensor.detach().clone()  # A model may write what it is given, or its weights.
        if tensor.is_meta:
            with self._fake:
                size, stride = tensor.size(), tensor.stride()
                return torch.empty_strided(size, stride, dtype=tensor.dtype, device="cpu")
        return self._fake.from_tensor(tensor)

    def _argument(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._stand_in(tensor.detach()).requires_grad_(tensor.requires_grad)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._stand_in(tensor).clone()


def parameters_of(walked: Walk) -> Iterator[torch.nn.Parameter]:
    """Yields the parameters of a model, row by row."""
    tree, modules = walked
    for name, owner in zip(tree.names, tree.owners, strict=True):
        parameter = modules[owner]._parameters[name[len(tree.prefixes[owner]) :]]
        assert parameter is not None
        yield parameter


class Record:
    """What is seen during one pass."""

    def __init__(
        self,
        tree: Tree,
        modules: Sequence[torch.nn.Module],
        setting: Setting,
        leaves: Sequence[torch.Tensor],
        standing: Sequence[torch.Tensor],
    ) -> None:
        """Begins before the pass.

        Args:
            tree: the model's structure.
            modules: its modules.
            setting: what trains.
            leaves: the stand-ins for its parameters.
            standing: the stand-ins for all its tensors.
        """
        self._rows = {id(module): row for row, module in enumerate(modules)}
        self._leaves = leaves
        self._counter = FlopCounterMode(display=False)
        self._watch = _Watch(self, leaves, standing)
        self._own = {storage_of(each) for each in standing}
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._calls: list[Call] = []
        self._stack = [HERE]
        self._reached: set[int] = set()
        self._tree, self._setting = tree, setting
        self._forward = self._bytes = 0
        self.uses: dict[int, int] = {}
        self.seen: set[int] = set()
        self.entries: list[Entry] = []

    @property
    def call(self) -> int:
        """Number of the call that is going on."""
        return self._stack[-1]

    @property
    def flops(self) -> int:
        """FLOPs counted so far."""
        return int(self._counter.get_total_flops())

    def passes(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], model: torch.nn.Module
    ) -> None:
        """Runs a model forward and backward."""
        self._own.update(storage_of(each) for each in tensors((args, kwargs)))
        with self._noting_gradients(), self._counter:
            with self._listening(), saved_tensors_hooks(self._pack, _same), self._watch:
                output = model(*args, **kwargs)
            self._forward = self.flops
            self._bytes = sum(storage.nbytes() for storage in self._saved.values())
            self._saved.clear()
            self._watch.origins.clear()
            roots = _roots(output)
            if roots:
                torch.autograd.backward(roots, [torch.ones_like(root) for root in roots])

    def trace(self) -> Trace:
        """Returns what was seen."""
        live = counted(self._tree, self._setting.trains)
        calls, frozen = self._calls, list[bool]()
        outermost = []
        for call in calls:
            frozen.append(not call.fed and not live[call.row])
            if frozen[-1] and not (call.parent >= 0 and frozen[call.parent]):
                outermost.append(call.row)
        return Trace(
            stops=Places(self._tree, calls, self._reached, self.seen).stops(self.entries),
            frozen=tuple(outermost),
            called=frozenset(call.row for call in calls),
            crossed=frozenset(call.row for call in calls if call.crossed),
            reached=frozenset(self._reached),
            uses=self.uses,
            forward=self._forward,
            backward=self.flops - self._forward,
            saved=self._bytes,
        )

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        place = storage_of(tensor)
        if place not in self._own and tensor.layout == torch.strided:
            self._saved[place] = tensor.untyped_storage()
        return tensor

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Sees each call of a module of the model. Hooks of modules would change how some run."""
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            after = register_module_forward_hook(self._leave, with_kwargs=True, always_call=True)
            stack.callback(after.remove)
            yield

    @contextmanager
    def _noting_gradients(self) -> Iterator[None]:
        """Sees which parameters get a gradient, and drops it."""
        with ExitStack() as stack:
            for row, leaf in enumerate(self._leaves):
                if leaf.requires_grad:
                    hook = partial(self._arrived, row)
                    handle = leaf.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                    stack.callback(handle.remove)
            yield

    def _arrived(self, row: int, leaf: torch.Tensor) -> None:
        self._reached.add(row)
        leaf.grad = None

    def _enter(self, module: torch.nn.Module, args: object) -> None:
        row = self._rows.get(id(module))
        if row is not None:
            self._calls.append(Call(row, self.call, self._watch.is_live(args)))
            self._stack.append(len(self._calls) - 1)

    def _leave(self, module: torch.nn.Module, args: object, *rest: object) -> None:
        if id(module) not in self._rows:
            return
        *kwargs, output = rest  # Where the call fails, torch leaves the keyword arguments out.
        call = self._calls[self._stack.pop()]
        call.fed |= self._watch.is_live(kwargs)
        for tensor in tensors(output):
            if tensor.requires_grad:
                _hook(tensor, call)


class _Watch(TorchFunctionMode):
    """Sees where what trains comes in: operations on what does not, together with a parameter.

    What is made of parameters and buffers alone, as a transposed weight is, counts as they do.

    Attributes:
        origins: these tensors by identity, each with its sources; kept, so that none is reused.
    """

    def __init__(
        self, record: Record, leaves: Sequence[torch.Tensor], standing: Iterable[torch.Tensor]
    ) -> None:
        """Knows the tensors of the model."""
        super().__init__()
        self._record = record
        self._numbers = {id(leaf): row for row, leaf in enumerate(leaves)}
        self.origins: dict[int, tuple[torch.Tensor, Sources]] = {
            id(each): (each, ()) for each in standing
        }
        for row, leaf in enumerate(leaves):
            self.origins[id(leaf)] = (leaf, ((row, HERE),))

    def is_live(self, value: object) -> bool:
        """Returns whether an activation among some values requires gradients."""
        return any(each.requires_grad and id(each) not in self.origins for each in tensors(value))

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        taken = [*tensors((args, kwargs or {}))]
        live = self.is_live(taken)
        flops = self._record.flops if any(id(each) in self._numbers for each in taken) else 0
        result = func(*args, **(kwargs or {}))
        made = [*tensors(args[0] if func is torch.Tensor.__setitem__ else result)]
        if made:
            self._note(taken, made, live, flops)
        return result

    def _note(
        self, taken: list[torch.Tensor], made: list[torch.Tensor], live: bool, flops: int
    ) -> None:
        """Notes an operation: from what it was made, and what."""
        record, sources = self._record, dict[int, int]()
        for each in taken:
            if id(each) in self._numbers:
                record.uses.setdefault(self._numbers[id(each)], flops)
            for row, call in self.origins[id(each)][1] if id(each) in self.origins else ():
                sources.setdefault(row, record.call if call == HERE else call)
        begun = [each for each in made if each.requires_grad]
        if begun:
            record.seen.update(sources)
        if all(id(each) in self.origins for each in taken):
            for each in made:
                self.origins.setdefault(id(each), (each, tuple(sources.items())))
            return
        if begun and not live:
            record.entries.append(Entry(tuple(sources.items()) or ((HERE, record.call),)))
            for each in begun:
                _hook(each, record.entries[-1])
        for each in made:
            self.origins.pop(id(each), None)


def _roots(output: object) -> list[torch.Tensor]:
    """Returns where backward begins: at the loss if a model returns it, else at all it returns."""
    if isinstance(output, Mapping) and isinstance(output.get("loss"), torch.Tensor):
        output = output["loss"]
    listed = {id(each): each for each in tensors(output) if each.requires_grad}
    return [*listed.values()]


def _hook(tensor: torch.Tensor, seen: Call | Entry) -> None:
    """Lets a tensor say when backward comes to it."""
    tensor.register_hook(partial(_cross, seen))  # type: ignore[no-untyped-call]


def _cross(seen: Call | Entry, grad: torch.Tensor) -> None:
    seen.crossed = True


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
