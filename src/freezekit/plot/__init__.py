"""Pictures of plans and models: matplotlib axes in, axes out."""

from ._learning_rates import learning_rates
from ._saving import save
from ._schedule import schedule
from ._scores import scores
from ._trainability import trainability

__all__ = ["learning_rates", "save", "schedule", "scores", "trainability"]
