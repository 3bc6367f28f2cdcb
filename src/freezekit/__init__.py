"""Declarative freezing for PyTorch: what trains, when, and how fast."""

from ._apply import AppliedPlan
from ._checks import diagnose
from ._layers import infer_layers
from ._plan import FreezePlan
from ._resolved import Phase, ResolvedPlan
from ._rules import Rule
from .errors import FreezekitError, FrozenChangedError, PatternError, PlanError

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
