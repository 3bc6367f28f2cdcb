"""How the documentation is built: `python -m sphinx -W -n -b html docs docs/_build`."""

from freezekit import __version__ as release

project = "freezekit"
author = "The freezekit authors"
copyright = author

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
default_role = "code"
exclude_patterns = ["_build"]
nitpicky = True
# Names without a place in the reference: the keywords of the verbs, which `Rule` describes in
# prose, a type variable, the nodes of a summary, and classes of engines that publish no inventory.
nitpick_ignore_regex = [
    ("py:class", r"typing_extensions\.Unpack"),
    ("py:class", r"freezekit\._\w+\.\w*Properties"),
    ("py:class", r"freezekit\._\w+\.OptimizerT"),
    ("py:class", r"freezekit\._\w+\.Block"),
    ("py:class", r"(accelerate|lightning|transformers|torch\.distributed\.checkpoint)\..*"),
]
add_module_names = False
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"{project} {release}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_type_aliases = {
    "Cost": "freezekit._cost.Cost",
    "Explanation": "freezekit._explain.Explanation",
    "PlanDiff": "freezekit._explain.PlanDiff",
    "Summary": "freezekit._summary.Summary",
}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# The examples in docstrings run under pytest; only the {doctest} blocks of the pages run here.
doctest_test_doctest_blocks = ""
# Each page runs in a folder of its own, so that it may write files.
doctest_global_setup = """
import os as _os, tempfile as _tempfile
_here, _folder = _os.getcwd(), _tempfile.TemporaryDirectory()
_os.chdir(_folder.name)
"""
doctest_global_cleanup = """
_os.chdir(_here)
_folder.cleanup()
"""

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", "inventories/python.inv"),
    "torch": ("https://docs.pytorch.org/docs/stable", "inventories/torch.inv"),
    "matplotlib": ("https://matplotlib.org/stable", "inventories/matplotlib.inv"),
}
