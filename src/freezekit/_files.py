"""Plan files: YAML, TOML and JSON to plain data, plain data to a plan, strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from os import PathLike
from pathlib import Path
from typing import Any, TypeGuard

from ._layering import Layering
from ._plan import VERSION
from ._rules import Rule, spells_number
from ._verbs import PROPERTIES, VERBS, checked_properties, did_you_mean
from ._yaml import read_yaml, yaml_text
from .errors import PlanError

_KEYS = ("version", "rules", "allow_all_frozen", "layers")
_TEXTS = ("rows", "frozen_mode", "order", "top", "count")
_VERSION_LINES = {".toml": f"version = {VERSION}", ".json": f'"version": {VERSION}'}


def load(path: str | PathLike[str]) -> Mapping[str, Any]:
    """Returns the data in a plan file, not yet checked to be a plan.

    Args:
        path: a file ending in .yaml, .yml, .toml or .json.

    Raises:
        PlanError: the ending is another one, the text is not of that format or no mapping.
        OSError: the file cannot be read.
    """
    file = Path(path)
    readers: dict[str, Callable[[str, str], object]] = {
        ".yaml": read_yaml,
        ".yml": read_yaml,
        ".toml": _read_toml,
        ".json": _read_json,
    }
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise PlanError(f"{file}: a plan file ends in {', '.join(readers)}, not {file.suffix!r}")
    raw = file.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PlanError(f"{file}, line {line}: {raw[error.start]:#x} is not UTF-8 text") from None
    return _mapping(reader(text, str(file)), str(file))


def save(data: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Writes what `FreezePlan.to_dict` returned.

    Args:
        data: the plan as plain data.
        path: a file name ending in .yaml, .yml or .json.

    Raises:
        PlanError: the ending is another one.
        OSError: the file cannot be written.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix in (".yaml", ".yml"):
        text = yaml_text(data)
    elif suffix == ".json":
        import json

        text = json.dumps(data, indent=2) + "\n"
    else:
        raise PlanError(f"{file}: a plan is saved as .yaml, .yml or .json, not {file.suffix!r}")
    file.write_text(text, encoding="utf-8")


def plan_arguments(data: object, source: str) -> dict[str, Any]:
    """Returns the arguments of the `FreezePlan` that `data` describes.

    Args:
        data: the form of a plan file; any mapping and sequences will do.
        source: how messages name the data.

    Raises:
        PlanError: a key is unknown or a value is wrong; the message names the rule.
    """
    data = _mapping(data, source)
    for key in data:
        if key not in _KEYS:
            raise PlanError(f"{source}: unknown key {key!r}{did_you_mean(str(key), _KEYS)}")
    _check_version(data, source)
    rules, allow = data.get("rules"), data.get("allow_all_frozen", False)
    if not _is_list(rules):
        raise PlanError(
            f"{source}: rules must be a list of rules such as {{'freeze': 'backbone'}}, "
            f"got {rules!r}"
        )
    if not isinstance(allow, bool):
        raise PlanError(f"{source}: allow_all_frozen must be true or false, got {allow!r}")
    return {
        "rules": tuple(_rule(rule, f"{source}, rule {at}") for at, rule in enumerate(rules, 1)),
        "allow_all_frozen": allow,
        "layers": _layering(data.get("layers", {}), source),
    }


def _layering(data: object, source: str) -> Layering:
    try:
        if data is None:
            raise PlanError("layers has no value; give it one or leave it out")
        return Layering.read(data)
    except PlanError as error:
        raise type(error)(f"{source}: {error}") from None


def _mapping(data: object, source: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PlanError(
            f"{source}: expected the keys version and rules, as in "
            f"{{'version': {VERSION}, 'rules': [{{'freeze': 'backbone'}}]}}, got {data!r}"
        )
    return data


def _check_version(data: Mapping[str, Any], source: str) -> None:
    if "version" not in data:
        line = _VERSION_LINES.get(Path(source).suffix.lower(), f"version: {VERSION}")
        raise PlanError(f"{source}: the version is missing; add {line}")
    version = data["version"]
    if not isinstance(version, int) or isinstance(version, bool):
        raise PlanError(f"{source}: version must be the number {VERSION}, got {version!r}")
    if version != VERSION:
        remedy = "upgrade freezekit" if version > VERSION else f"write {VERSION}"
        raise PlanError(
            f"{source}: version {version}; this freezekit reads version {VERSION}: {remedy}"
        )


def _rule(data: object, place: str) -> Rule:
    if not isinstance(data, Mapping):
        raise PlanError(f"{place}: expected a rule such as {{'freeze': 'backbone'}}, got {data!r}")
    try:
        verb = _verb(data)
        properties = {key: data[key] for key in data if key != verb}
        checked_properties(verb, properties)
        for name, value in properties.items():
            _check_plain_mistakes(name, value)
        return Rule(verb, _patterns(verb, data[verb]), **properties)
    except PlanError as error:
        raise type(error)(f"{place}: {error}") from None


def _verb(data: Mapping[str, Any]) -> str:
    verbs = [key for key in data if key in VERBS]
    if len(verbs) > 1:
        raise PlanError(f"it has two verbs, {verbs[0]} and {verbs[1]}; make it two rules")
    if verbs:
        return str(verbs[0])
    strange = [str(key) for key in data if key not in PROPERTIES]
    closest = next((key for key in strange if get_close_matches(key, VERBS)), "")
    keys = f"its keys are {', '.join(map(repr, data))}" if data else "it is empty"
    raise PlanError(f"it has no verb, {keys}{did_you_mean(closest, VERBS)}")


def _patterns(verb: str, value: object) -> tuple[str, ...]:
    entries = [value] if isinstance(value, str | int | float) else value
    if not _is_list(entries):
        raise PlanError(f"{verb} takes a pattern or a list of patterns, got {value!r}")
    for entry in entries:
        if not isinstance(entry, str):
            raise PlanError(f"{verb}: a pattern must be text, got {entry!r}; write '{entry}'")
    return tuple(entries)


def _check_plain_mistakes(name: str, value: object) -> None:
    if value is None:
        raise PlanError(f"{name} has no value; give it one or leave it out")
    if name in ("options", "at_metric") and not isinstance(value, Mapping):
        raise PlanError(f"{name} must be a mapping, got {value!r}")
    if isinstance(value, str) and name not in _TEXTS and spells_number(value):
        raise PlanError(
            f"{name} must be a number, got the text {value!r}; write it without quotes, "
            "and as 2.0e-5 where a YAML reader takes 2e-5 for text"
        )


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _read_toml(text: str, source: str) -> object:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source}: not valid TOML: {error}") from None


def _read_json(text: str, source: str) -> object:
    import json

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise PlanError(
                    f"{source}: the key {key!r} is given twice in one object, "
                    f"with {found[key]!r} and {value!r}"
                )
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise PlanError(f"{source}, {place}: not valid JSON: {error.msg}") from None
