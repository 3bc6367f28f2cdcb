"""Layering: what is said about a model's layers, where structure alone does not tell. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from ._rules import check_patterns
from ._verbs import LayerProperties, did_you_mean
from .errors import PlanError

_CHOICES = {"by": ("block", "stage"), "final_norm": ("head", "last_block")}
PARTS = ("stem", "blocks", "head")
"""The parts of a model that patterns may name."""


@dataclass(frozen=True, slots=True)
class Layering:
    """How the layers of a model are read, as data; see `infer_layers`.

    Attributes:
        by: whether repeated blocks or whole stages are layers.
        final_norm: where the norm behind the last block belongs.
        stem: patterns of what stands before the first block; empty: found.
        blocks: patterns of the blocks, in their order; empty: found.
        head: patterns of what stands after the last block; empty: found.

    Raises:
        PlanError: a value is not one of those known; `PatternError` for a pattern.
    """

    by: Literal["block", "stage"] = "block"
    final_norm: Literal["head", "last_block"] = "head"
    stem: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    head: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise PlanError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}")
        for name in PARTS:
            if getattr(self, name):
                try:
                    check_patterns(getattr(self, name))
                except PlanError as error:
                    raise type(error)(f"{name}: {error}") from None
        if self.blocks and self.by == "stage":
            raise PlanError(
                f"by='stage' is about the blocks that are found, and blocks={self.blocks!r} names "
                "them; name the stages as blocks instead"
            )

    @classmethod
    def read(cls, given: object) -> Layering:
        """Returns the layering that a mapping with some of its attributes describes.

        Raises:
            PlanError: a key is unknown or a value is wrong.
        """
        if isinstance(given, Layering):
            return given
        known = LayerProperties.__annotations__
        if not isinstance(given, Mapping):
            raise PlanError(
                "layers must be a mapping such as {'blocks': 'encoder.blocks.*'} with keys among "
                f"{', '.join(known)}, got {given!r}"
            )
        for key in given:
            if key not in known:
                raise PlanError(f"layers has no key {key!r}{did_you_mean(str(key), known)}")
        found: dict[str, Any] = {
            key: _patterns(key, given[key]) if key in PARTS else given[key] for key in given
        }
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """Returns what differs from the defaults, as it stands in a plan file."""
        found: dict[str, Any] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if value != entry.default:
                several = isinstance(value, tuple) and len(value) > 1
                alone = value[0] if isinstance(value, tuple) else value
                found[entry.name] = list(value) if several else alone
        return found


def _patterns(key: str, value: object) -> tuple[str, ...]:
    """Returns the patterns of a part: one text, or several."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Sequence) or not value:
        raise PlanError(f"{key} takes a pattern or a list of patterns, got {value!r}")
    return tuple(value)
