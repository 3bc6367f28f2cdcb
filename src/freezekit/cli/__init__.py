"""The command line: `freezekit`, or `python -m freezekit`.

Options are read here, without torch; what the commands do stands in `_commands`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import takewhile
from typing import NoReturn

from freezekit import __version__

from .._verbs import closest, did_you_mean, offered
from ..errors import PlanError
from ._console import CommandError, flush, say, write

__all__ = ["main"]

FORMATS = ("text", "json", "html", "svg", "png")
_MODEL = """\
MODEL is one of
  a directory with a config.json, as save_pretrained writes it,
  the id of a model on the Hugging Face Hub, e.g. google-bert/bert-base-uncased,
  package.module:factory, a function or class without arguments, or a torch.nn.Module.
The first two are built from the config alone, on the meta device: no weights are read. Only the
config may be downloaded, unless HF_HUB_OFFLINE=1, and code that comes with a model runs only with
--trust-remote-code. A factory is looked for from the current directory on, and called."""
_EXITS = """\
exit status: 0 all is well; 1 the plan is wrong, in itself or for this model; 2 the command could
not run: an option, a file that is missing, a model that cannot be built; 130 it was interrupted."""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else ";"
        raise CommandError(f"{message}{end} see {self.prog} --help")

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Complains about the first option that there is none of.

        Raises:
            CommandError: there is one; the message offers the closest option.
        """
        known = self._option_string_actions
        for text in takewhile("--".__ne__, arguments):
            name = text.partition("=")[0]
            if name.startswith("--") and name not in known:
                self.error(f"no option is named {name!r}{offered(closest(name, known))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the arguments; None: those of the process.

    Returns:
        The exit status: 0 if all is well, 1 if the plan is wrong, 2 if the command could not run,
        130 if it was interrupted.

    Raises:
        SystemExit: with status 0, after --help and --version.

    Example:
        >>> main(["schema"])  # doctest: +ELLIPSIS
        {
          "$schema": ...
        0
    """
    try:
        try:
            return _run(_parsed(sys.argv[1:] if argv is None else argv))
        finally:
            flush()
    except CommandError as error:
        say("error", str(error))
        return 2
    except PlanError as error:
        say("error", str(error))
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "schema":
        write(files("freezekit").joinpath("plan.schema.json").read_text(encoding="utf-8"))
        return 0
    from ._commands import COMMANDS

    return COMMANDS[arguments.command](arguments)


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the options; complaints name what is wrong.

    Raises:
        CommandError: the arguments are not those of a command.
        SystemExit: after --help and --version.
    """
    parser = _Parser(
        prog="freezekit",
        description="Declarative freezing for PyTorch: looks at models and plans before training.",
        epilog=f"{_MODEL}\n\n{_EXITS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"freezekit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (summary, add) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=None if add is None else f"{_MODEL}\n\n{_EXITS}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if add is not None:
            add(command)
    return _read(argv, parser, commands.choices)


def _read(
    argv: Sequence[str], parser: _Parser, commands: Mapping[str, _Parser]
) -> argparse.Namespace:
    """Returns the options of a command.

    Raises:
        CommandError: the arguments are not those of a command.
        SystemExit: after --help and --version.
    """
    named = bool(argv) and not argv[0].startswith("-")
    if named and argv[0] not in commands:
        raise CommandError(f"no command is named {argv[0]!r}{did_you_mean(argv[0], commands)}")
    asked = commands[argv[0]] if named else parser
    asked.refuse_unknown(argv[1:] if named else argv[:1])
    given, rest = parser.parse_known_args(argv)
    if rest:
        asked.error(f"unrecognized arguments: {' '.join(rest)}")
    if given.command is None:
        parser.error(f"no command (known: {', '.join(commands)})")
    return given


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_plan(parser, required=False)
    parser.add_argument(
        "--against", metavar="OTHER", help="a plan to compare with, in text and html"
    )
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--at-epoch", type=_from_0, metavar="E", help="epoch to show, from 0 on")
    moment.add_argument("--at-step", type=_from_0, metavar="S", help="step to show, from 0 on")
    parser.add_argument(
        "--depth", type=_from_0, metavar="D", help="deepest nesting, in text and the schedule"
    )
    parser.add_argument(
        "--base-lr",
        type=_positive,
        metavar="LR",
        help="the optimizer's learning rate, for json, html and the schedule",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="text (default), json, html (a report), svg or png (the schedule of a plan that "
        "changes over time unless a moment is asked for, else what trains); "
        "without it the ending of FILE says",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="where to; without it stdout")


def _add_layers(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--plan", metavar="PLAN", help="a plan file, for its `layers`")
    parser.add_argument("--by", choices=("block", "stage"), help="what counts as one layer")
    parser.add_argument(
        "--final-norm",
        choices=("head", "last_block"),
        help="where the norm behind the last block belongs",
    )


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_plan(parser, required=True)


def _add_explain(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_plan(parser, required=True)
    parser.add_argument("name", metavar="NAME", help="a parameter, or a module with all below it")


def _add_init(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument(
        "--recipe", metavar="NAME", help="a recipe to start from, e.g. gradual-unfreezing"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="a new .yaml file; without it stdout"
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="directory, Hub id or module:factory")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that comes with the model"
    )


def _add_plan(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--plan", metavar="PLAN", required=required, help="a plan file: .yaml, .toml or .json"
    )
    for option, counted in (
        ("--steps-per-epoch", "steps in an epoch, for plans with epochs and steps"),
        ("--total-epochs", "epochs in all of training, for plans with fractions"),
        ("--total-steps", "steps in all of training, for plans with fractions"),
    ):
        parser.add_argument(option, type=_from_1, metavar="N", help=counted)


def _from_0(text: str) -> int:
    return _whole(text, 0)


def _from_1(text: str) -> int:
    return _whole(text, 1)


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text!r}")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


_COMMANDS = {
    "show": ("show what trains, as text, data, a report or a picture", _add_show),
    "layers": ("list the layers of a model, from input to output", _add_layers),
    "check": ("check that a plan does on a model what it says", _add_check),
    "explain": ("say which rules decide for a parameter", _add_explain),
    "init": ("write a commented plan to start from", _add_init),
    "schema": ("print the JSON Schema of plan files", None),
}
