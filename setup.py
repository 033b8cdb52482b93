"""The one thing that pyproject.toml can't say: ``SNIPROXY_HASHED=1 pip install .``."""

import os
import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildFlavour(build_py):
    """Copy the package, then set the flag of the hashed flavour where it was asked for."""

    def run(self) -> None:
        super().run()
        wish = os.environ.get("SNIPROXY_HASHED", "0")
        if wish not in {"", "0", "1"}:
            raise SystemExit(f"SNIPROXY_HASHED is {wish!r}: expected 1 (hashed) or 0 (plain)")
        if wish == "1" and self.editable_mode:
            raise SystemExit("SNIPROXY_HASHED=1: an editable install is always plain")
        if wish == "1":
            flag = pathlib.Path(self.build_lib, "sniproxy", "flavour.py")
            text = flag.read_text()
            if "HASHED: bool = False" not in text:
                raise SystemExit(f"{flag}: no flag to set")
            flag.write_text(text.replace("HASHED: bool = False", "HASHED: bool = True"))


setup(cmdclass={"build_py": BuildFlavour})
