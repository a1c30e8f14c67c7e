"""Writes the image's requirements: every package that setup.cfg asks for and all that they need, pinned by hash.

``make lock``. Resolved by uv for the image's Python and platform; wheels only, and no index address in the files.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PYTHON: Final = "3.13"


def main() -> int:
    config = configparser.ConfigParser()
    config.read(HERE.parent.parent / "setup.cfg")
    embedded = config["options.extras_require"]["embedded"]
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    for name, extra in (("requirements.txt", ""), ("requirements-embedded.txt", embedded)):
        wanted = config["options"]["install_requires"] + "\n" + extra
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-annotate"]
        command += ["--no-header", "--no-emit-index-url", "--only-binary", ":all:", "--python-version", PYTHON]
        command += ["--python-platform", "x86_64-unknown-linux-gnu", "-", "-o", str(HERE / name)]
        subprocess.run(command, input=wanted, text=True, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
