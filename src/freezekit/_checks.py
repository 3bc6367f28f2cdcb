"""All checks of `diagnose`, in one call."""

from operator import attrgetter

from ._check_compute import bottom_trains
from ._check_lrs import lr_ratios
from ._check_model import (
    changed_flags,
    frozen_norms,
    half_frozen,
    held_copies,
    left_grads,
    nothing_trains,
    unreached,
)
from ._check_optimizers import (
    held_twice,
    never_trained,
    stale_objects,
    unattached,
    without_optimizer,
)
from ._check_wrappers import checkpointed, compiled, synchronized
from ._findings import Findings
from ._setup import Setup

_CHECKS = (
    without_optimizer,
    never_trained,
    held_twice,
    stale_objects,
    left_grads,
    frozen_norms,
    half_frozen,
    nothing_trains,
    unreached,
    checkpointed,
    synchronized,
    lr_ratios,
    held_copies,
    compiled,
    changed_flags,
    unattached,
    bottom_trains,
)


def findings(setup: Setup) -> Findings:
    """Returns what all checks find in a set-up, ordered by code."""
    found = (finding for check in _CHECKS for finding in check(setup))
    return Findings(sorted(found, key=attrgetter("code")))
