"""The code of the documentation's pages runs, from the top of a page to its end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT

PAGES = ["many_attempts.md", "masks_and_memory.md", "vector_environments.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(), re.DOTALL)
    assert blocks
    command = [sys.executable, "-W", "error::DeprecationWarning:sb3_reinforce", "-c", "\n".join(blocks)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
