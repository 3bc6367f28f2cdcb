"""Whether what is stored still is what the model would compute."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from ._program import Program


class _Seen(NamedTuple):
    """A tensor where it stands, and what tells whether it is still the same."""

    table: Mapping[str, Any]
    name: str
    tensor: torch.Tensor
    version: int
    place: int


class Validity:
    """What a stored tensor depends on: tensors of the model, modes, the kernels in use.

    A change in place is seen by a tensor's version, which writing through `.data` passes by.
    """

    def __init__(self, entry: torch.nn.Module, program: Program) -> None:
        """Remembers all that has a part in what a program stores."""
        modules = [entry.get_submodule(path) for path in program.modules]
        below = {id(each): each for module in modules for each in module.modules()}
        self._modes = [(module, module.training) for module in below.values()]
        self._seen = [*_seen(below.values())]
        for _, path, name in program.tensors:
            module = entry.get_submodule(path)
            for table in (module._parameters, module._buffers, module.__dict__):
                if isinstance(tensor := table.get(name), torch.Tensor):
                    self._seen.append(_look(table, name, tensor))
        configs = (getattr(each, "config", None) for each in entry.modules())
        self._configs = [*{id(each): each for each in configs if each is not None}.values()]
        self._kernels = self._kernels_now()

    def holds(self) -> bool:
        """Returns whether nothing has changed, and nothing of it trains."""
        for table, name, tensor, version, place in self._seen:
            if (
                table.get(name) is not tensor
                or tensor._version != version
                or tensor.requires_grad
                or tensor.data_ptr() != place
            ):
                return False
        return (
            all(module.training is mode for module, mode in self._modes)
            and self._kernels == self._kernels_now()
        )

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yields the tensors that matter, in order."""
        return (seen.tensor for seen in self._seen)

    def _kernels_now(self) -> list[Any]:
        return [getattr(each, "_attn_implementation", None) for each in self._configs]


def _seen(modules: Iterable[torch.nn.Module]) -> Iterator[_Seen]:
    for module in modules:
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    yield _look(table, name, tensor)


def _look(table: Mapping[str, Any], name: str, tensor: torch.Tensor) -> _Seen:
    return _Seen(table, name, tensor, tensor._version, tensor.data_ptr())
