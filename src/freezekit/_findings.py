"""Findings: what is wrong with a set-up, as data with a text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a set-up; `str` is the text.

    Attributes:
        code: stable, "FK001" and on.
        severity: "error" (training does something else than it seems to), "warning" (probably) or
            "info" (harmless by itself).
        what: what was found, with the first few names.
        why: what follows from it.
        fix: the way out.
        names: all parameters, modules or param groups concerned.

    Example:
        >>> import torch
        >>> from freezekit import diagnose
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> (finding,) = diagnose(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
        >>> finding.code, finding.severity, finding.names
        ('FK001', 'error', ('0.weight', '0.bias'))
    """

    code: str
    severity: Severity
    what: str
    why: str
    fix: str
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code} {self.severity}: {self.what}\n  why: {self.why}\n  fix: {self.fix}"


class Findings(tuple[Finding, ...]):
    """The findings of `diagnose`, ordered by code; false if there are none, `str` is the text."""

    __slots__ = ()

    @property
    def codes(self) -> tuple[str, ...]:
        """The codes found, each once, in order."""
        return tuple(dict.fromkeys(finding.code for finding in self))

    def __str__(self) -> str:
        return "\n".join(map(str, self)) if self else "nothing found"

    def __repr__(self) -> str:
        return f"<Findings: {', '.join(self.codes) or 'none'}>"


def several(names: Sequence[str], one: str, more: str) -> str:
    """Returns a statement about one name or more, e.g. "2 parameters train: a, b"."""
    return f"{one if len(names) == 1 else f'{len(names)} {more}'}: {few(names)}"


def few(names: Iterable[str]) -> str:
    """Returns the first few names and the count of the others."""
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest
