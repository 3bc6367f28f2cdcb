"""The activation cache: what is frozen is computed once for each sample."""

from ._cache import ActivationCache, Stats
from ._refusals import CacheRefusedError

__all__ = ["ActivationCache", "CacheRefusedError", "Stats"]
