"""YAML text to plain data and back, with advice on what YAML makes of bare patterns."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._verbs import VERBS
from .errors import PlanError

if TYPE_CHECKING:
    import yaml

_TAG = "tag:yaml.org,2002:"
_INDEX = re.compile(r"\[[-\d:\s]+\]")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_WIDTH = 88


def read_yaml(text: str, source: str) -> object:
    """Returns the data in a YAML text: mappings, lists, strings, numbers, booleans, null.

    Args:
        text: one document, in the spelling of YAML 1.2.
        source: how messages name the text.

    Raises:
        PlanError: the text is not YAML, a key is given twice, or a pattern needs quotes.
    """
    import yaml

    lines = text.splitlines()
    try:
        loader = _yaml_loader()(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root, source)
        for at in [*_tags(text), *_bare_patterns(root, text)]:
            advice = _advice(lines[at], certain=True)
            advice = advice or f"only text, numbers and booleans are read: {lines[at].strip()!r}"
            raise PlanError(f"{source}, line {at + 1}: {advice}")
        return loader.construct_object(root, deep=True)
    except yaml.MarkedYAMLError as error:
        raise PlanError(f"{source}, {_syntax_message(error, lines)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        stray = text[error.position]
        raise PlanError(f"{source}, line {line}: {stray!r} cannot stand in YAML") from None


def _yaml_loader() -> type[yaml.SafeLoader]:
    """Returns a loader with the numbers, booleans and null of YAML 1.2, and no other type."""
    import yaml

    class PlanLoader(yaml.SafeLoader):
        pass

    PlanLoader.yaml_implicit_resolvers = {}
    plain = {
        "null": r"~|null|Null|NULL|",
        "bool": r"true|True|TRUE|false|False|FALSE",
        "int": r"[-+]?[0-9]+",
        "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    }
    for name, spelling in plain.items():
        pattern = re.compile(rf"(?:{spelling})\Z")
        PlanLoader.add_implicit_resolver(f"{_TAG}{name}", pattern, None)
    # SafeLoader would read 010 as octal.
    PlanLoader.add_constructor(f"{_TAG}int", lambda _, node: int(node.value))
    return PlanLoader


def _check_nodes(root: yaml.Node, source: str) -> None:
    import yaml

    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(node, yaml.ScalarNode):
            _check_word(node, source)
            continue
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
            continue
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, text = key.start_mark.line + 1, str(key.value)
            if text in lines:
                raise PlanError(
                    f"{source}, line {line}: the key {text!r} is given twice, "
                    f"first on line {lines[text]}"
                )
            lines[text] = line
            waiting.append(value)


def _check_word(node: yaml.ScalarNode, source: str) -> None:
    meant = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(node.value.lower())
    if meant and node.style is None:
        raise PlanError(
            f"{source}, line {node.start_mark.line + 1}: {node.value} is not a boolean here; "
            f'write {meant}, or "{node.value}" for the text'
        )


def _tags(text: str) -> Iterator[int]:
    """Yields the lines (0-based) of tags, which is what an unquoted `!x` is to YAML."""
    import yaml

    yield from (
        token.start_mark.line for token in yaml.scan(text) if isinstance(token, yaml.TagToken)
    )


def _bare_patterns(root: yaml.Node, text: str) -> Iterator[int]:
    """Yields the lines (0-based) of patterns that YAML took for something else than text."""
    import yaml

    def entries(node: object, key: str) -> list[yaml.Node]:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        return [value for name, value in pairs if name.value == key]

    rules = [rule for listed in entries(root, "rules") for rule in listed.value]
    for value in (value for rule in rules for verb in VERBS for value in entries(rule, verb)):
        if _INDEX.fullmatch(text[value.start_mark.index : value.end_mark.index]):
            yield value.start_mark.line
        for node in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if node.value != "" and node.tag != f"{_TAG}str":
                yield node.start_mark.line


def _syntax_message(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> str:
    marks = [mark for mark in (error.problem_mark, error.context_mark) if mark is not None]
    numbers = [min(mark.line, len(lines) - 1) for mark in marks]
    for number in numbers:
        advice = _advice(lines[number], certain=False)
        if advice:
            return f"line {number + 1}: {advice}"
    at, line = numbers[0] + 1, lines[numbers[0]].strip()
    problem = f"{error.problem}"
    if problem.startswith("found unknown escape character"):
        plain = re.sub(r'"((?:[^"\\]|\\.)*)"', lambda found: _quote(found[1]), line)
        return f"line {at}: a backslash in double quotes is an escape; use single ones: {plain}"
    begun = f" since line {numbers[-1] + 1}" if numbers[-1] != numbers[0] else ""
    since = f"{error.context}{begun}, " if error.context else ""
    return f"line {at}: not valid YAML, {since}{problem}: {line!r}"


def _advice(line: str, *, certain: bool) -> str:
    """Returns the advice to quote the patterns on a line, "" where none needs quotes.

    Args:
        line: a line of a YAML file.
        certain: YAML did take a pattern on the line for something else than text.
    """
    head, value = _entry(line)
    end = _closing(value)
    if value.startswith("[") and end in (-1, len(value) - 1) and not _INDEX.fullmatch(value):
        items, brackets = _split(value[1:]), ("[", "" if end == -1 else "]")
    else:
        items, brackets = [value] if head else _split(value), ("", "")
    in_flow = brackets[0] or not head
    bare = [item for item in items if item and item[0] not in "\"'"]
    if not any(certain or _needs_quotes(item, bool(in_flow)) for item in bare):
        return ""
    quoted = ", ".join(_quote(item) if item in bare else item for item in items)
    return f"quote the pattern: {head}{quoted.join(brackets).strip()}"


def _entry(line: str) -> tuple[str, str]:
    """Splits a line into what introduces its patterns and the text that spells them."""
    line = re.sub(r"\s#.*", "", line).rstrip()
    found = re.search(rf"(?<![\w\"'])({'|'.join(VERBS)})\s*:\s+", line)
    if found:
        value = line[found.end() :]
        return f"{found[1]}: ", _split(value)[0] if "{" in line[: found.start()] else value
    value = re.sub(r"^\s*(?:- +)*", "", line)
    if re.match(r"[\w-]+\s*:(\s|$)", value):
        return "", ""
    return line.removesuffix(value).lstrip(), value


def _closing(text: str) -> int:
    """Returns where the bracket that opens the text is closed, -1 if nowhere."""
    depth = 0
    for at, char in enumerate(text):
        depth += (char in "[{") - (char in "]}")
        if depth == 0:
            return at
    return -1


def _split(text: str) -> list[str]:
    """Splits at the commas outside brackets, up to a bracket that was opened before."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "[{") - (char in "]}")
        if depth < 0:
            break
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _needs_quotes(item: str, in_flow: bool) -> bool:
    special = r"[*!{\[@&%?|>`]|.*: " + (r"|.*[{}\[\]]" if in_flow else "")
    return re.match(special, item) is not None


def _quote(text: str) -> str:
    if '"' in text or "\\" in text:
        return "'" + text.replace("'", "''") + "'"
    return f'"{text}"'


def yaml_text(data: Mapping[str, Any]) -> str:
    """Returns the YAML text of what `FreezePlan.to_dict` returned."""
    lines = [f"{key}: {_inline(data[key])}" for key in data if key != "rules"]
    lines.append("rules:" if data["rules"] else "rules: []")
    for rule in data["rules"]:
        entries = [line for key in rule for line in _property_lines(key, rule[key])]
        lines.extend(f"  {'  ' if at else '- '}{line}" for at, line in enumerate(entries))
    return "\n".join(lines) + "\n"


def _property_lines(key: str, value: object) -> list[str]:
    line = f"{key}: {_inline(value)}"
    if isinstance(value, list) and len(line) > _WIDTH:
        return [f"{key}:", *(f"  - {_inline(entry)}" for entry in value)]
    return [line]


def _inline(value: object) -> str:
    if isinstance(value, dict):
        pairs = (f"{_inline(key)}: {_inline(entry)}" for key, entry in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return _float_text(value)
    return "null" if value is None else str(value).lower()


def _float_text(value: float) -> str:
    """Returns the shortest exact decimal, spelled so that YAML 1.1 readers see a number too."""
    mantissa, exponential, exponent = repr(value).partition("e")
    if not exponential:
        return mantissa
    return f"{mantissa}{'' if '.' in mantissa else '.0'}e{int(exponent):+d}"


def _text(text: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w./-]*", text, re.ASCII) and text.lower() not in _WORDS:
        return text
    import yaml

    quoted = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=sys.maxsize)
    return quoted.strip()
