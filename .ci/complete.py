"""Completes an environment with links to what its distributions need, and to nothing else.

    python .ci/complete.py ENVIRONMENT [NAME ...]

What a distribution in ENVIRONMENT requires and ENVIRONMENT lacks is linked from the environment
that runs this, and so is what that requires in turn. So an undeclared dependency stays missing, as
after `pip install`, and torch is not unpacked once more. Names are more distributions to link.
"""

import sys
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements(found: Distribution) -> list[Requirement]:
    """Returns what a distribution requires here, without its extras."""
    parsed = (Requirement(line) for line in found.requires or ())
    return [each for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})]


def link(found: Distribution, site: Path) -> None:
    """Links the files and folders of a distribution that lie at the top of its site-packages."""
    tops = {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}
    for top in sorted(tops):
        if not (site / top).exists():
            (site / top).symlink_to(found.locate_file(top))


def main(environment: str, *names: str) -> None:
    """Links until nothing is missing, and prints what was linked."""
    (site,) = Path(environment).glob("lib/python*/site-packages")
    there = {canonicalize_name(found.name): found for found in distributions(path=[str(site)])}
    own = set(there)
    queue = [Requirement(name) for name in names]
    queue += [each for found in there.values() for each in requirements(found)]
    while queue:
        name = canonicalize_name(queue.pop().name)
        if name not in there:
            there[name] = distribution(name)
            link(there[name], site)
            queue += requirements(there[name])
    print("linked:", *sorted(set(there) - own))


if __name__ == "__main__":
    main(*sys.argv[1:])
