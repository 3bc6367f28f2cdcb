"""Stands in for the `forward` of modules, for the time of one pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

Forward: TypeAlias = Callable[..., Any]

_FORWARD = "forward"


@contextmanager
def patched(
    modules: Iterable[tuple[str, torch.nn.Module]], wrap: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Exchanges the forward of modules inside the block, and puts back what stood there.

    Args:
        modules: paths and modules.
        wrap: gets a path and the forward that stands there; returns the one to use.
    """
    before = []
    try:
        for path, module in modules:
            own = module.__dict__
            before.append((own, own.get(_FORWARD)))
            own[_FORWARD] = wrap(path, module.forward)
        yield
    finally:
        for own, forward in reversed(before):
            if forward is None:
                own.pop(_FORWARD, None)
            else:
                own[_FORWARD] = forward
