"""The rooms of the code, drawn floor by floor from its imports: a room stands above everything that it imports from."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "weightsearch"
WIDTH, ROW, HEIGHT, LETTER = 600, 62, 30, 7.4  # of the picture, a floor, a box and a letter, in pixels


def imports() -> dict[str, set[str]]:
    """By room, the rooms that its modules import from, anywhere in them and for annotations alone as well."""
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.name.startswith("_")]
    graph: dict[str, set[str]] = {path.relative_to(PACKAGE).with_suffix("").parts[0]: set() for path in modules}
    for path in modules:
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            targets = {name.split(".")[1] for name in names if name.startswith("weightsearch.")}
            graph[room] |= targets & set(graph) - {room}
    return graph


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from the ground up: each on the lowest floor that is above all that it imports from."""
    heights: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...] = ()) -> int:
        if room in above:
            raise ValueError(f"rooms import in a circle: {' -> '.join((*above[above.index(room) :], room))}")
        if room not in heights:
            heights[room] = 1 + max((height(other, (*above, room)) for other in graph[room]), default=-1)
        return heights[room]

    for room in graph:
        height(room)
    return [sorted(room for room in graph if heights[room] == floor) for floor in range(max(heights.values()) + 1)]


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no other imports imply: from a room to those that it reaches in no other way."""

    def reached(room: str) -> set[str]:
        return set().union(*({other} | reached(other) for other in graph[room]))

    return {room: {o for o in others if not any(o in reached(b) for b in others)} for room, others in graph.items()}


def picture() -> str:
    """An SVG in the page's own colours: floors as rows, the highest first, and lines down to imported rooms."""
    graph = imports()
    rows = list(reversed(floors(graph)))
    places: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        widths = [len(room) * LETTER + 20 for room in row]
        gap = (WIDTH - sum(widths)) / (len(row) + 1)
        left = gap
        for room, width in zip(row, widths, strict=True):
            places[room] = (left, number * ROW + 8, width)
            left += width + gap
    lines = []
    for room, others in reduced(graph).items():
        for other in others:
            (x, y, width), (to_x, to_y, to_width) = places[room], places[other]
            start, end = x + width / 2, to_x + to_width / 2
            bend = (to_y - y - HEIGHT) / 2
            lines.append(
                f'<path d="M{start:.0f} {y + HEIGHT} C{start:.0f} {y + HEIGHT + bend:.0f} '
                f'{end:.0f} {to_y - bend:.0f} {end:.0f} {to_y}"/>'
            )
    boxes = [
        f"<g><title>{room} imports from: {', '.join(sorted(graph[room])) or 'nothing of the package'}</title>"
        f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{HEIGHT}" rx="5"/>'
        f'<text x="{x + width / 2:.0f}" y="{y + 20}">{room}</text></g>'
        for room, (x, y, width) in places.items()
    ]
    return (
        f'<div class="rooms"><svg viewBox="0 0 {WIDTH} {len(rows) * ROW - 16}" role="img" '
        f'aria-label="{len(graph)} rooms on {len(rows)} floors">{"".join(lines)}{"".join(boxes)}</svg></div>'
    )
