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
        if self.editable_mode:
            if wish == "1":
                raise SystemExit("SNIPROXY_HASHED=1: an editable install is always plain")
            return
        # Written either way: what an earlier build of the other flavour left is newer than ours.
        text = pathlib.Path("sniproxy", "flavour.py").read_text()
        if "HASHED: bool = False" not in text:
            raise SystemExit("sniproxy/flavour.py: no flag to set")
        flag = pathlib.Path(self.build_lib, "sniproxy", "flavour.py")
        flag.write_text(text.replace("HASHED: bool = False", f"HASHED: bool = {wish == '1'}"))


setup(cmdclass={"build_py": BuildFlavour})
