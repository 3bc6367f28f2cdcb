"""Declarative freezing for PyTorch: what trains, when, and how fast.

What needs torch is imported when it is first asked for, so that the command line is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import FreezekitError, FrozenChangedError, PatternError, PlanError

if TYPE_CHECKING:
    from ._apply import AppliedPlan
    from ._diagnose import diagnose
    from ._layers import infer_layers
    from ._plan import FreezePlan
    from ._resolved import Phase, ResolvedPlan
    from ._rules import Rule
else:  # not for type checkers, to which any name would be one of the package then

    def __getattr__(name: str) -> object:
        """Imports a public name when it is first asked for."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value


__version__ = "0.1.0"

__all__ = [
    "AppliedPlan",
    "FreezePlan",
    "FreezekitError",
    "FrozenChangedError",
    "PatternError",
    "Phase",
    "PlanError",
    "ResolvedPlan",
    "Rule",
    "diagnose",
    "infer_layers",
]

_HOMES = {
    "AppliedPlan": "_apply",
    "FreezePlan": "_plan",
    "Phase": "_resolved",
    "ResolvedPlan": "_resolved",
    "Rule": "_rules",
    "diagnose": "_diagnose",
    "infer_layers": "_layers",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
