"""Pictures of plans and models: matplotlib axes in, axes out."""

from ._saving import save
from ._scores import scores
from ._trainability import trainability

__all__ = ["save", "scores", "trainability"]
