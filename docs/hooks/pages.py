"""What MkDocs runs at a build: pages that are made of the code and of committed results, and are committed nowhere.

The pages of docs/ link to files outside it as a reader of the repository would (`../benchmarks/results/search.md`);
those that are part of the site are taken in, and the links follow.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import api  # noqa: E402
import commands  # noqa: E402
import presets  # noqa: E402
import rooms  # noqa: E402
import scripts  # noqa: E402
import shards  # noqa: E402

# Files of the repository that are pages or pictures of the site, by their places there.
TAKEN_IN = {
    "CHANGELOG.md": "changelog.md",
    "index/README.md": "reference-index.md",
    **{
        path.relative_to(ROOT).as_posix(): path.relative_to(ROOT / "benchmarks").as_posix()
        for path in sorted((ROOT / "benchmarks" / "results").rglob("*"))
        if path.suffix in (".md", ".png", ".json", ".svg")
    },
}
GENERATED = {"commands.md": commands.page, "api.md": api.page}
DRAWN = {
    "rooms": rooms.picture,
    "scripts": scripts.table,
    "presets": presets.table,
    "shards": shards.picture,
}  # where a page says <!-- drawn: NAME -->
SHIM = (
    "https://unpkg.com/iframe-worker/shim"  # that Material's offline plugin would fetch; ours lies in docs/javascripts
)


def on_files(files: Any, config: Any) -> Any:
    for source, place in TAKEN_IN.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for place, make in GENERATED.items():
        files.append(File.generated(config, place, content=make()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links from a file's place in the repository become links between pages of the site; drawings are put in."""
    for name, draw in DRAWN.items():
        if (mark := f"<!-- drawn: {name} -->") in markdown:
            markdown = markdown.replace(mark, draw())
    if unknown := re.search(r"^<!-- drawn: .*-->", markdown, re.MULTILINE):
        raise PluginError(f"{page.file.src_uri}: {unknown[0]}: known are {', '.join(DRAWN)}")
    place = page.file.src_uri
    source = next((source for source, taken in TAKEN_IN.items() if taken == place), f"docs/{place}")
    folder = posixpath.dirname(source)

    def follow(match: re.Match[str]) -> str:
        target, anchor = match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in TAKEN_IN:
            return f"{match[1]}{posixpath.relpath(TAKEN_IN[path], posixpath.dirname(place) or '.')}{anchor}"
        if path.startswith("docs/") and source != f"docs/{place}":
            return f"{match[1]}{posixpath.relpath(path[5:], posixpath.dirname(place) or '.')}{anchor}"
        return match[0]

    return re.sub(r"(\]\(|src=\")(?!https?:|#|/)([^)#\s\"]+)(#[^)\s\"]*)?", follow, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    return output.replace(SHIM, get_relative_url("javascripts/iframe-worker.js", page.url))


def on_post_template(output: str, template_name: str, **_: Any) -> str:
    return output.replace(SHIM, "javascripts/iframe-worker.js") if template_name.endswith(".html") else output


def on_post_build(config: Any) -> None:
    """A site that fetches anything from elsewhere is an error."""
    fetched = re.compile(r"<(?:script|img|iframe)[^>]+src=\"?https?:[^\" >]+|<link[^>]+stylesheet[^>]+https?:[^\" >]+")
    for path in Path(config.site_dir).rglob("*.html"):
        if match := fetched.search(path.read_text()):
            raise PluginError(f"{path}: {match[0]} comes from elsewhere")
