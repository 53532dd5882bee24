"""Real files of weights out of wheels of six publishers: each is read, or what it is is said.

    pip download --no-deps -d wheels silero-vad==6.2.3 faster-whisper==1.2.1 livekit-plugins-silero==1.8.9 \\
        chgnet==0.4.2 lpips==0.1.4 basic-pitch==0.4.0
    python benchmarks/real_files.py wheels

Writes benchmarks/results/real_files.json and .md. A wheel is unpacked and walked as `import` and `add` walk a folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.discovery import reason_of
from weightsearch.checkpoints.state_dict import read_checkpoint
from weightsearch.checkpoints.walk import Account, walk
from weightsearch.errors import WeightsearchError

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> dict[str, Any]:
    """What a file holds, or why it cannot be read."""
    start = time.perf_counter()
    try:
        checkpoint = read_checkpoint(path)
    except WeightsearchError as error:
        return {"reason": reason_of(error, path)}
    return {
        "parameters": checkpoint.architecture.size,
        "layers": len(checkpoint.architecture.layers),
        "notes": list(checkpoint.notes),
        "seconds": round(time.perf_counter() - start, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder of the downloaded .whl files")
    wheels = sorted(parser.parse_args().wheels.glob("*.whl"))
    files: dict[str, dict[str, Any]] = {}
    passed_over: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for wheel in wheels:
            name = "-".join(wheel.name.split("-")[:2])
            folder = Path(temporary) / name
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            account = Account()
            for path in walk(folder, account):
                files[f"{name}/{path.relative_to(folder)}"] = read(path)
            passed_over[name] = dict(account.others.most_common())
    report = {"files": files, "passed_over": passed_over}
    (RESULTS / "real_files.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["| file | read as | |", "|---|---|---|"]
    for name, told in files.items():
        if "reason" in told:
            lines.append(f"| `{name}` | not read | {told['reason']} |")
        else:
            size = f"{told['layers']} layers, {told['parameters']:,} parameters"
            lines.append(f"| `{name}` | {size} | {'; '.join(told['notes'])} |")
    count = sum("reason" not in told for told in files.values())
    lines += ["", f"{count} of {len(files)} files are read. Passed over:", ""]
    lines += [
        f"- `{name}`: {', '.join(f'{count:,} {what}' for what, count in others.items())}"
        for name, others in passed_over.items()
    ]
    text = "\n".join(lines) + "\n"
    (RESULTS / "real_files.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
