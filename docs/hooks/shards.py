"""How shards work together, drawn: files in a store, workers that know nothing of one another, parts, one index."""

from __future__ import annotations

WIDTH, HEIGHT, BOX, LETTER = 675, 190, 30, 7.4  # of the picture, a box and a letter, in pixels
COLUMNS = (10, 160, 350, 515, 612)  # left edges
WORKERS = ("embed --shard 0/n", "embed --shard 1/n", "embed --shard n-1/n")
PARTS = ("part-3f….parquet", "part-a0….parquet", "part-c7….parquet")


def box(label: str, x: float, y: float, title: str) -> str:
    width = width_of(label)
    return (
        f'<g><title>{title}</title><rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="5"/>'
        f'<text x="{x + width / 2:.0f}" y="{y + 20:.0f}">{label}</text></g>'
    )


def line(x: float, y: float, to_x: float, to_y: float) -> str:
    bend = (to_x - x) / 2
    return f'<path d="M{x:.0f} {y:.0f} C{x + bend:.0f} {y:.0f} {to_x - bend:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}"/>'


def width_of(label: str) -> float:
    return len(label) * LETTER + 16


def picture() -> str:
    """An SVG in the page's own colours, from left to right."""
    rows = [20 + 60 * number for number in range(len(WORKERS))]
    middle = rows[1]
    lines, boxes = [], [box("files, s3://…", COLUMNS[0], middle, "read where they lie, each by one worker")]
    for worker, part, y in zip(WORKERS, PARTS, rows, strict=True):
        lines.append(line(COLUMNS[0] + width_of("files, s3://…"), middle + BOX / 2, COLUMNS[1], y + BOX / 2))
        lines.append(line(COLUMNS[1] + width_of(worker), y + BOX / 2, COLUMNS[2], y + BOX / 2))
        lines.append(line(COLUMNS[2] + width_of(part), y + BOX / 2, COLUMNS[3], middle + BOX / 2))
        boxes.append(box(worker, COLUMNS[1], y, "reads, signs and embeds the files whose paths' hashes are its own"))
        boxes.append(box(part, COLUMNS[2], y, "written whole, and never changed"))
    lines.append(line(COLUMNS[3] + width_of("collect"), middle + BOX / 2, COLUMNS[4], middle + BOX / 2))
    boxes.append(box("collect", COLUMNS[3], middle, "puts all parts in order on the disk, and writes rows"))
    boxes.append(box("index", COLUMNS[4], middle, "as if add had read the files"))
    return (
        f'<div class="rooms"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="files, workers that share '
        f'them, the parts that they write, and the index that is collected from these">{"".join(lines)}'
        f"{''.join(boxes)}</svg></div>"
    )
