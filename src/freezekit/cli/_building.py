"""MODEL on the command line -> torch.nn.Module: a directory, a Hub id, or module:factory."""

from __future__ import annotations

import ast
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import torch

from .._verbs import closest, did_you_mean, offered
from ._console import CommandError, say

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TRUE = {"1", "ON", "YES", "TRUE"}


def build_model(text: str, *, trust_remote_code: bool = False) -> torch.nn.Module:
    """Returns the model that a text names.

    Args:
        text: a directory with a config.json or a Hub id, both built on the meta device from the
            config; or `package.module:factory`.
        trust_remote_code: whether code that comes with a model may run.

    Raises:
        CommandError: there is no such model, or it cannot be built.
    """
    path = Path(text)
    if path.is_dir():
        if not (path / "config.json").is_file():
            below = [str(each.parent) for each in sorted(path.glob("*/config.json"))]
            raise CommandError(
                f"{text} has no config.json; a model's directory holds one, as save_pretrained "
                f"writes it{offered(below[:3])}"
            )
        return _from_config(text, trust_remote_code)
    if path.is_file():
        way_out = f"its directory, {str(path.parent)!r}"
        if path.suffix == ".py":
            way_out = f"a function in it that returns the model, as in '{path.stem}:build'"
        raise CommandError(f"{text} is a file; name {way_out}")
    if ":" in text:
        return _from_factory(text)
    if not _HUB_ID.fullmatch(text):
        raise CommandError(f"no directory {text!r}{_close_name(path)}")
    return _from_config(text, trust_remote_code)


def _from_config(source: str, trust: bool) -> torch.nn.Module:
    """Returns the model that a config describes, on the meta device.

    Raises:
        CommandError: transformers is missing, or fails.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise CommandError(
            f"building {source!r} from its config needs transformers; pip install transformers, "
            "or name a package.module:factory"
        ) from None
    with redirect_stdout(sys.stderr):
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust)
        except Exception as error:
            raise CommandError(_no_config(source, error)) from None
        try:
            with torch.device("meta"):
                model = _instance(transformers, config, source, trust)
        except Exception as error:
            raise CommandError(
                f"{source}: transformers cannot build it from its config: {_one_line(error)}"
            ) from None
    return model


def _instance(transformers: Any, config: Any, source: str, trust: bool) -> torch.nn.Module:  # noqa: ANN401
    """Returns a model of the class that a config names, or else of that for its type."""
    named = next(iter(config.architectures or ()), "")
    remote = getattr(config, "auto_map", None) or {}
    for auto, reference in remote.items() if trust else ():
        if auto.startswith("AutoModel") and str(reference).rpartition(".")[2] == named:
            made = getattr(transformers, auto).from_config(config, trust_remote_code=True)
            assert isinstance(made, torch.nn.Module)
            return made
    cls = getattr(transformers, named, None) if named else None
    if isinstance(cls, type) and issubclass(cls, torch.nn.Module):
        return cls(config)
    made = transformers.AutoModel.from_config(config, trust_remote_code=trust)
    assert isinstance(made, torch.nn.Module)
    if named:
        say(
            "note",
            f"the config of {source} names the class {named}, which transformers does not have; "
            f"this is a {type(made).__name__}",
        )
    return made


def _no_config(source: str, error: Exception) -> str:
    """Returns why transformers has no config for a directory or Hub id."""
    if "trust_remote_code" in str(error):
        return (
            f"{source} comes with code of its own, which does not run unless you say "
            "--trust-remote-code; read it first"
        )
    if Path(source).is_dir():
        return f"{source}: transformers cannot read its config.json: {_one_line(error)}"
    offline = any(
        os.environ.get(name, "").upper() in _TRUE
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )
    if offline and isinstance(error, OSError):
        hub = "it is not in the cache of the Hugging Face Hub, which is offline"
    else:
        hub = f"the Hugging Face Hub gives no config for it: {_one_line(error)}"
    return (
        f"no model {source!r}: it is no directory and no package.module:factory, and {hub}"
        f"{_close_name(Path(source))}"
    )


def _close_name(path: Path) -> str:
    """Returns a clause that offers a factory in a module, or a directory with a similar name."""
    try:
        known = {
            each.name: str(path.parent / each.name)
            for each in path.parent.iterdir()
            if each.is_dir()
        }
    except OSError:
        return ""
    return offered([*_factories(path)] or [known[each] for each in closest(path.name, known)])


def _factories(path: Path) -> Iterator[str]:
    """Yields the factory that a text like `models.build` or `models` means; imports nothing."""
    *above, last = path.stem.split(".")
    folder = Path(*above)
    files = {each.stem: each for each in folder.glob("*.py")}
    files.update((each.parent.name, each) for each in folder.glob("*/__init__.py"))
    for module in closest(last, files):
        names, meant = _names_in(files[module]), path.suffix[1:]
        for name in closest(meant, names) if meant else names[:1]:
            yield f"{'.'.join([*above, module])}:{name}"


def _names_in(file: Path) -> list[str]:
    """Returns the names that a module may have factories or models under, none if it is broken."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    names: list[str] = []
    for each in body:
        if isinstance(each, ast.FunctionDef | ast.ClassDef):
            names.append(each.name)
        elif isinstance(each, ast.Assign):
            names += [target.id for target in each.targets if isinstance(target, ast.Name)]
        elif isinstance(each, ast.ImportFrom) and each.level:
            names += [alias.asname or alias.name for alias in each.names]
    return [name for name in names if not name.startswith("_")]


def _from_factory(text: str) -> torch.nn.Module:
    """Returns what a factory makes; what it prints goes to stderr.

    Raises:
        CommandError: there is no such factory, it fails, or it makes something else.
    """
    module, _, name = text.partition(":")
    if module.endswith(".py") or "/" in module:
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        raise CommandError(f"{text}: name the module as an import does: '{dotted}:{name}'")
    if not all(part.isidentifier() for part in [*module.split("."), *name.split(".")]):
        raise CommandError(f"{text!r} is not of the form package.module:factory")
    with _importable_here(), redirect_stdout(sys.stderr):
        made = _attribute(text, _imported(text, module), name)
        if not isinstance(made, torch.nn.Module):
            made = _called(text, made)
    if not isinstance(made, torch.nn.Module):
        raise CommandError(f"{text} returned {type(made).__name__}; expected a torch.nn.Module")
    return made


@contextmanager
def _importable_here() -> Iterator[None]:
    """Lets modules in the current directory be imported."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _imported(text: str, module: str) -> ModuleType:
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if not missing or not f"{module}.".startswith(f"{missing}."):
            raise CommandError(f"{text}: importing {module} failed: {_told(error)}") from None
    parent, _, leaf = missing.rpartition(".")
    paths = getattr(sys.modules[parent], "__path__", []) if parent else [os.getcwd()]
    close = closest(leaf, [found.name for found in iter_modules(paths)])
    offer = offered(f"{parent}.{each}" if parent else each for each in close)
    raise CommandError(f"{text}: no module {missing!r} can be imported from here{offer}")


def _attribute(text: str, module: ModuleType, name: str) -> object:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if _is_factory(key, value, module)]
            where = module.__name__ if found is module else f"{module.__name__}:{name}"
            offer = did_you_mean(part, known) if known else ""
            raise CommandError(f"{text}: {where} has no {part!r}{offer}")
        found = getattr(found, part)
    return found


def _is_factory(name: str, value: object, module: ModuleType) -> bool:
    """Returns whether something in a module may be what makes a model."""
    if name.startswith("_"):
        return False
    own = getattr(value, "__module__", None) == module.__name__
    return isinstance(value, torch.nn.Module) or (callable(value) and own)


def _called(text: str, factory: object) -> object:
    if not callable(factory):
        raise CommandError(
            f"{text} is {factory!r:.60}; expected a function or class without arguments, or a "
            "torch.nn.Module"
        )
    try:
        parameters = signature(factory).parameters.values()
    except ValueError:
        parameters = {}.values()
    optional = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    if needed:
        raise CommandError(
            f"{text} needs arguments: {', '.join(needed)}; name a function without any that "
            "returns the model"
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise CommandError(f"{text} failed: {_told(error)}") from None


def _told(error: BaseException) -> str:
    """Returns an exception in a user's code with the place, in one line."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({_shown(error.filename)}:{error.lineno})"
    guests = tuple({sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")})
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != __file__
    ]
    own = [frame for frame in frames if not frame.filename.startswith(guests)] or frames
    where = f" ({_shown(own[-1].filename)}:{own[-1].lineno})" if own else ""
    return f"{_one_line(error)}{where}"


def _shown(file: str) -> str:
    """Returns a file's name as seen from the current directory."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
