"""Writes the inventories in `docs/inventories`, through which the pages link to other projects.

Each holds only the names these pages use, so that the site builds without a network. To link to
one more name, add it below and run `python docs/make_inventories.py`.
"""

import zlib
from pathlib import Path

CLASS, EXCEPTION, METHOD = "py:class", "py:exception", "py:method"

# name -> (role, page); a name documented under another one points to "page#anchor"
PYTHON = {
    "bool": (CLASS, "library/functions.html"),
    "collections.abc.Callable": (CLASS, "library/collections.abc.html"),
    "collections.abc.Iterable": (CLASS, "library/collections.abc.html"),
    "collections.abc.Iterator": (CLASS, "library/collections.abc.html"),
    "collections.abc.Mapping": (CLASS, "library/collections.abc.html"),
    "collections.abc.Sequence": (CLASS, "library/collections.abc.html"),
    "dict": (CLASS, "library/stdtypes.html"),
    "float": (CLASS, "library/functions.html"),
    "frozenset": (CLASS, "library/stdtypes.html"),
    "int": (CLASS, "library/functions.html"),
    "list": (CLASS, "library/stdtypes.html"),
    "object": (CLASS, "library/functions.html"),
    "os.PathLike": (CLASS, "library/os.html"),
    "pathlib.Path": (CLASS, "library/pathlib.html"),
    "str": (CLASS, "library/stdtypes.html"),
    "tuple": (CLASS, "library/stdtypes.html"),
    "type": (CLASS, "library/functions.html"),
    "Exception": (EXCEPTION, "library/exceptions.html"),
    "ImportError": (EXCEPTION, "library/exceptions.html"),
    "KeyError": (EXCEPTION, "library/exceptions.html"),
    "OSError": (EXCEPTION, "library/exceptions.html"),
    "TypeError": (EXCEPTION, "library/exceptions.html"),
    "ValueError": (EXCEPTION, "library/exceptions.html"),
}
_MODULE_PAGE = "generated/torch.nn.Module.html"
_PARAMETER_PAGE = "generated/torch.nn.parameter.Parameter.html"
TORCH = {
    "torch.Tensor": (CLASS, "tensors.html"),
    "torch.nn.Module": (CLASS, _MODULE_PAGE),
    "torch.nn.modules.module.Module": (CLASS, f"{_MODULE_PAGE}#torch.nn.Module"),
    "torch.nn.Module.named_parameters": (METHOD, _MODULE_PAGE),
    "torch.nn.Module.train": (METHOD, _MODULE_PAGE),
    "torch.nn.parameter.Parameter": (CLASS, _PARAMETER_PAGE),
    "torch.nn.Parameter": (CLASS, f"{_PARAMETER_PAGE}#torch.nn.parameter.Parameter"),
    "torch.optim.AdamW": (CLASS, "generated/torch.optim.AdamW.html"),
    "torch.optim.Optimizer": (CLASS, "optim.html"),
    "torch.optim.optimizer.Optimizer": (CLASS, "optim.html#torch.optim.Optimizer"),
}
MATPLOTLIB = {
    "matplotlib.axes.Axes": (CLASS, "api/_as_gen/matplotlib.axes.Axes.html"),
    "matplotlib.axes._axes.Axes": (
        CLASS,
        "api/_as_gen/matplotlib.axes.Axes.html#matplotlib.axes.Axes",
    ),
}


def inventory(project: str, names: dict[str, tuple[str, str]]) -> bytes:
    """Returns a version 2 Sphinx inventory of `names`, the same bytes for the same names."""
    header = (
        f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
        "# The remainder of this file is compressed using zlib.\n"
    )
    lines = []
    for name, (role, page) in sorted(names.items()):
        address = page if "#" in page else f"{page}#{name}"
        lines.append(f"{name} {role} 1 {address} -\n")
    return header.encode() + zlib.compress("".join(lines).encode(), 9)


if __name__ == "__main__":
    folder = Path(__file__).parent / "inventories"
    for project, names in (("python", PYTHON), ("torch", TORCH), ("matplotlib", MATPLOTLIB)):
        (folder / f"{project}.inv").write_bytes(inventory(project, names))
