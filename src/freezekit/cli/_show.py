"""`freezekit show`: a plan on a model as text, data, a report or a picture."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import plot
from .._glob import class_name
from .._names import unwrap
from .._plan import FreezePlan
from .._resolved import Phase, ResolvedPlan
from .._summary import rows_in
from ..errors import PlanError
from ._building import build_model
from ._console import CommandError, say, write
from ._inputs import Clock, in_options, moment, read_plan, resolve

_SUFFIXES = {
    ".txt": "text",
    ".json": "json",
    ".html": "html",
    ".htm": "html",
    ".svg": "svg",
    ".png": "png",
}
_TAKES = {
    "the summary": {"depth"},
    "the data": {"base_lr"},
    "the report": {"base_lr"},
    "the schedule": {"depth", "base_lr"},
    "the picture of what trains": set(),
}
"""Which of the options that not all take does what."""
JSON_FORMAT = 1
"""The version of what `--format json` prints."""


def show(given: Namespace) -> int:
    """Shows what trains; returns the exit status.

    Raises:
        CommandError: an option does not fit, or the model cannot be built.
        PlanError: the plan does not work on the model.
    """
    form = _format(given)
    plan = read_plan(given.plan) if given.plan else FreezePlan()
    other = read_plan(given.against) if given.against else None
    model = build_model(given.model, trust_remote_code=given.trust_remote_code)
    resolved = resolve(given.plan, plan, model, given)
    against = resolve(given.against, other, model, given) if other else None
    clock = moment(resolved, given)
    compared = "" if against is None else _compared(resolved, against, given.against)
    what = _what(form, resolved, clock)
    _note_unused(given, what)
    if form == "text":
        text = f"{resolved.summary(depth=given.depth, **clock)}{compared}"
        write(text, given.output, what)
    elif form == "json":
        shown = [resolved.at(**clock)] if clock else [*resolved.phases]
        data = _data(class_name(type(unwrap(model))), resolved, shown, given.base_lr)
        write(json.dumps(data, indent=2), given.output, what)
    elif form == "html":
        if clock:
            say("note", "the report has every phase; the moment asked for is left out of account")
        write(_report(resolved, against, given.base_lr), given.output, what)
    else:
        write(_picture(resolved, form, given, what, clock), given.output, what)
    return 0


def _format(given: Namespace) -> str:
    """Returns the format asked for, by name or by the ending of a file.

    Raises:
        CommandError: none fits, or it is nothing for a terminal.
    """
    form: str = given.format or "text"
    if given.output:
        suffix = Path(given.output).suffix.lower()
        if suffix not in _SUFFIXES and not given.format:
            raise CommandError(
                f"no format ends in {suffix!r}, as {given.output} does: name a file that ends in "
                f"{', '.join(_SUFFIXES)}, or say --format"
            )
        form = given.format or _SUFFIXES[suffix]
        ending = _SUFFIXES.get(suffix, form)
        if ending != form:
            raise CommandError(
                f"--format {form} does not go into {given.output}, whose ending says {ending}; "
                "leave --format out, or name another file"
            )
    if given.against and form not in ("text", "html"):
        raise CommandError(f"--against works with --format text and html, not {form}")
    if form in ("html", "png") and not given.output and sys.stdout.isatty():
        raise CommandError(f"{form} is nothing for a terminal; say where to, e.g. -o plan.{form}")
    return form


def _what(form: str, resolved: ResolvedPlan, clock: Clock) -> str:
    """Returns what is shown in a format: for a picture the schedule where there is one."""
    if form in ("svg", "png"):
        changes = len(resolved.phases) > 1 and not clock
        return "the schedule" if changes else "the picture of what trains"
    return {"text": "the summary", "json": "the data", "html": "the report"}[form]


def _note_unused(given: Namespace, what: str) -> None:
    """Says which options make no difference to what is shown."""
    for name in ("depth", "base_lr"):
        if getattr(given, name) is not None and name not in _TAKES[what]:
            say("note", f"--{name.replace('_', '-')} makes no difference to {what}")


def _compared(resolved: ResolvedPlan, other: ResolvedPlan, path: str) -> str:
    """Returns where another plan differs.

    Raises:
        CommandError: the two count in different units.
    """
    try:
        return f"\n\ncompared with {path}:\n{resolved.diff(other)}"
    except PlanError as error:
        raise CommandError(f"{path} cannot be compared: {in_options(str(error))}") from None


def _report(resolved: ResolvedPlan, other: ResolvedPlan | None, base_lr: float | None) -> str:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        resolved.save_html(file, other=other, base_lr=base_lr)
        return file.read_text(encoding="utf-8")


def _picture(resolved: ResolvedPlan, form: str, given: Namespace, what: str, clock: Clock) -> bytes:
    """Returns the schedule, or what trains at the moment.

    Raises:
        CommandError: the depth leaves nothing of the schedule.
    """
    if what == "the schedule":
        if given.depth == 0:
            raise CommandError("--depth 0 leaves the schedule without rows; say 1 or more")
        axes = plot.schedule(resolved, base_lr=given.base_lr, depth=given.depth)
    else:
        axes = plot.trainability(resolved, **clock)
    drawn = BytesIO()
    plot.save(axes, drawn, format=form)
    return drawn.getvalue()


def _data(
    title: str, resolved: ResolvedPlan, phases: list[Phase], base_lr: float | None
) -> dict[str, Any]:
    """Returns a resolved plan as plain data, in the structure that the documentation describes."""
    numel = rows_in(resolved, phases[0])[0].numel
    return {
        "format": JSON_FORMAT,
        "model": {"class": title, "parameters": len(resolved.rows), "numel": numel},
        "plan": resolved.plan.to_dict(),
        "unit": resolved.phases[0].unit,
        "warnings": [*resolved.warnings],
        "unmentioned": [*resolved.unmentioned],
        "phases": [_phase_data(resolved, phase, base_lr) for phase in phases],
    }


def _phase_data(resolved: ResolvedPlan, phase: Phase, base_lr: float | None) -> dict[str, Any]:
    modules = rows_in(resolved, phase)
    return {
        "index": phase.index,
        "text": str(phase),
        "start": phase.start,
        "end": phase.end,
        "stalls": phase.stalls,
        "trainable": modules[0].trainable,
        "modules": [
            {
                "path": row.path,
                "class": row.class_name,
                "numel": row.numel,
                "trainable": row.trainable,
                "state": row.state,
                "mode": row.mode,
                "held": row.held,
            }
            for row in modules
        ],
        "parameters": [*_parameters(resolved, phase, base_lr)],
    }


def _parameters(
    resolved: ResolvedPlan, phase: Phase, base_lr: float | None
) -> Iterator[dict[str, Any]]:
    """Yields what holds for each parameter in a phase, and the rules that decided."""
    rules: dict[int, dict[str, int | None]] = {}
    for row, outcome in zip(resolved.rows, resolved._outcome_ids, strict=True):
        decision = row.decisions[phase.index]
        if outcome not in rules:
            reasons = resolved.explain(row.name).reasons
            rules[outcome] = {r.key: r.rule for r in reasons if r.phase == phase.index}
        known = decision.lr_mult is None or base_lr is not None
        partial = decision.rows is not None
        yield {
            "name": row.name,
            "shape": None if row.shape is None else [*row.shape],
            "aliases": [*row.aliases],
            "state": "frozen" if not decision.trainable else "partial" if partial else "trainable",
            "rule": rules[outcome].get("trainable"),
            "lr": phase.lr(row.name, base_lr) if known else None,
            "lr_mult": decision.lr_mult,
            "weight_decay": decision.weight_decay,
            "warmup_steps": decision.warmup_steps,
            "options": dict(decision.options),
            "rows": decision.rows,
            "rules": rules[outcome],
        }
