"""The plan and the moments that the command line names, with its options in every message."""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from typing import TypedDict

import torch

from .._plan import FreezePlan
from .._resolved import ResolvedPlan
from .._verbs import closest, offered
from ..errors import PlanError
from ._console import CommandError

_ALLOW = "FreezePlan(allow_all_frozen=True)"
_TOTAL = re.compile(r"\b(steps_per_epoch|total_epochs|total_steps)=(\.\.\.|\d+)")


class Clock(TypedDict, total=False):
    """A moment of training, in the unit that a plan counts in; empty: none is asked for."""

    epoch: int
    step: int


def read_plan(path: str) -> FreezePlan:
    """Returns the plan in a file.

    Raises:
        CommandError: the file cannot be read.
        PlanError: it is not a valid plan.
    """
    try:
        return FreezePlan.load(path)
    except FileNotFoundError:
        folder = Path(path).parent
        known = [each.name for each in folder.iterdir()] if folder.is_dir() else []
        offer = offered(str(folder / each) for each in closest(Path(path).name, known))
        raise CommandError(f"no file {path!r}{offer}") from None
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None


def resolve(path: str, plan: FreezePlan, model: torch.nn.Module, given: Namespace) -> ResolvedPlan:
    """Returns what the plan in a file means for a model.

    Args:
        path: how messages name the plan.
        plan: what is in the file.
        model: the model.
        given: the options, with the totals among them.

    Raises:
        CommandError: a total is missing, or contradicts another.
        PlanError: the plan does not work on the model.
    """
    try:
        return plan.resolve(
            model,
            steps_per_epoch=given.steps_per_epoch,
            total_epochs=given.total_epochs,
            total_steps=given.total_steps,
        )
    except PlanError as error:
        said = in_options(str(error))
        if said != str(error):
            raise CommandError(f"{path}: {said}") from None
        raise type(error)(f"{path}: {error}") from None


def in_file(text: str) -> str:
    """Returns a message with what a plan file says in place of what Python says."""
    return text.replace(_ALLOW, "`allow_all_frozen: true`")


def in_options(text: str) -> str:
    """Returns a message with options in place of arguments of `resolve`."""

    def option(argument: re.Match[str]) -> str:
        value = "N" if argument[2] == "..." else argument[2]
        return f"--{argument[1].replace('_', '-')} {value}"

    return _TOTAL.sub(option, text)


def moment(resolved: ResolvedPlan, given: Namespace) -> Clock:
    """Returns the moment that is asked for, in the unit of the plan; empty if none is.

    Raises:
        CommandError: it is in another unit than the plan counts in.
    """
    unit = resolved.phases[0].unit
    epoch, step, steps = given.at_epoch, given.at_step, given.steps_per_epoch
    if unit is None or epoch is step is None:
        return {}
    if unit == "epoch" and epoch is None and steps:
        epoch = step // steps
    if unit == "step" and step is None and steps:
        step = epoch * steps
    now = {"epoch": epoch, "step": step}[unit]
    if now is None:
        raise CommandError(
            f"the plan counts in {unit}s; say --at-{unit} {unit[0].upper()}, or add "
            "--steps-per-epoch N"
        )
    return {"epoch": now} if unit == "epoch" else {"step": now}
