"""Compare sniproxy with its peers: the same work through each, in turn, several rounds.

    python3 -m bench.compare [--quick] [--only PATTERN] [--candidates PATTERN] [--add NAME=COMMAND]

Results go to bench/results/: results.json with every run, results.md with the medians as tables,
results.svg as a picture. ``--publish`` puts them into docs/ as well. The exit status is 1 where a
figure of ours is missing, and 0 where a peer could not do a work, which is said.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from bench import picture, publish, report
from bench.candidates import (
    FLOOR,
    NGINX_TWO,
    OURS_ALL,
    ROOT,
    Candidate,
    Offer,
    cpus,
    ours,
    peers,
    start,
)
from bench.measure import Bench, Figures, WorkError, build
from bench.works import CONNECTION, WORKS, Work

SPECIAL = (
    *("memory", "idle", "system calls", "PROXY header", "isolated look-ups"),
    *("sharing", "accept with held", "neighbour", "spread"),
)
"""The works that are no load of a fixed size."""


class Run:
    """One run of the comparison: what is wanted of it, and what it has found."""

    def __init__(self, bench: Bench, options: argparse.Namespace) -> None:
        self.bench = bench
        self.rounds: int = options.rounds or (3 if options.quick else 5)
        self.quick: bool = options.quick
        self._only = re.compile(options.only)
        self.results: report.Results = {}
        self.failures: list[str] = []
        """What could not be measured of ours, and what ended the comparison."""
        self.failures_of_peers: list[str] = []

    def wants(self, name: str) -> bool:
        return self._only.search(name) is not None

    def fail(self, how: str, offer: Offer | None = None) -> None:
        """Tell of a failure; that of a peer is a result, and not one of the comparison."""
        peer = offer is not None and offer.configuration is not None  # ours and the floor have none
        (self.failures_of_peers if peer else self.failures).append(how)
        print(f"{'failed, a peer:' if peer else 'FAILED'} {how}", file=sys.stderr)

    def note(
        self, work: str, offer: Offer, measure: Callable[..., Figures], *arguments: object
    ) -> None:
        """Measure something, and keep its figures or how it failed."""
        try:
            figures = measure(*arguments)
        except (WorkError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            self.fail(f"{work}: {error}", offer)
            return
        self.results.setdefault(work, {}).setdefault(offer.name, []).append(figures)

    def less(self, work: Work) -> Work:
        return work.less() if self.quick else work

    def each_alone(self, offers: list[Offer]) -> None:
        """Measure what needs a candidate that has just been started, and no other beside it."""
        bench = self.bench
        for offer in offers if self.wants("memory") else []:
            self.note("memory", offer, bench.memory, offer)
            if offer.name == OURS_ALL:
                self.note("worker", offer, bench.worker, offer)
        for offer in offers if self.wants("idle") else []:
            if not offer.forks:
                self.note("idle", offer, bench.idle, offer)
        for offer in offers if self.wants("system calls") else []:
            if not offer.several:
                self.note("system calls", offer, bench.system_calls, offer)
        for offer in offers if self.wants("PROXY header") else []:
            if offer.ours and not offer.several:
                self.note("PROXY header", offer, bench.header, offer, 5 if self.quick else 1)
        for offer in offers if self.wants("isolated look-ups") else []:
            if offer.ours:
                less = 5 if self.quick else 1
                self.note("isolated look-ups", offer, bench.isolated, offer, less)
        for offer in offers if self.wants("sharing") else []:
            if offer.name in {OURS_ALL, NGINX_TWO}:
                self.note("sharing", offer, bench.sharing, offer, 5 if self.quick else 1)

    def in_turn(self, candidates: list[Candidate]) -> None:
        """Measure all candidates, one after another, in several rounds; the first of a round is
        another one each time."""
        bench = self.bench
        for candidate in list(candidates):
            try:
                bench.warm_up(candidate)
            except WorkError as error:
                self.fail(str(error), candidate.offer)
                candidates.remove(candidate)
        for work in filter(lambda work: self.wants(work.name), WORKS):
            for turn in range(self.rounds):
                for one in rotated(candidates, turn):
                    self.note(work.name, one.offer, bench.work, one, self.less(work))
            print(f"{time.strftime('%H:%M:%S')} {work.name}", file=sys.stderr)
        connection = self.less(CONNECTION)
        alone = [one for one in candidates if not one.offer.several]
        for turn in range(min(self.rounds, 3)):
            for one in rotated(alone, turn) if self.wants("neighbour") else []:
                self.note("neighbour", one.offer, bench.neighbour, one, 10 if self.quick else 1)
            for one in rotated(alone, turn) if self.wants("accept with held") else []:
                if one.name == FLOOR or one.offer.ours:
                    work = "accept with held"
                    self.note(work, one.offer, bench.accept_with_held, one, connection)
            for one in candidates if self.wants("spread") else []:
                if one.name in {OURS_ALL, NGINX_TWO}:
                    workers = 2 if one.name == NGINX_TWO else len(os.sched_getaffinity(0))
                    self.note("spread", one.offer, bench.spread, one, connection, workers)


def rotated(candidates: list[Candidate], turn: int) -> list[Candidate]:
    at = turn % (len(candidates) or 1)
    return candidates[at:] + candidates[:at]


def machine() -> dict[str, str]:
    """Describe where this was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": f"{len(os.sched_getaffinity(0))} × {model}",
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench.compare", description="Compare sniproxy with its peers."
    )
    parser.add_argument("--rounds", type=int, help="rounds of each work (default 5, quick 3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="only works whose name it finds: " + ", ".join([w.name for w in WORKS] + [*SPECIAL]),
    )
    parser.add_argument(
        "--candidates", default="", metavar="PATTERN", help="only candidates whose name it finds"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the source")
    parser.add_argument("--executable", help="our executable (default: dist/sniproxy, if built)")
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more program, which takes the listening socket as standard input",
    )
    parser.add_argument("--output", default=str(ROOT / "bench" / "results"))
    parser.add_argument("--publish", action="store_true", help="put the results into docs/ too")
    return parser.parse_args()


def main() -> int:
    wish = options()
    # So that what was started is ended, and what was measured is shown.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    begin = time.monotonic()
    build()
    built = ROOT / "dist" / "sniproxy"
    executable = wish.executable or (str(built) if built.exists() else None)
    found, missing = peers()
    if missing:
        print(f"not compared, install: {' '.join(missing)}", file=sys.stderr)
    offers = [*ours(wish.python, executable, wish.add), *found]
    offers = [offer for offer in offers if re.search(wish.candidates, offer.name)]
    about = machine()
    with tempfile.TemporaryDirectory(prefix="sniproxy-bench-") as folder:
        bench = Bench(pathlib.Path(folder))
        run = Run(bench, wish)
        candidates: list[Candidate] = []
        try:
            run.each_alone(offers)
            for offer in offers:
                try:
                    candidates.append(start(offer, bench.site))
                except RuntimeError as error:
                    run.fail(str(error), offer)
            run.in_turn(list(candidates))
        except (KeyboardInterrupt, SystemExit) as error:
            run.fail(f"not finished: {error or 'interrupted'}")
        finally:
            for candidate in candidates:
                candidate.stop()
            bench.stop()
    about["rounds"] = f"{run.rounds}{', quick' if run.quick else ''}"
    about["cpus"] = "load and backend on CPU {}, proxy on CPU {}".format(*cpus())
    everything: report.Report = {"machine": about, "results": run.results}
    output = pathlib.Path(wish.output)
    output.mkdir(parents=True, exist_ok=True)
    text = report.markdown(everything)
    (output / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    (output / "results.md").write_text(text)
    (output / "results.svg").write_text(picture.draw(everything))
    if wish.publish:
        publish.publish(everything)
    print(text)
    print(
        f"{time.monotonic() - begin:.0f} s, {len(run.failures)} failures of ours, "
        f"{len(run.failures_of_peers)} of peers; {output}/results.*"
    )
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
