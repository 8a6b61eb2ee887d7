"""The site: built without warnings, complete, without dead links; and in a browser, where there is one."""

import importlib.util
import json
import queue
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("sphinx", "furo", "myst_parser", "sphinx_copybutton", "ziamath", "torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, NEEDED)), reason="the docs extra is not installed"
    ),
]
WIDTHS = (1280, 390)
"""Of a desk and of a phone."""


@pytest.fixture(scope="module", name="site")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to, what it loads, and where in it one can go."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors = {""}
        self.formulas = 0
        self.text = ""
        self._code = 0
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        self.formulas += tag == "math"
        self._code += tag in ("pre", "code", "script", "style")
        if tag == "a" and found.get("href"):
            self.links.add(str(found["href"]))
        source = found.get("href") if tag == "link" else found.get("src")
        if source:
            self.loads.add(source)

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        self.text += "" if self._code else data


@pytest.fixture(scope="module", name="pages")
def read(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_no_link_is_dead_and_no_file_is_missing(pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = pages[target].anchors if target in pages else {unquote(parts.fragment)}
            if not target.exists() or unquote(parts.fragment) not in there:
                dead.append(f"{path.name}: {link}")
    assert not dead


def test_nothing_is_loaded_from_a_network(pages: dict[Path, Page]) -> None:
    assert not [link for page in pages.values() for link in page.loads if urlsplit(link).netloc]


def test_formulas_are_rendered(site: Path, pages: dict[Path, Page]) -> None:
    assert pages[site / "gallery.html"].formulas > 50
    assert pages[site / "reference/torch.html"].formulas > 40
    for path, page in pages.items():
        for raw in ("\\frac", "\\leftarrow", "$`", ":math:", "``"):
            assert raw not in page.text, f"{path}: {raw}"


def test_every_public_name_has_its_place_in_the_reference(site: Path) -> None:
    import numba_lamb as nl
    import numba_lamb.torch as nlt

    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    told = {line.split(" ")[0] for line in zlib.decompress(data).decode().splitlines()}
    modules = {"callbacks", "checkpoint", "schedules", "LARS"}
    public = {f"numba_lamb.{name}" for name in nl.__all__ if name not in modules}
    public |= {f"numba_lamb.torch.{name}" for name in nlt.__all__}
    public |= {f"numba_lamb.schedules.{name}" for name in nl.schedules.__all__}
    public |= {f"numba_lamb.torch.Lamb.{name}" for name in ("step", "from_optimizer", "load_optax_state")}
    assert public <= told


class Handler(SimpleHTTPRequestHandler):
    """The site, with a script on each page that keeps errors, and a page that looks at the others."""

    reports: "queue.Queue[Any]"
    pages: list[str]

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if self.path == "/check":
            self.send(CHECK.replace("PAGES", json.dumps(self.pages)).replace("WIDTHS", json.dumps(WIDTHS)))
        elif path.suffix == ".html" and path.exists():
            self.send(path.read_text("utf-8").replace("<head>", f"<head><script>{KEEP}</script>", 1))
        else:
            super().do_GET()

    def do_POST(self) -> None:
        self.reports.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send("")

    def send(self, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


KEEP = """
window.errors = [];
addEventListener("error", (e) => errors.push(e.message || "not loaded: " + (e.target.src || e.target.href)), true);
console.error = (...words) => errors.push(words.join(" "));
"""
CHECK = """<!doctype html><body><script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
async function open(page, width) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 800px; border: 0`;
  frame.src = page;
  document.body.append(frame);
  await new Promise((done) => (frame.onload = done));
  return frame;
}
async function look(page, width) {
  const frame = await open(page, width);
  const inside = frame.contentDocument;
  await inside.fonts.ready;
  const found = {
    page, width,
    errors: frame.contentWindow.errors,
    wide: inside.documentElement.scrollWidth - width,
    broken: [...inside.images].filter((one) => !one.naturalWidth).map((one) => one.src),
    flat: [...inside.querySelectorAll("article math")].filter((one) => !one.getBoundingClientRect().height).length,
    fonts: [...inside.fonts].filter((one) => one.status == "error").map((one) => one.family),
  };
  frame.remove();
  return found;
}
async function search(words) {
  const frame = await open("search.html?q=" + words, 1280);
  for (let tries = 0; tries < 100; tries++) {
    await wait(100);
    if (frame.contentDocument.body.textContent.includes("Search finished")) break;
  }
  const links = frame.contentDocument.querySelectorAll("#search-results li a");
  return [...links].map((one) => one.getAttribute("href"));
}
(async () => {
  const report = { looks: [], found: [] };
  try {
    for (const width of WIDTHS) for (const page of PAGES) report.looks.push(await look(page, width));
    report.found = await search("trust_clip");
  } catch (error) { report.error = String(error); }
  fetch("/report", { method: "POST", body: JSON.stringify(report) });
})();
</script>"""
FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
)
FLAGS += ("disable-component-update", "disable-sync", "disable-dev-shm-usage", "remote-debugging-port=0")


@pytest.fixture(name="report")
def looked_at(site: Path, tmp_path: Path) -> Iterator[Any]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("Chromium is not installed")
    reports: queue.Queue[Any] = queue.Queue()
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    told = type("Told", (Handler,), {"reports": reports, "pages": names})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(told, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/check"
        process = subprocess.Popen(
            [browser, *(f"--{flag}" for flag in FLAGS), f"--user-data-dir={tmp_path}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield reports.get(timeout=120)
        finally:
            process.terminate()
            process.wait(30)
            server.shutdown()


def test_a_browser_shows_every_page(report: Any) -> None:
    assert "error" not in report, report["error"]
    assert len(report["looks"]) > 50
    assert [
        look for look in report["looks"] if look["errors"] or look["broken"] or look["fonts"] or look["flat"]
    ] == []
    # Nothing scrolls sideways but tables, code and formulas, each in its own box.
    assert [look for look in report["looks"] if look["wide"] > 0] == []
    assert "reference/torch.html" in {link.split("#")[0].split("?")[0] for link in report["found"]}
