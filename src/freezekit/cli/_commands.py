"""What the commands do: each takes its options and returns the exit status."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch

from .. import recipes
from .._apply import untrained
from .._explain import Explanation
from .._glob import class_name
from .._layering import Layering
from .._layers import read_layers
from .._names import unwrap
from .._plan import FreezePlan
from .._resolved import ResolvedPlan
from .._verbs import closest, offered
from ..errors import PatternError, PlanError
from ._building import build_model
from ._console import CommandError, say, write
from ._inputs import in_file, read_plan, resolve
from ._show import show
from ._starter import starter_plan, starter_text


def layers(given: Namespace) -> int:
    """Lists the layers of a model.

    Raises:
        CommandError: the options exclude each other, or the model cannot be built.
        PlanError: the plan's layers do not fit the model.
    """
    named = {"by": given.by, "final_norm": given.final_norm}
    own = {key: value for key, value in named.items() if value is not None}
    if given.plan and own:
        raise CommandError("the plan says how layers are read; leave --by and --final-norm out")
    layering = Layering.read(read_plan(given.plan).layers if given.plan else own)
    try:
        found = read_layers(_model(given), layering)
    except PlanError as error:
        raise type(error)(f"{given.plan}: {error}" if given.plan else str(error)) from None
    write(str(found))
    return 0


def check(given: Namespace) -> int:
    """Prints each problem of a plan on a model, or what was checked.

    Raises:
        CommandError: the command could not run.
        PlanError: the plan file is not valid.
    """
    plan = read_plan(given.plan)
    model = _model(given)
    problems = [*_dead_patterns(plan, model, given)]
    if not problems:
        try:
            resolved = resolve(given.plan, plan, model, given)
        except PlanError as error:
            problems = [str(error)]
        else:
            notes = _notes(plan, model, resolved)
            for note in notes:
                say("warning", f"{given.plan}: {note}")
            found = [each for each in resolved.warnings if each not in notes]
            found += (in_file(str(problem)) for problem in untrained(resolved))
            problems = [f"{given.plan}: {problem}" for problem in found]
    if problems:
        write("\n".join(problems))
        return 1
    write(f"{given.plan}: no problem on {_title(model)}: {_checked(resolved)}")
    return 0


def _dead_patterns(plan: FreezePlan, model: torch.nn.Module, given: Namespace) -> Iterator[str]:
    """Yields for each rule the first pattern that selects nothing."""
    try:
        resolve(given.plan, plan, model, given)
    except PatternError:
        for at in range(len(plan.rules)):
            rules = [replace(rule, missing_ok=True) for rule in plan.rules]
            rules[at] = plan.rules[at]
            try:
                resolve(given.plan, replace(plan, rules=tuple(rules)), model, given)
            except PatternError as error:
                yield str(error)
            except PlanError:
                continue
    except PlanError:
        return


def _notes(plan: FreezePlan, model: torch.nn.Module, resolved: ResolvedPlan) -> set[str]:
    """Returns the warnings that are not about a rule: what is not known of the order of layers."""
    if not resolved.warnings:
        return set()
    return {*read_layers(model, Layering.read(plan.layers)).notes} & {*resolved.warnings}


def _checked(resolved: ResolvedPlan) -> str:
    counts = {
        "rule": len(resolved.plan.rules),
        "phase": len(resolved.phases),
        "parameter": len(resolved.rows),
    }
    return ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for noun, n in counts.items())


def explain(given: Namespace) -> int:
    """Says which rules decide for a parameter, or for each below a module.

    Raises:
        CommandError: nothing has that name, or the command could not run.
        PlanError: the plan does not work on the model.
    """
    plan = read_plan(given.plan)
    model = _model(given)
    resolved = resolve(given.plan, plan, model, given)
    found = _explanations(resolved, given.name)
    if not found:
        tree = resolved._tree
        known = {*resolved._row_of, *(prefix[:-1] for prefix in tree.prefixes), *tree.spelled}
        offer = offered(closest(given.name, sorted(known), 3))
        raise CommandError(
            f"no parameter or module of {_title(model)} is named {given.name!r}{offer}"
        )
    write("\n".join(map(str, found)))
    return 0


def _explanations(resolved: ResolvedPlan, name: str) -> list[Explanation]:
    """Returns those of the parameter with that name, or of all below the module with it."""
    if name in resolved._row_of:
        return [resolved.explain(name)]
    path = f"{resolved._tree.spelled.get(name, name)}."
    below = [row for other, row in resolved._row_of.items() if other.startswith(path)]
    return [resolved.explain(resolved.rows[row].name) for row in sorted({*below})]


def init(given: Namespace) -> int:
    """Writes a plan to start from.

    Raises:
        CommandError: the recipe or the file is none that will do, or the model cannot be built.
        PlanError: the recipe does not work on the model.
    """
    file = given.output
    if file and Path(file).suffix.lower() not in (".yaml", ".yml"):
        raise CommandError(f"{file}: a plan with comments is YAML; name a file that ends in .yaml")
    if file and Path(file).exists():
        raise CommandError(f"{file} is there already; delete it first, or name another file")
    recipe = _recipe(given.recipe) if given.recipe else None
    model = _model(given)
    plan = _from_recipe(recipe, model) if recipe else starter_plan(model)
    name = recipe.__name__ if recipe else None
    write(starter_text(plan, model, name, file or "plan.yaml"), file, "a plan to start from")
    return 0


def _recipe(name: str) -> Callable[[torch.nn.Module], FreezePlan]:
    """Returns a recipe that needs nothing but the model."""
    python = name.replace("-", "_")
    if python not in recipes.__all__:
        longer = [each for each in recipes.__all__ if python in each]
        offer = offered(closest(python, recipes.__all__) or longer)
        known = ", ".join(recipes.__all__)
        raise CommandError(f"no recipe is named {name!r}{offer} (known: {known})")
    recipe: Callable[..., FreezePlan] = getattr(recipes, python)
    needed = [p for p in signature(recipe).parameters.values() if p.default is p.empty][1:]
    if needed:
        listed = ", ".join(f"{each.name}=..." for each in needed)
        raise CommandError(
            f"the recipe {python} needs {listed}, for which there is no option; in Python: "
            f"freezekit.recipes.{python}(model, {listed}).save('plan.yaml')"
        )
    return recipe


def _from_recipe(
    recipe: Callable[[torch.nn.Module], FreezePlan], model: torch.nn.Module
) -> FreezePlan:
    call = f"freezekit.recipes.{recipe.__name__}(model)"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            plan = recipe(model)
        except PlanError as error:
            raise type(error)(
                f"{call}: {error}; there is no option for it: call the recipe in Python and save "
                "its plan"
            ) from None
    for each in caught:
        say("warning", str(each.message))
    return plan


def _model(given: Namespace) -> torch.nn.Module:
    return build_model(given.model, trust_remote_code=given.trust_remote_code)


def _title(model: torch.nn.Module) -> str:
    return class_name(type(unwrap(model)))


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "show": show,
    "layers": layers,
    "check": check,
    "explain": explain,
    "init": init,
}
