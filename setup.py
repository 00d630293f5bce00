"""What pyproject.toml cannot say: which cffi module belongs to the package, and which build this is."""

import os
import sys
import time
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildPy(build_py):
    """Adds `nydusd/_build_info.py`, by which an installed daemon knows its commit (spec cli-config A7)."""

    def run(self) -> None:
        """Build, then write the file next to the copied modules; an editable install asks .git itself."""
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(ROOT))
        from nydusd.version import commit_of_checkout

        seconds = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
        built = time.strftime("%Y-%m-%dT%H:%M:%S.000000000Z", time.gmtime(seconds))
        lines = f"GIT_COMMIT = {commit_of_checkout(ROOT)!r}\nBUILD_TIME = {built!r}\n"
        (Path(self.build_lib) / "nydusd" / "_build_info.py").write_text(lines)


setup(cffi_modules=["native/build_native.py:ffibuilder"], cmdclass={"build_py": BuildPy})
