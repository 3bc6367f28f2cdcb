"""The activation cache: what is frozen is computed once for each sample."""

from ._cache import ActivationCache
from ._identities import WithIds
from ._refusals import CacheRefusedError
from ._stats import Stats

__all__ = ["ActivationCache", "CacheRefusedError", "Stats", "WithIds"]
