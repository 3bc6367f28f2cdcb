"""What everything in a folder depends on, and none of its rows says by itself."""

import hashlib

import torch

from .._apply import AppliedPlan
from .._digest import digest


def fingerprint(applied: AppliedPlan, entry: torch.nn.Module, tag: str) -> dict[str, str]:
    """Returns what must be the same where a folder is opened again.

    Of the weights those count that the plan never trains: what trains in some phase has changed
    when a run goes on, and is part of the names of what depends on it.

    Args:
        applied: the plan.
        entry: the module whose calls are passes.
        tag: what else the inputs depend on, in the user's words.
    """
    resolved = applied.resolved
    ever = frozenset().union(*(phase.trainable for phase in resolved.phases))
    weights = hashlib.blake2b(digest_size=16)
    for row, name in enumerate(resolved._tree.names):
        if name not in ever:
            weights.update(name.encode() + digest(applied._writer.parameter(row)))
    configs = (getattr(each, "config", None) for each in entry.modules())
    kernels = {str(getattr(each, "_attn_implementation", None)) for each in configs if each}
    return {
        "frozen weights": weights.hexdigest(),
        "model": type(entry).__qualname__,
        "torch": torch.__version__,
        "attention": " ".join(sorted(kernels)),
        "tag": tag,
    }
