"""What the workflows repeat of other files agrees with those, and what a release is gathered by."""

import hashlib
import os
import pathlib
import re
import subprocess
from typing import Any

import pytest
import yaml

from launcher.chain import requirements
from launcher.chain.target import Target
from tests.test_launcher_image import MACHINES
from tests.test_launcher_image import made as made_image

ROOT = pathlib.Path(__file__).parent.parent
WORKFLOWS = ROOT / ".github" / "workflows"

ESSENTIAL = {"apt", "tar"}
"""Packages that each Debian has."""


def words(path: pathlib.Path) -> set[str]:
    return set(path.read_text().split())


def installed_in_ci() -> set[str]:
    return set(re.findall(r"[\w.:-]+", (ROOT / ".ci" / "run").read_text()))


def test_what_the_build_needs_is_installed_for_it() -> None:
    needed = {
        *requirements.TOOLS.values(),
        *requirements.DEBIAN_TOOLS.values(),
        *requirements.FILES.values(),
        *requirements.MODULES.values(),
    }
    needed -= {*ESSENTIAL, requirements.RUST_PACKAGES}
    needed |= set(re.findall(r"\S+-web", requirements.RUST_PACKAGES))
    assert needed <= words(WORKFLOWS / "release.yml")
    # There in brackets, and Rust is not asked for where there is one.
    assert needed <= installed_in_ci()


THERE = Target("aarch64")


@pytest.mark.skipif(not THERE.foreign, reason="not applicable: this is such a machine")
def test_what_builds_for_another_machine_is_installed_for_it() -> None:
    needed = {THERE.package(name) for name in ("gcc", "libc6-dev", "libstd-rust-web-dev")}
    assert needed | {"cargo-web", "qemu-user-static", "rustc-web"} <= installed_in_ci()


def test_each_advisory_that_is_left_out_has_its_reason() -> None:
    left_out = re.findall(r"--ignore (\S+)", (WORKFLOWS / "audit.yml").read_text())
    security = (ROOT / "docs" / "explanation" / "security.md").read_text()
    explained = re.findall(r"^\| (RUSTSEC-\S+)", security, re.MULTILINE)
    assert left_out
    assert left_out == explained


def test_each_list_of_pinned_packages_is_audited() -> None:
    audited = re.findall(r"-r (\S+)", (WORKFLOWS / "audit.yml").read_text())
    lists = [path.relative_to(ROOT).as_posix() for path in (ROOT / "launcher").glob("*.txt")]
    assert sorted(audited) == sorted(lists)


def jobs(name: str) -> dict[str, Any]:
    jobs: dict[str, Any] = yaml.safe_load((WORKFLOWS / name).read_text())["jobs"]
    return jobs


def steps() -> list[tuple[str, dict[str, Any]]]:
    """Give each step of each workflow, and where it is."""
    return [
        (f"{path.name}: {name}", step)
        for path in sorted(WORKFLOWS.glob("*.yml"))
        for name, job in jobs(path.name).items()
        for step in job["steps"]
    ]


def test_an_action_has_one_version_which_can_t_change() -> None:
    pattern = r"uses: (\S+)@([0-9a-f]{40}) # (v[0-9.]+)$"
    texts = [path.read_text() for path in WORKFLOWS.glob("*.yml")]
    used = {found for text in texts for found in re.findall(pattern, text, re.MULTILINE)}
    assert {step["uses"] for _, step in steps() if "uses" in step} == {
        f"{action}@{commit}" for action, commit, _ in used
    }
    assert len({action for action, *_ in used}) == len(used)


def test_what_they_make_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    texts = [step.get("run", "") for _, step in steps()]
    texts.append((ROOT / ".ci" / "run").read_text())
    pattern = re.compile(r"^(?:(?:step|beside) \S+ )?make ([a-z][a-z-]*)", re.MULTILINE)
    called = {word for text in texts for word in pattern.findall(text)}
    assert {"dist", "test-deployment"} < called <= targets


def test_logs_of_what_failed_are_kept() -> None:
    (place,) = re.findall(r"^logs=(\S+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    long = {where for where, step in steps() if step.get("run") in {"bash .ci/run", "make dist"}}
    keeping = {
        where
        for where, step in steps()
        if step.get("if") == "failure()"
        and "/upload-artifact@" in step["uses"]
        and pathlib.Path(place).is_relative_to(step["with"]["path"])
    }
    assert len(long) == 3
    assert long == keeping


def test_a_rehearsal_does_all_but_publish() -> None:
    assert "workflow_dispatch" in yaml.safe_load((WORKFLOWS / "release.yml").read_text())[True]
    release = jobs("release.yml")
    *preparing, last = release
    for name in preparing:
        assert release[name]["permissions"] == {"contents": "read"}
        assert "if" not in release[name]
    assert release[last]["if"] == "github.event_name == 'push'"
    assert release[last]["needs"] == preparing[-1]
    # And whoever prepares is told so: it may write nowhere, and asks for nobody's secrets.
    text = (WORKFLOWS / "release.yml").read_text().partition(f"  {last}:\n")[0]
    assert "token" not in text
    assert "secrets" not in text


def test_updates_are_looked_for_wherever_something_is_pinned() -> None:
    config = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text())
    looked = {
        (entry["package-ecosystem"], folder)
        for entry in config["updates"]
        for folder in entry.get("directories", [entry.get("directory")])
    }
    files = [ROOT / "pyproject.toml", *ROOT.glob("launcher/*.txt")]
    places = {("pip", file.parent) for file in files}
    locks = [*ROOT.glob("launcher/Cargo.lock"), *ROOT.glob("tests/*/*/Cargo.lock")]
    places |= {("cargo", file.parent) for file in locks}
    places.add(("github-actions", ROOT))
    assert {(kind, ROOT / folder.removeprefix("/")) for kind, folder in looked} == places


COMMON = ("sniproxy-1.0.tar.gz", "sniproxy-1.0-py3-none-any.whl")


def sums(folder: pathlib.Path) -> str:
    """Write SHA256SUMS of what is in a folder; give its own digest."""
    command = ["sh", "-c", "rm -f SHA256SUMS && sha256sum -- * > sums && mv sums SHA256SUMS"]
    subprocess.run(command, cwd=folder, check=True)
    return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()


class Release:
    """A folder in which the steps run that gather what two machines have made."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "launcher").symlink_to(ROOT / "launcher")
        self.made = {machine: folder / "made" / machine for machine in MACHINES}
        for machine, made in self.made.items():
            made.mkdir(parents=True)
            made_image(folder, machine).rename(made / f"sniproxy-1.0-{machine}.oci.tar")
            for name in (*COMMON, f"sniproxy_1.0-1_{machine}.deb"):
                (made / name).write_text(name)
        self.digests = {machine: sums(made) for machine, made in self.made.items()}

    def gather(self) -> subprocess.CompletedProcess[str]:
        scripts = [step["run"] for step in jobs("release.yml")["gather"]["steps"] if "run" in step]
        told = {machine.upper(): digest for machine, digest in self.digests.items()}
        output = {"GITHUB_OUTPUT": str(self.folder / "output")}
        for script in scripts:
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", script],
                cwd=self.folder,
                env={**os.environ, **told, **output},
                check=False,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                break
        return done


@pytest.fixture
def release(tmp_path: pathlib.Path) -> Release:
    return Release(tmp_path)


def test_a_release_is_gathered(release: Release) -> None:
    done = release.gather()
    assert done.returncode == 0, done.stderr
    folder = release.folder / "release"
    listed = (folder / "SHA256SUMS").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "SHA256SUMS",
        *sorted(
            [*COMMON, *(f"sniproxy_1.0-1_{one}.deb" for one in MACHINES), "sniproxy-1.0.oci.tar"]
        ),
    ]
    assert listed.count("\n") == 5
    told = (release.folder / "output").read_text()
    assert told == f"sums={hashlib.sha256(listed.encode()).hexdigest()}\n"
    publish = jobs("release.yml")["publish"]["steps"]
    (check,) = [step["run"] for step in publish if "Nobody" in step.get("name", "")]
    environment = {**os.environ, "SUMS": told.strip().removeprefix("sums=")}
    subprocess.run(
        ["bash", "-ec", check], cwd=release.folder, env=environment, check=True, capture_output=True
    )


def test_what_was_changed_on_the_way_is_not_released(release: Release) -> None:
    (release.made["aarch64"] / "sniproxy_1.0-1_aarch64.deb").write_text("another")
    assert "FAILED" in release.gather().stdout
    sums(release.made["aarch64"])
    assert "SHA256SUMS: FAILED" in release.gather().stdout
    assert not (release.folder / "release").exists()


def test_what_differs_between_machines_is_not_released(release: Release) -> None:
    (release.made["aarch64"] / COMMON[0]).write_text("another")
    release.digests["aarch64"] = sums(release.made["aarch64"])
    done = release.gather()
    assert done.returncode
    assert "differ" in done.stdout + done.stderr
    assert not (release.folder / "release").exists()
