"""What pyproject.toml cannot say: a wheel holds the reference index of index/ as weightsearch/reference_index.

Everything else is in pyproject.toml. An editable install finds index/ where it is.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

INDEX = Path(__file__).parent / "index"


class BuildWithIndex(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            installed = Path(self.build_lib) / "weightsearch" / "reference_index"
            shutil.rmtree(installed, ignore_errors=True)
            shutil.copytree(INDEX, installed, ignore=shutil.ignore_patterns(".*"))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs: list[str] = super().get_outputs(include_bytecode)
        files = [path for path in INDEX.rglob("[!.]*") if path.is_file() and not self.editable_mode]
        return [
            *outputs,
            *(str(Path(self.build_lib, "weightsearch", "reference_index", path.relative_to(INDEX))) for path in files),
        ]


setup(cmdclass={"build_py": BuildWithIndex})
