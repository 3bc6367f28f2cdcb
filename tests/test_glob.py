"""The pattern grammar, and the automaton against a matcher that walks one pattern at a time."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freezekit import PatternError
from freezekit._automaton import Automaton, State
from freezekit._glob import class_name, parse, runs_of


class Block:
    """A class without a base of its own."""


class Norm:
    """A base class."""


class LayerNorm(Norm):
    """A class that a test for its base finds too."""


class Linear:
    """A class that no test for a norm finds."""


@dataclass
class Node:
    """A module: its class, its children by name and the names of its parameters."""

    cls: type = Block
    children: dict[str, "Node"] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()

    def walk(self, path: str = "") -> Iterator[tuple[str, "Node"]]:
        """Yields the path of each module, with a dot behind it, and the module."""
        yield path, self
        for name, child in self.children.items():
            yield from child.walk(f"{path}{name}.")

    def names(self) -> set[str]:
        """Returns the paths of all modules (a dot behind each) and the names of all parameters."""
        return {
            name
            for path, node in self.walk()
            for name in (path, *(path + parameter for parameter in node.parameters))
        }


def layers(*names: str) -> Node:
    """Returns a module whose numbered children each hold a linear layer and a norm."""
    leaf = ("weight", "bias")
    children = {
        name: Node(children={"lin": Node(Linear, {}, leaf), "ln": Node(LayerNorm, {}, leaf)})
        for name in names
    }
    return Node(children=children)


def under(root: Node, *paths: str) -> set[str]:
    """Returns the names at or below the given paths."""
    return {name for name in root.names() if name.startswith(tuple(f"{path}." for path in paths))}


def selected(automaton: Automaton, root: Node) -> list[set[str]]:
    """Returns what each id of the automaton covers: modules (a dot behind each), parameters."""
    found: list[set[str]] = [set() for _ in (*automaton.patterns, *automaton.alternatives)]

    def note(accept: int, name: str) -> None:
        for identifier in automaton.accepts[accept]:
            found[identifier].add(name)

    def visit(node: Node, path: str, state: State) -> None:
        note(state.accept, path)
        names = (*node.parameters, *node.children)
        reached = automaton.numbered(state, path[:-1], names) if state.indices else {}
        for name in node.parameters:
            accept = automaton.parameter(state, name, reached.get(name, ()))
            note(automaton.with_regexes(accept, path + name), path + name)
        for name, child in node.children.items():
            step = automaton.child(state, name, child.cls, reached.get(name, ()))
            visit(child, f"{path}{name}.", step)

    visit(root, "", automaton.start(root.cls))
    return found


def select(text: str, root: Node) -> set[str]:
    """Returns what one pattern covers."""
    return selected(Automaton([parse(text)], ["rule 1"]), root)[0]


# The reference: one pattern, one path at a time, as the documentation states it.


class GapsError(Exception):
    """An index reached children that are numbered with gaps."""


def groups(text: str) -> list[tuple[re.Match[str], list[str]]]:
    """Returns the braces of a pattern, each with what it spells."""
    found = []
    for match in re.finditer(r"\{([^}]*)\}", text):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
        if numbers:
            options = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)]
        else:
            options = match[1].split(",")
        found.append((match, options))
    return found


def spelled(text: str) -> list[str]:
    """Returns the patterns without braces that a pattern stands for."""
    if not groups(text):
        return [text]
    match, options = groups(text)[0]
    rests = spelled(text[match.end() :])
    return [text[: match.start()] + option + rest for option in options for rest in rests]


def narrowed(text: str) -> list[tuple[str, str]]:
    """Returns each alternative of a pattern, and the pattern with it alone in its braces."""
    return [
        (option, f"{text[: match.start()]}{{{option}}}{text[match.end() :]}")
        for match, options in groups(text)
        if len(options) > 1
        for option in options
    ]


def steps(text: str) -> list[str]:
    """Splits a pattern without braces into names, `[index]` and `@class`."""
    return [
        step for segment in text.split(".") for step in re.findall(r"\[.*?\]|@.+|[^\[@]+", segment)
    ]


def is_of_class(node: Node, test: str) -> bool:
    """Returns whether a class test holds: a base by its literal name, or the name by a glob."""
    if "*" in test or "?" in test:
        return fnmatchcase(node.cls.__name__, test)
    return test in [base.__name__ for base in node.cls.__mro__]


def at_index(index: str, numbers: list[int]) -> list[int]:
    """Returns what Python's own indexing of the positions gives."""
    positions = list(range(len(numbers)))
    try:
        chosen = eval(f"positions{index}", {"positions": positions})
    except IndexError:
        return []
    return chosen if isinstance(chosen, list) else [chosen]


def ends(node: Node, path: str, todo: list[str]) -> Iterator[tuple[str, str]]:
    """Yields where a pattern ends, as (what, path): a module, a parameter, or gaps on the way."""
    if not todo:
        yield "module", path
        return
    step, rest = todo[0], todo[1:]
    if step == "**":
        yield from ends(node, path, rest)
        for name, child in node.children.items():
            yield from ends(child, f"{path}{name}.", todo)
        return
    if step.startswith("@"):
        if is_of_class(node, step[1:]):
            yield from ends(node, path, rest) if rest else [("own", path)]
        return
    names = [*node.children, *node.parameters]
    if step.startswith("["):
        numbers = sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))
        chosen = at_index(step, numbers)
        if chosen and numbers != list(range(len(numbers))):
            yield "gaps", path
            return
        hit = {str(position) for position in chosen}
    else:
        hit = {name for name in names if fnmatchcase(name, step)}
    for name in hit & set(node.children):
        yield from ends(node.children[name], f"{path}{name}.", rest)
    if all(step == "**" for step in rest):
        yield from (("parameter", path + name) for name in hit & set(node.parameters))


def reference(text: str, root: Node) -> set[str]:
    """Returns what a pattern covers; raises `GapsError` where it counts what cannot be counted."""
    found = [end for plain in spelled(text) for end in ends(root, "", steps(plain))]
    whole = tuple(path for what, path in found if what == "module")
    if any(what == "gaps" and not (whole and path.startswith(whole)) for what, path in found):
        raise GapsError
    exact = {path for what, path in found if what == "parameter"}
    own = {path for what, path in found if what == "own"}
    owned = {
        name
        for path, node in root.walk()
        if path in own
        for name in (path, *(path + parameter for parameter in node.parameters))
    }
    return exact | owned | {name for name in root.names() if whole and name.startswith(whole)}


NAMES = ("a", "b", "ab", "layer", "0", "1", "2", "10", "01")
INDICES = ("[0]", "[1]", "[-1]", "[2]", "[:1]", "[1:]", "[-2:]", "[::2]", "[::-1]", "[:]", "[5:]")
TESTS = ("@Norm", "@LayerNorm", "@*Norm", "@Block", "@{Linear,Norm}", "@L*", "@?lock", "@Linear")
LEAVES = ((), ("weight",), ("weight", "bias"), ("0", "1"), ("0", "2"))


def parents(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    """Draws modules with children, among them lists, with and without gaps."""
    numbers = st.sampled_from([("0", "1"), ("0", "1", "2"), ("0", "2"), ("1",), ("a", "0", "1")])
    names = numbers | st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=3)
    held = names.flatmap(lambda keys: st.fixed_dictionaries(dict.fromkeys(keys, children)))
    classes = st.sampled_from([Block, Block, Norm, LayerNorm])
    return st.builds(Node, classes, held, st.sampled_from([(), ("weight",), ("bias", "w")]))


leaves = st.builds(
    Node,
    st.sampled_from([Block, Norm, LayerNorm, Linear]),
    st.just({}),
    st.sampled_from(LEAVES),
)
trees = parents(leaves | parents(leaves | parents(leaves)))


@st.composite
def segments(draw: st.DrawFn, name: str) -> str:
    """Draws a segment of a pattern, most often one that fits the name."""
    spellings = [name, name, "*", "**", f"{name[0]}*", "?" * len(name), f"{{{name},b}}", "*{a,1}"]
    indices = "".join(draw(st.lists(st.sampled_from(INDICES), max_size=1)))
    if name.isdecimal():
        spellings += ["", "{0..1}", "{0..2}"] if indices else ["{0..1}", "{0..2}"]
    spelling = draw(st.sampled_from(spellings))
    kept = indices if spelling in ("", "*", "**") else draw(st.sampled_from(["", indices]))
    return spelling + kept + draw(st.sampled_from(["", "", "", *TESTS]))


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[str], Node]:
    """Draws a tree and patterns, each written after one of its names."""
    root = draw(trees)
    names = st.sampled_from(sorted(root.names() - {""}))
    texts = []
    for name in draw(st.lists(names, min_size=1, max_size=4)):
        parts = [part for part in name.split(".") if part]
        texts.append(".".join(draw(segments(part)) for part in parts))
    return texts, root


@settings(max_examples=200)
@given(plans())
def test_automaton_agrees_with_the_reference(drawn: tuple[list[str], Node]) -> None:
    """All patterns at once cover what each covers alone, alternatives in braces included."""
    texts, root = drawn
    automaton = Automaton([parse(text) for text in texts], ["rule"] * len(texts))
    alone = [*texts, *(narrow for text in texts for _, narrow in narrowed(text))]
    try:
        expected = [reference(text, root) for text in alone]
    except GapsError:
        with pytest.raises(PatternError, match="numbered with gaps"):
            selected(automaton, root)
        return
    assert selected(automaton, root) == expected
    assert selected(automaton, root) == expected, "the states it made lead elsewhere"
    assert [(number, option) for number, option, _ in automaton.alternatives] == [
        (number, option) for number, text in enumerate(texts) for option, _ in narrowed(text)
    ]


@given(st.lists(st.sampled_from(["0", "1", "2", "10", "12", "100"]), unique=True, min_size=1))
def test_a_number_is_a_name_not_a_prefix(names: list[str]) -> None:
    """`layer.1` selects child 1 and what is below it, never 10, 12 or 100."""
    root = Node(children={"layer": layers(*names)})
    for name in names:
        assert select(f"layer.{name}", root) == under(root, f"layer.{name}")
    assert select("layer.1", root) == under(root, "layer.1")


ENCODER = Node(
    children={
        "encoder": Node(children={"layer": layers(*map(str, range(12)))}),
        "head": Node(Linear, {}, ("weight", "bias")),
    },
    parameters=("token",),
)
L = "encoder.layer"


@pytest.mark.parametrize(
    ("text", "covered"),
    [
        ("encoder", under(ENCODER, "encoder")),
        ("token", {"token"}),
        ("head.weight", {"head.weight"}),
        ("h*d", under(ENCODER, "head")),
        ("*", ENCODER.names() - {""}),
        ("**", ENCODER.names()),
        ("encoder.layer.1", under(ENCODER, f"{L}.1")),
        ("encoder.layer.1?", under(ENCODER, f"{L}.10", f"{L}.11")),
        ("encoder.layer.{0..11}", under(ENCODER, *(f"{L}.{n}" for n in range(12)))),
        ("encoder.layer.{3,5}.lin", under(ENCODER, f"{L}.3.lin", f"{L}.5.lin")),
        ("encoder.layer.1{0..1}", under(ENCODER, f"{L}.10", f"{L}.11")),
        ("encoder.layer[0]", under(ENCODER, f"{L}.0")),
        ("encoder.layer.[0]", under(ENCODER, f"{L}.0")),
        ("encoder.layer[-2:]", under(ENCODER, f"{L}.10", f"{L}.11")),
        ("encoder.layer[::6]", under(ENCODER, f"{L}.0", f"{L}.6")),
        ("encoder.layer[9:99].ln", under(ENCODER, *(f"{L}.{n}.ln" for n in (9, 10, 11)))),
        ("encoder.layer[12]", set()),
        ("encoder.layer[12:]", set()),
        ("encoder[0]", set()),
        ("**.bias", {name for name in ENCODER.names() if name.endswith("bias")}),
        ("**@Linear", {name for name in ENCODER.names() if re.search(r"(lin|head)\.", name)}),
        ("**@Norm", {name for name in ENCODER.names() if ".ln." in name}),
        ("**@Nor?", set()),
        ("**@Layer*", {name for name in ENCODER.names() if ".ln." in name}),
        ("encoder@Block", {"encoder."}),
        ("encoder@Block.**", under(ENCODER, "encoder")),
        ("encoder.layer[0]@Block", {f"{L}.0."}),
        ("token@Block", set()),
        ("token.**", {"token"}),
        ("re:.*layer\\.1\\..*bias", {f"{L}.1.lin.bias", f"{L}.1.ln.bias"}),
        ("re:encoder", set()),
        ("ENCODER", set()),
    ],
)
def test_each_form_covers_what_it_says(text: str, covered: set[str]) -> None:
    """Every form of the grammar covers exactly the names it stands for."""
    assert select(text, ENCODER) == covered


def test_class_test_covers_own_parameters_only() -> None:
    """`@Class` covers the module's own tensors, `@Class.**` the subtree."""
    inner = Node(LayerNorm, {}, ("weight",))
    root = Node(children={"norm": Node(LayerNorm, {"part": Node(Linear, {}, ("x",))}, ("w",))})
    root.children["norm"].children["deep"] = inner
    own = {"norm.", "norm.w", "norm.deep.", "norm.deep.weight"}
    assert select("**@LayerNorm", root) == own
    assert select("**@LayerNorm.**", root) == own | {"norm.part.", "norm.part.x"}


def test_negated_pattern_keeps_its_sign_and_matches_like_the_plain_one() -> None:
    """`!x` is parsed as x with a mark; taking away is the rule's affair."""
    assert parse("!head").negated
    assert not parse("head").negated
    assert parse("!re:h.*").negated
    assert select("!head", ENCODER) == select("head", ENCODER)


def test_alternatives_narrow_a_pattern_one_by_one() -> None:
    """Each of several names in braces comes with the pattern in which it stands alone."""
    text = "!a{b,c}d{e,f}.{g}@{X,Y}"
    narrowed = {
        "b": "!a{b}d{e,f}.{g}@{X,Y}",
        "c": "!a{c}d{e,f}.{g}@{X,Y}",
        "e": "!a{b,c}d{e}.{g}@{X,Y}",
        "f": "!a{b,c}d{f}.{g}@{X,Y}",
        "X": "!a{b,c}d{e,f}.{g}@{X}",
        "Y": "!a{b,c}d{e,f}.{g}@{Y}",
    }
    expected = [(option, parse(each)._replace(text=text)) for option, each in narrowed.items()]
    assert parse(text).alternatives() == expected


def test_a_class_that_only_looks_generated_keeps_its_name() -> None:
    """A prefix of torch's goes only where a base has the rest of the name."""
    mine = type("ParametrizedLayer", (Linear,), {})
    generated = type("ParametrizedLinear", (Linear,), {})
    assert [class_name(cls) for cls in (mine, generated, Linear)] == [
        "ParametrizedLayer",
        "Linear",
        "Linear",
    ]


def test_a_walk_looks_up_what_it_has_met_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the layers take no more closures and states, and a second walk takes none."""
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def counting(*arguments: object) -> object:
            calls[name] += 1
            return method(*arguments)

        monkeypatch.setattr(owner, name, counting)

    for name in ("_enter", "_closure", "_targets", "_expect"):
        count(Automaton, name)
    count(State, "is_plain")

    def walk(automaton: Automaton, layer_count: int) -> Counter[str]:
        calls.clear()
        selected(automaton, layers(*(f"layer{number}" for number in range(layer_count))))
        calls["_enter"] -= 1  # the root is entered anew
        return calls.copy()

    one, other = (Automaton([parse("**.ln"), parse("**@Linear")], ["", ""]) for _ in range(2))
    few, many = walk(one, 10), walk(other, 100)
    assert many.pop("is_plain") - few.pop("is_plain") == 90
    assert many == few
    assert min(few.values()) > 0
    assert not any(walk(other, 100).values())
    assert len(one.accepts) == len(other.accepts)
    below = [one.child(one.start(Block), name, Block) for name in ("layer0", "layer1")]
    assert below[0] is below[1] is one.start(Norm)


def test_covered_state_covers_everything_below() -> None:
    """A state joined by patterns from elsewhere covers all that lies below it."""
    automaton = Automaton([parse("head"), parse("*.layer")], ["rule 1", "rule 2"])
    start = automaton.start(Block)
    head = automaton.child(start, "head", Linear)
    encoder = automaton.child(start, "encoder", Block)
    joined = automaton.covered(encoder, head.accept)
    layer = automaton.child(joined, "layer", Block)
    assert automaton.accepts[joined.accept] == {0}
    assert automaton.accepts[layer.accept] == {0, 1}
    assert automaton.accepts[automaton.parameter(joined, "bias")] == {0}
    assert automaton.accepts[automaton.parameter(encoder, "bias")] == set()


def test_regex_joins_by_any_name() -> None:
    """A `re:` pattern that matches one of a parameter's names joins what covers it."""
    automaton = Automaton([parse("head"), parse("re:h.*t")], ["rule 1", "rule 2"])
    head = automaton.child(automaton.start(Block), "head", Linear)
    assert automaton.accepts[automaton.with_regexes(head.accept, "head.weight")] == {0, 1}
    assert automaton.accepts[automaton.with_regexes(head.accept, "x", "heat")] == {0, 1}
    assert automaton.with_regexes(head.accept, "x.weight") == head.accept


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        (
            "encoder.layer[0]",
            ("8", "9", "10", "12"),
            "rule 2, freeze('x'): pattern 'encoder.layer[0]': [0] counts children by position, "
            "and those of 'encoder.layer' are numbered with gaps: 8, 9, 10, 12; "
            "name them instead, as in {8..10} and 12",
        ),
        (
            "**.{layer,x}[-1:]",
            ("1", "2"),
            "rule 2, freeze('x'): pattern '**.{layer,x}[-1:]': [-1:] counts children by position, "
            "and those of 'encoder.layer' are numbered with gaps: 1, 2; "
            "name them instead, as in {1..2}",
        ),
    ],
)
def test_gaps_are_an_error_that_lists_them(text: str, names: Sequence[str], message: str) -> None:
    """An index into children numbered with gaps names the parent, the children and the way out."""
    root = Node(children={"encoder": Node(children={"layer": layers(*names)})})
    automaton = Automaton([parse("encoder.x"), parse(text)], ["rule 1", "rule 2, freeze('x')"])
    with pytest.raises(PatternError) as caught:
        selected(automaton, root)
    assert str(caught.value) == message


def test_gaps_at_the_root_are_those_of_the_model() -> None:
    """The message has a word for the root, which has no path."""
    with pytest.raises(PatternError, match="those of 'the model' are numbered with gaps: 3"):
        select("[0]", layers("3"))


def test_gaps_matter_only_where_the_index_reaches() -> None:
    """Of the parents behind a glob only those that an index reaches must count without gaps."""
    root = Node(children={"a": layers("0", "1", "2"), "b": layers("0", "5")})
    assert select("a[2]", root) == under(root, "a.2")
    assert select("*[2]", root) == under(root, "a.2")
    with pytest.raises(PatternError, match="'b' are numbered with gaps: 0, 5"):
        select("*[1]", root)


def test_gaps_below_what_is_covered_do_not_matter() -> None:
    """Below a module that a pattern covers, the pattern has nothing left to count."""
    root = Node(children={"0": layers("3", "5")})
    assert select("**[0]", root) == under(root, "0")


def test_gaps_below_a_class_matter() -> None:
    """A pattern that ends in a class covers nothing below, so there it goes on counting."""
    root = Node(children={"0": layers("3", "5")})
    with pytest.raises(PatternError, match="those of '0' are numbered with gaps: 3, 5"):
        select("**[0]@Block", root)


def test_gaps_that_one_alternative_reaches_are_told_of_the_whole_pattern() -> None:
    """An alternative counts for itself; the message quotes the pattern as it was written."""
    root = Node(children={"x": Node(children={"0": layers("0", "5")})})
    with pytest.raises(PatternError, match=re.escape("'**.{0,x}[0]': [0] counts children")):
        select("**.{0,x}[0]", root)


def test_one_name_under_two_parents_is_told_apart() -> None:
    """Index and class decide per parent, also where the parents look alike to the pattern."""
    root = Node(children={"a": layers("0", "1"), "b": layers("0", "1", "2")})
    assert select("*[-1]", root) == under(root, "a.1", "b.2")
    root.children["b"].children["0"] = Node(Norm, {}, ("weight",))
    assert select("*.0@Norm", root) == {"b.0.", "b.0.weight"}
    lists = {"a": Node(Block, {}, ("0", "1")), "b": Node(Block, {}, ("0", "1", "2"))}
    assert select("*[-1]", Node(children=lists)) == {"a.1", "b.2"}


BRACKETS = "brackets count children by position, as in [0], [-1], [-2:]; for alternatives write"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty; '**' selects everything"),
        ("!", "it is empty; '**' selects everything"),
        ("!!a", "one '!' takes away, two mean nothing"),
        (".a", "a segment between two dots, or beside one, is empty"),
        ("a.", "a segment between two dots, or beside one, is empty"),
        ("a..b", "a segment between two dots, or beside one, is empty"),
        ("a.**b", "'**' stands alone between dots; inside a segment write '*'"),
        ("***", "'**' stands alone between dots; inside a segment write '*'"),
        ("[abc]", f"[abc] is not an index; {BRACKETS} {{a,b,c}}"),
        ("[ab]", f"[ab] is not an index; {BRACKETS} {{a,b}}"),
        ("x[abc]", f"[abc] is not an index; {BRACKETS} x{{a,b,c}}"),
        ("[q, k]", f"[q, k] is not an index; {BRACKETS} {{q,k}}"),
        ("[0-11]", f"[0-11] is not an index; {BRACKETS} {{0..11}}"),
        ("model.layers.[0-11]", f"[0-11] is not an index; {BRACKETS} {{0..11}}"),
        ("layers[0-11]", f"[0-11] is not an index; {BRACKETS} layers.{{0..11}}"),
        ("layers[8,9].x", f"[8,9] is not an index; {BRACKETS} layers.{{8,9}}"),
        ("a[0:4:0]", "the step of [0:4:0] is zero"),
        ("a[0", "'[0' has no closing ']'"),
        ("a[0]b", "'b' follows an index; write a dot before a name"),
        ("a]", "']' without '['"),
        ("a].b", "']' without '['"),
        ("{a,b", "'{a,b' has no closing '}'"),
        ("a}", "'}' without '{'"),
        ("{a,}", "{a,} has an empty alternative"),
        ("{}", "{} has an empty alternative"),
        ("{a.b,c}", "{a.b,c} holds dots; write two patterns instead"),
        ("{a,{b,c}}", "{a,{b,c} holds braces; write two patterns instead"),
        ("layer.{4..1}", "{4..1} runs backwards; write {1..4}"),
        ("{0..10000}", "{0..10000} spells more than 10000 names; write '*'"),
        ("@Linear", "'@' needs a name before it: '*@Linear' or '**@Linear'"),
        ("a.@Linear", "'@' needs a name before it: '*@Linear' or '**@Linear'"),
        ("a@", "a class name is missing after '@'"),
        ("a@B[0]", "'[' cannot stand in a class name"),
        ("a@B@C", "'@' cannot stand in a class name"),
        ("re:(", "not a regular expression: missing ), unterminated subpattern at position 0"),
        ("!{a", "'{a' has no closing '}'"),
    ],
)
def test_bad_pattern_is_quoted_with_a_way_out(text: str, problem: str) -> None:
    """A pattern outside the grammar is an error that quotes it, says why and offers a spelling."""
    with pytest.raises(PatternError) as caught:
        parse(text)
    assert str(caught.value) == f"pattern {text!r}: {problem}"


@pytest.mark.parametrize(
    "text", ["{3..3}", "{9000..9001}", "{0..9999}", "{0..99}{0..99}", f"x[{'1' * 18}]"]
)
def test_what_is_just_within_bounds_is_taken(text: str) -> None:
    """A range of one number, far numbers, 10,000 names and 18 digits are patterns."""
    assert parse(text).text == text


@given(st.text(alphabet="ab01.*?{}[],:-@!re", max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    """A text is a pattern that keeps its text, or a `PatternError` that quotes it."""
    try:
        pattern = parse(text)
    except PatternError:
        with pytest.raises(PatternError, match="^" + re.escape(f"pattern {text!r}: ")):
            parse(text)
    else:
        assert pattern.text == text
        assert pattern.regex is not None or pattern.items()


@given(st.sets(st.integers(0, 40)).map(sorted))
def test_runs_cover_the_numbers_and_are_maximal(numbers: list[int]) -> None:
    """The runs spell out the numbers, and no two of them touch."""
    runs = runs_of(numbers)
    assert [n for first, last in runs for n in range(first, last + 1)] == numbers
    assert all(after[0] - before[1] > 1 for before, after in pairwise(runs))


@pytest.mark.parametrize("text", ["x[]", "x[a]", "x[!a]", "x[0.5]", "x[a-c]"])
def test_brackets_without_a_known_meaning_get_no_hint(text: str) -> None:
    """A hint is a pattern; where none can be meant, none is given."""
    with pytest.raises(PatternError) as caught:
        parse(text)
    assert "is not an index" in str(caught.value)
    assert "for alternatives" not in str(caught.value)


def test_braces_that_hold_more_than_names_are_refused_whole() -> None:
    """Indices and class tests stand outside braces, and braces spell a bounded number of names."""
    for text in ("{a[0],b}", "{a@B,c}"):
        with pytest.raises(PatternError, match="holds more than names; write two patterns"):
            parse(text)
    with pytest.raises(PatternError, match="spells more than 10000 names"):
        parse("{0..9999}{0..9}")
