"""
Write the notebooks from the scripts beside this file, run them, and keep what they print and draw.

    python docs/notebooks/make.py [NAME ...]

A script is a notebook in the percent format: `# %% [markdown]` begins a text, `# %%` begins code.
"""

import argparse
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SCRIPTS = sorted(path for path in HERE.glob("*.py") if path != Path(__file__))


def read(script: Path) -> nbformat.NotebookNode:
    """
    :param script: A script in the percent format
    :return: The notebook, without outputs
    """
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python"}
    parts = re.split(r"^# %%(.*)\n", script.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if kind.strip() == "[markdown]":
            cell = nbformat.v4.new_markdown_cell(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE))
        else:
            cell = nbformat.v4.new_code_cell(text.strip())
        cell["id"] = f"cell-{number}"
        notebook.cells.append(cell)
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """
    :param notebook: A notebook, which gets its outputs
    :param folder: The folder to run it in, where it may write files
    """
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times at which it ran


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of notebooks (default: all)")
    parser.add_argument("--scratch", type=Path, default=HERE.parent / "_build" / "notebooks", help="folder to run them in")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    for script in SCRIPTS:
        if args.names and script.stem not in args.names:
            continue
        notebook = read(script)
        run(notebook, args.scratch)
        nbformat.write(notebook, script.with_suffix(".ipynb"))
        print(f"Wrote {script.with_suffix('.ipynb')}")


if __name__ == "__main__":
    main()
