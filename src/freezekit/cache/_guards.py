"""Whether what is stored still is what the model would compute."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ._program import Program
from ._state import State, Surroundings, is_idle


class _Seen(NamedTuple):
    """A tensor, and where it stands."""

    table: dict[str, Any]
    name: str
    tensor: torch.Tensor


class Validity:
    """What a stored tensor depends on: tensors of the model, modes, the kernels in use.

    A change in place is seen by a tensor's version, which writing through `.data` passes by.
    """

    def __init__(
        self, entry: torch.nn.Module, program: Program, known: Sequence[torch.nn.Module]
    ) -> None:
        """Remembers all that has a part in what a program stores.

        Args:
            entry: the module whose calls are passes.
            program: what is stored.
            known: the modules whose modes `holds` is told.
        """
        modules = [entry.get_submodule(path) for path in program.modules]
        below = {id(each): each for module in modules for each in module.modules()}
        self._modules = [each for each in below.values() if not is_idle(each)]
        self._modes = [module.training for module in self._modules]
        self._told = below.keys() <= {*map(id, known)}
        self._right: set[bytes] = set()
        found = [*_seen(below.values())]
        for _, path, name in program.tensors:
            module = entry.get_submodule(path)
            for table in (module._parameters, module._buffers, module.__dict__):
                if isinstance(tensor := table.get(name), torch.Tensor):
                    found.append(_Seen(table, name, tensor))
        seen = {(id(each.table), each.name): each for each in found}.values()
        # With another tensor on the memory of each: no new one can be put in its place unseen.
        self._rows = [
            (*each, each.tensor._version, each.tensor.data_ptr(), each.tensor.detach())
            for each in seen
        ]
        self._changed = False
        configs = (getattr(each, "config", None) for each in entry.modules())
        self._configs = [*{id(each): each for each in configs if each is not None}.values()]
        self._kernels = self._kernels_now()
        self._state = State(entry.named_modules())
        self._surroundings = Surroundings(entry.modules())

    def holds(self, modes: bytes) -> bool:
        """Returns whether nothing has changed, nothing of it trains, and the modes are the same.

        Args:
            modes: those of the known modules.
        """
        return self._is_right(modes) and self.is_unchanged()

    @property
    def modes(self) -> bytes:
        """The modes that the modules were in, for the names of what is stored."""
        return bytes(self._modes)

    def is_unchanged(self) -> bool:
        """Returns whether nothing but modes has changed, and nothing of it trains."""
        for table, name, tensor, version, place, _ in self._rows:  # in one go: memory is far away
            if (
                table.get(name) is not tensor
                or tensor._version != version
                or tensor.data_ptr() != place
                or tensor.requires_grad
            ):
                self._changed = True
                self._rows = []  # lets go of their memory
                return False
        return (
            not self._changed
            and self._kernels == self._kernels_now()
            and self._surroundings.hold()
            and self._state.holds()
        )

    def _is_right(self, modes: bytes) -> bool:
        """Returns whether the modules are in the mode they were in."""
        if self._told and modes in self._right:
            return True
        if [module.training for module in self._modules] != self._modes:
            return False
        self._right.add(modes)
        return True

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yields the tensors that matter, in order."""
        return (tensor for _, _, tensor, *_ in self._rows)

    def _kernels_now(self) -> list[Any]:
        return [getattr(each, "_attn_implementation", None) for each in self._configs]


def _seen(modules: Iterable[torch.nn.Module]) -> Iterator[_Seen]:
    for module in modules:
        for table in (module._parameters, module._buffers, vars(module)):
            for name, tensor in table.items():
                if isinstance(tensor, torch.Tensor):
                    yield _Seen(table, name, tensor)
