"""The site builds without a warning and without a network, and every link within it leads somewhere."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import ROOT

if any(find_spec(name) is None for name in ("sphinx", "furo", "myst_nb")):
    pytest.skip("the extra `docs` is not installed", allow_module_level=True)


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.links += [value for name in ("href", "src") if (value := attributes.get(name))]
        self.anchors |= {value for name in ("id", "name") if (value := attributes.get(name))}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # No proxy and no name server is asked: a connection would fail, and with it the build
    program = (
        "import socket, sys\n"
        "def refuse(*_, **__):\n"
        "    raise OSError('the build has asked for the network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from sphinx.cmd.build import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(folder)]
    done = subprocess.run([*command, "-d", str(folder / ".doctrees")], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    broken, checked = [], 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            # Sphinx's list of sources names modules that have none
            if parts.scheme or parts.netloc or link in ("#", "builtins.html"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            checked += 1
            if not target.exists() or (parts.fragment and target in pages and parts.fragment not in pages[target].anchors):
                if target.name != "gradient_cloud.html":  # whose fragment is a choice
                    broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken and checked > 1000


def test_no_page_loads_anything_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        loaded = [link for link in page.links if "//" in link and link.endswith((".js", ".css", ".woff2", ".png", ".svg"))]
        assert not loaded, path.name


def test_every_page_can_be_reached_from_the_first(site: Path, pages: dict[Path, Page]) -> None:
    reached, new = set(), {site / "index.html"}
    while new:
        reached |= new
        links = {(path.parent / unquote(urlsplit(link).path)).resolve() for path in new for link in pages[path].links}
        new = (links & set(pages)) - reached
    aside = {path for path in pages if path.parent.name in ("_modules", "sb3_reinforce") or "_modules" in path.parts}
    assert set(pages) - reached - aside <= {site / "search.html", site / "genindex.html", site / "py-modindex.html"}


def test_formulas_are_drawn_without_a_script(site: Path) -> None:
    algorithm = (site / "algorithm.html").read_text(encoding="utf-8")
    assert algorithm.count("<math") > 40 and not re.search(r'mathjax[^"]*\.js', algorithm, re.IGNORECASE)
    assert "gradient_cloud.html" in algorithm and (site / "_static" / "gradient_cloud.html").is_file()


def test_every_exported_name_is_in_the_reference(site: Path) -> None:
    import sb3_reinforce

    anchors = set().union(*(Page(path).anchors for path in (site / "api").glob("*.html")))
    for name in set(sb3_reinforce.__all__) - {"__version__"}:
        value = getattr(sb3_reinforce, name)
        names = {f"sb3_reinforce.{name}", f"{value.__module__}.{value.__qualname__}", f"sb3_reinforce.policies.{name}"}
        assert names & anchors, name
