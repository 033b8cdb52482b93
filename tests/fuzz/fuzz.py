"""Run the coverage-guided fuzzers: ``python -m tests.fuzz.fuzz --seconds 45``.

Each target has its share of the time, begins with its corpus and with inputs that are made here,
and ends with a line of figures. What is found is printed as a line for the corpus, where
``tests/fuzz/test_corpus.py`` has every run of the tests look at it. ``--update`` keeps what reached
something new, minimised, in the corpus.
"""

import argparse
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from tests.fuzz.corpus import CORPUS, load, save, seeds
from tests.fuzz.targets import TARGETS

MAX_LENGTH = {
    "client_hello": 2048,
    "host_name": 300,
    "proxy_header": 300,
    "announcement": 600,
    "handover": 600,
}


def fuzz_here(target: str, arguments: list[str]) -> None:
    """Become libFuzzer, which ends the process."""
    import atheris

    for name in [
        name for name in sys.modules if name.partition(".")[0] in {"sniproxy", "tests", "idna"}
    ]:
        if name != "tests":
            del sys.modules[name]
    # The code under test and idna, whose branches lead to ours; the oracle needs no guidance.
    with atheris.instrument_imports(include=["sniproxy", "idna"]):
        import sniproxy.dataplane.state
        import sniproxy.parser.client_hello
        import sniproxy.parser.proxy_header
        import sniproxy.process.parcel
        import sniproxy.tools.hostname  # noqa: F401

    from tests.fuzz.targets import TARGETS as INSTRUMENTED

    atheris.Setup([target, *arguments], INSTRUMENTED[target])
    atheris.Fuzz()


def libfuzzer(target: str, *arguments: str) -> tuple[int, str]:
    """Run a target in a process of its own; give its status and its words."""
    command = [sys.executable, "-m", "tests.fuzz.fuzz", "--here", target, "--", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, done.stderr + done.stdout


def write(folder: pathlib.Path, inputs: list[bytes]) -> pathlib.Path:
    folder.mkdir()
    for number, data in enumerate(inputs):
        (folder / str(number)).write_bytes(data)
    return folder


def minimal(target: Callable[[bytes], None], inputs: Iterable[bytes]) -> Iterator[bytes]:
    """Choose inputs, the short ones first, that each take a step in the code that none before did:
    from one line of ours to another."""
    seen: set[tuple[str, int, int]] = set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = steps_of(target, data)
        if not steps <= seen:
            seen |= steps
            yield data


def steps_of(target: Callable[[bytes], None], data: bytes) -> set[tuple[str, int, int]]:
    steps: set[tuple[str, int, int]] = set()
    last = 0

    def trace(frame: FrameType, event: str, argument: object) -> object:
        nonlocal last
        name = frame.f_code.co_filename
        if not {"sniproxy", "idna"} & set(pathlib.PurePath(name).parts[-3:]):
            return None
        steps.add((name, last, frame.f_lineno))
        last = frame.f_lineno
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        target(data)
    finally:
        sys.settrace(None)
    return steps


def run(target: str, seconds: int, *, update: bool) -> bool:
    """Fuzz one target; print its figures; say whether all went well."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-fuzz-") as name:
        folder = pathlib.Path(name)
        begin = write(folder / "begin", load(target) + seeds(target))
        found = write(folder / "found", [])
        status, words = libfuzzer(
            target,
            f"-max_total_time={seconds}",
            f"-max_len={MAX_LENGTH[target]}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            "-timeout=10",
            str(found),
            str(begin),
        )
        count = re.findall(r"stat::number_of_executed_units:\s*(\d+)", words)
        coverage = re.findall(r"cov: (\d+) ft: (\d+)", words)
        if status or not count or not coverage:
            print(words[-6000:])
            for kind in ("crash", "timeout", "oom"):
                for one in folder.glob(f"{kind}-*"):
                    print(
                        f"{kind}: add this line to {CORPUS / target}.hex\n{one.read_bytes().hex()}"
                    )
            return False
        edges, features = coverage[-1]
        print(
            f"figures: {target}: {count[0]} inputs in {seconds} s, {edges} edges and {features} "
            f"features covered"
        )
        if update:
            inputs = [one.read_bytes() for where in (begin, found) for one in where.iterdir()]
            save(target, minimal(TARGETS[target], inputs))
        return True


def why_left_out(machine: str, *, installed: bool) -> str | None:
    """Say why nothing can be fuzzed on this machine; None where it can, or must."""
    if installed or machine == "x86_64":
        return None
    return f"left out: there is no wheel of atheris for {machine}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the parser, the host names, the headers.")
    parser.add_argument("--seconds", type=int, default=45, help="of all together")
    parser.add_argument("--update", action="store_true", help="keep what reached something new")
    parser.add_argument("--only", choices=list(TARGETS), help="one target")
    parser.add_argument("--here", choices=list(TARGETS), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz_here(options.here, options.arguments)
    installed = importlib.util.find_spec("atheris") is not None
    if reason := why_left_out(platform.machine(), installed=installed):
        print(f"figures: {reason}")
        return 0
    names = [options.only] if options.only else list(TARGETS)
    share = max(1, options.seconds // len(names))
    # All are run, whatever the first one finds.
    well = [run(name, share, update=options.update) for name in names]
    return 0 if all(well) else 1


if __name__ == "__main__":
    os.chdir(pathlib.Path(__file__).parents[2])
    sys.exit(main())
