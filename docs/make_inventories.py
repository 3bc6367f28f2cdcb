"""Writes the inventories in `docs/inventories`, through which the pages link to other projects.

Each holds only the names these pages use, so that the site builds without a network. To link to
one more name, add it below and run `python docs/make_inventories.py`.
"""

import zlib
from pathlib import Path

CLASS, EXCEPTION = "py:class", "py:exception"

# name -> (role, page); "page#anchor" where a signature's spelling is not the documented one.
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
    "os.PathLike": (CLASS, "library/os.html"),
    "str": (CLASS, "library/stdtypes.html"),
    "tuple": (CLASS, "library/stdtypes.html"),
    "type": (CLASS, "library/functions.html"),
    "Exception": (EXCEPTION, "library/exceptions.html"),
    "OSError": (EXCEPTION, "library/exceptions.html"),
    "TypeError": (EXCEPTION, "library/exceptions.html"),
    "ValueError": (EXCEPTION, "library/exceptions.html"),
}
_MODULE_PAGE = "generated/torch.nn.Module.html"
TORCH = {
    "torch.nn.Module": (CLASS, _MODULE_PAGE),
    "nn.Module": (CLASS, f"{_MODULE_PAGE}#torch.nn.Module"),
    "torch.nn.modules.module.Module": (CLASS, f"{_MODULE_PAGE}#torch.nn.Module"),
    "torch.nn.parallel.distributed.DistributedDataParallel": (
        CLASS,
        "generated/torch.nn.parallel.DistributedDataParallel.html"
        "#torch.nn.parallel.DistributedDataParallel",
    ),
    "torch.utils.data.dataset.TensorDataset": (
        CLASS,
        "data.html#torch.utils.data.TensorDataset",
    ),
    "torch.Size": (CLASS, "size.html"),
    "torch.Tensor": (CLASS, "tensors.html"),
    "torch.optim.lr_scheduler.LRScheduler": (
        CLASS,
        "generated/torch.optim.lr_scheduler.LRScheduler.html",
    ),
    "LRScheduler": (
        CLASS,
        "generated/torch.optim.lr_scheduler.LRScheduler.html#torch.optim.lr_scheduler.LRScheduler",
    ),
    "torch.optim.Optimizer": (CLASS, "optim.html"),
    "torch.optim.optimizer.Optimizer": (CLASS, "optim.html#torch.optim.Optimizer"),
}
_AXES_PAGE = "api/_as_gen/matplotlib.axes.Axes.html"
MATPLOTLIB = {
    "matplotlib.axes.Axes": (CLASS, _AXES_PAGE),
    "Axes": (CLASS, f"{_AXES_PAGE}#matplotlib.axes.Axes"),
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
