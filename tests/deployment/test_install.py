"""`make install`, the archive, and the packages as lintian sees them."""

import email.utils
import gzip
import os
import pathlib
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable

import pytest

import sniproxy
from launcher.chain.components import Component
from launcher.chain.target import Target
from tests.deployment.inside.manual import block
from tests.deployment.machine import REPOSITORY

COMMANDS = ("sniproxy-check", "sniproxy-hostname", "sniproxy-listen", "sniproxy-status")

BUILD = pathlib.Path("chroot", "debian", "build")
CONTROL = REPOSITORY / "chroot" / "debian" / "control"

# Its packages are built once, in the first test that wants one.
pytestmark = pytest.mark.timeout(600)

MANUAL = ("docs/README.md", "docs/how-to/users.md", "docs/reference/status.schema.json")
"""Some of what README leads to, at once or by its table of contents."""

Installer = Callable[..., subprocess.CompletedProcess[str]]
"""Installs to a DESTDIR and a PREFIX or, told so, removes."""


def run(*command: str | pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={name: text for name, text in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
        | {"LC_ALL": "C.UTF-8", "GIT_CONFIG_NOSYSTEM": "1"}
        | environment,
    )


def make(target: str, destination: pathlib.Path, prefix: str) -> subprocess.CompletedProcess[str]:
    return run("make", "-C", REPOSITORY, target, f"DESTDIR={destination}", f"PREFIX={prefix}")


def from_repository(
    destination: pathlib.Path, prefix: str, *, remove: bool = False
) -> subprocess.CompletedProcess[str]:
    return make("uninstall" if remove else "install", destination, prefix)


@pytest.fixture
def from_archive(archive: pathlib.Path, tmp_path: pathlib.Path) -> Installer:
    assert run("tar", "-x", "-f", archive, "-C", tmp_path).returncode == 0
    script = tmp_path / archive.name.removesuffix(".tar.xz") / "chroot" / "install"

    def install(
        destination: pathlib.Path, prefix: str, *, remove: bool = False
    ) -> subprocess.CompletedProcess[str]:
        return run("sh", script, *(["--remove"] if remove else []), str(destination), prefix)

    return install


def files(root: pathlib.Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def pages(root: pathlib.Path) -> dict[pathlib.Path, str]:
    """Read all pages in Markdown, packed or not."""
    found = {path: path.read_text() for path in root.rglob("*.md")}
    packed = root.rglob("*.md.gz")
    return found | {path: gzip.decompress(path.read_bytes()).decode() for path in packed}


def dead_links(root: pathlib.Path) -> list[str]:
    """Give what pages link to or show that is neither there nor on the network."""
    return [
        f"{path}: {target}"
        for path, text in pages(root).items()
        if "licenses" not in path.parts
        for target in re.findall(r"\]\(([^)#\s]+)", text)
        if not target.startswith("https:") and not (path.parent / target).exists()
    ]


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/sni-proxy_1.0~2+b"])
@pytest.mark.parametrize("origin", ["repository", "archive"])
def test_install_and_uninstall(
    request: pytest.FixtureRequest,
    executable: pathlib.Path,
    tmp_path: pathlib.Path,
    origin: str,
    prefix: str,
) -> None:
    install: Installer = from_repository
    if origin == "archive":
        install = request.getfixturevalue("from_archive")
    destination = tmp_path / "a place & more"
    done = install(destination, prefix)
    assert done.returncode == 0, done.stderr
    installed = destination / prefix.lstrip("/")
    assert (installed / "bin" / "sniproxy").read_bytes() == executable.read_bytes()
    for command in COMMANDS:
        line = run(installed / "bin" / command, "--version")
        assert line.stdout.startswith(f"{command} ")
    manual = {path.name for path in (REPOSITORY / "docs" / "man").glob("*.[18]")}
    assert manual == {path.name for path in (installed / "share" / "man").rglob("*.?")}
    assert {"lib/systemd/system/sniproxy.socket", "lib/sysusers.d/sniproxy.conf"} < files(installed)
    manual = {f"share/doc/sniproxy/{path}" for path in MANUAL}
    assert manual <= files(installed)
    assert f"]({MANUAL[0]})" in (installed / "share/doc/sniproxy/README.md").read_text()
    assert dead_links(installed) == []

    (installed / "bin" / "other").touch()
    done = install(destination, prefix, remove=True)
    assert done.returncode == 0, done.stderr
    assert files(installed) == {"bin/other"}


def test_what_readme_says_installs(executable: pathlib.Path, tmp_path: pathlib.Path) -> None:
    commands = f"cd '{REPOSITORY}'\n" + block("README.md", "Deploy it", 2)
    done = run("sh", "-euc", commands, DESTDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "usr/local/bin/sniproxy").read_bytes() == executable.read_bytes()


@pytest.mark.parametrize("prefix", ["/opt/sni proxy", "/opt/a&b", "/opt/a#b", "/opt/50%", "usr"])
@pytest.mark.parametrize("remove", [False, True])
def test_a_prefix_that_a_unit_would_misread_is_refused(
    executable: pathlib.Path, tmp_path: pathlib.Path, prefix: str, remove: bool
) -> None:
    script = REPOSITORY / "chroot" / "install"
    done = run("sh", script, *(["--remove"] if remove else []), str(tmp_path), prefix)
    assert done.returncode == 2
    assert f"PREFIX is '{prefix}': expected an absolute path of A-Z a-z 0-9" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_text_of_another_release_stays(
    from_archive: Installer, archive: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    destination = tmp_path / "destination"
    licences = destination / "usr/share/doc/sniproxy/licenses"
    (licences / "idna-1.0").mkdir(parents=True)
    (licences / "idna-1.0" / "LICENSE").touch()
    assert from_archive(destination, "/usr").returncode == 0
    unpacked = tmp_path / archive.name.removesuffix(".tar.xz")
    assert files(licences) == files(unpacked / "licenses") != set()
    for path in files(licences):
        assert (licences / path).read_bytes() == (unpacked / "licenses" / path).read_bytes()


def test_every_path_follows_the_prefix(executable: pathlib.Path, tmp_path: pathlib.Path) -> None:
    make("install", tmp_path, "/opt/proxy")
    named = [path for path in (tmp_path / "opt/proxy").rglob("*.*") if path.suffix != ".png"]
    texts = [path.read_text() for path in named if path.is_file()]
    texts += [path.read_text() for path in (tmp_path / "opt/proxy").rglob("run")]
    found = {path for text in texts for path in re.findall(r"/\S*/bin/sniproxy\S*", text)}
    assert found == {"/opt/proxy/bin/sniproxy", "/opt/proxy/bin/sniproxy-listen"}


def test_without_an_executable_it_says_what_to_do(tmp_path: pathlib.Path) -> None:
    for name in ("chroot", "docs"):
        shutil.copytree(REPOSITORY / name, tmp_path / "source" / name)
    for script, arguments in (("install", ["/d", "/p"]), ("debian/build", [tmp_path / "out"])):
        done = run("sh", tmp_path / "source" / "chroot" / script, *arguments)
        assert done.returncode == 1
        assert "run `make executable` first" in done.stderr


@pytest.fixture(scope="module")
def foreign(works: list[Component], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Build the package for another machine."""
    target = Target("aarch64")
    executable = REPOSITORY / "dist" / target.machine / "sniproxy"
    if not target.foreign:
        pytest.skip("not applicable: this is such a machine")
    if not executable.exists():
        pytest.skip(f"{executable} is missing: run `make executable TARGET={target.machine}` first")
    folder = tmp_path_factory.mktemp("foreign")
    done = run("sh", REPOSITORY / BUILD, folder, TARGET=target.machine)
    assert done.returncode == 0, done.stdout + done.stderr
    (package,) = folder.glob("*_arm64.deb")
    return package


needs_lintian = pytest.mark.skipif(
    not shutil.which("lintian"), reason="lintian is missing: install lintian"
)


def lint(package: pathlib.Path) -> None:
    done = run("lintian", "--allow-root", "--fail-on=error,warning", package)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_lintian
def test_lintian_finds_nothing_wrong(packages: dict[str, pathlib.Path]) -> None:
    for flavour in ("old", "hashed"):
        lint(packages[flavour])


@needs_lintian
def test_lintian_finds_nothing_wrong_with_a_package_for_another_machine(
    foreign: pathlib.Path,
) -> None:
    lint(foreign)


def test_a_package_for_another_machine_has_the_executable_for_it(
    foreign: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert run("dpkg-deb", "-f", foreign, "Architecture").stdout == "arm64\n"
    assert run("dpkg-deb", "-x", foreign, tmp_path).returncode == 0
    packed = (tmp_path / "usr" / "bin" / "sniproxy").read_bytes()
    assert packed == (REPOSITORY / "dist" / "aarch64" / "sniproxy").read_bytes()


def test_the_same_commit_gives_the_same_package(
    packages: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    assert run("sh", REPOSITORY / BUILD, tmp_path).returncode == 0
    assert (tmp_path / packages["old"].name).read_bytes() == packages["old"].read_bytes()


def fields(package: pathlib.Path) -> dict[str, str]:
    done = run("dpkg-deb", "--field", package)
    return dict(re.findall(r"^(\S+): (.*)$", done.stdout, re.MULTILINE))


def test_each_flavour_is_a_package_and_neither_is_beside_the_other(
    packages: dict[str, pathlib.Path], tmp_path: pathlib.Path
) -> None:
    found = {}
    for flavour, name, other in (("old", "sniproxy", "-hashed"), ("hashed", "sniproxy-hashed", "")):
        package = packages[flavour]
        control = fields(package)
        assert package.name.startswith(f"{name}_")
        assert (control["Package"], control["Conflicts"]) == (name, f"sniproxy{other}")
        assert run("dpkg-deb", "-x", package, tmp_path / name).returncode == 0
        program = tmp_path / name / "usr/bin/sniproxy"
        assert program.read_bytes() == (REPOSITORY / "dist" / name).read_bytes()
        control_files = run("dpkg-deb", "-I", package).stdout
        # Only one of the two takes the place of Debian's package of that name.
        assert (" preinst " in control_files) == (flavour == "old")
        # What is kept for the package alone has its name; all else lies at the same place.
        found[flavour] = {path.replace(name, "sniproxy") for path in files(tmp_path / name)}
    assert found["old"] == found["hashed"]


def test_the_package_says_where_it_is_from(packages: dict[str, pathlib.Path]) -> None:
    """Each of these stands in one place."""
    control = fields(packages["old"])
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert control["Homepage"] == project["urls"]["Repository"]
    maintained = re.findall(r"^Maintainer: (.*)$", (CONTROL).read_text(), re.MULTILINE)
    assert maintained == [control["Maintainer"]]
    assert control["Version"].startswith(f"1:{sniproxy.__version__}-")


def test_the_package_names_what_is_inside_and_has_its_licences(
    packages: dict[str, pathlib.Path], works: list[Component], tmp_path: pathlib.Path
) -> None:
    assert run("dpkg-deb", "-x", packages["old"], tmp_path).returncode == 0
    documents = tmp_path / "usr/share/doc/sniproxy"
    _, _, comment = (documents / "copyright").read_text().partition("\nComment:\n")
    named = re.findall(r"^  (\S.*) (\S+): (.+)$", comment, re.MULTILINE)
    inside = [work for work in works if work.inside]
    assert named == [(work.name, work.version, work.licence) for work in inside]
    texts = {
        f"{work.name.replace(' ', '-')}-{work.version}/{file.name}": file.read_bytes()
        for work in inside
        for file in work.files
    }
    folder = documents / "licenses"
    assert {path: (folder / path).read_bytes() for path in files(folder)} == texts
    # Of idna there is no doubt that it wants that.
    assert any(path.startswith("idna-") and b"Redistribution" in texts[path] for path in texts)
    assert dead_links(documents) == []


@pytest.fixture
def copy(works: list[Component], tmp_path: pathlib.Path) -> pathlib.Path:
    """A tree without git that has all that a package is made of."""
    source = tmp_path / "source"
    for name in ("chroot", "docs", "launcher"):
        shutil.copytree(
            REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, source)
    (source / "build").mkdir()
    for name in ("dist", "build/source", "build/source.json", "build/tools"):
        (source / name).symlink_to(REPOSITORY / name)
    return source


def time_of(source: pathlib.Path) -> int:
    """Give the time that a package's changelog says it is from."""
    changelog = (source / "build/deb/sniproxy/debian/changelog").read_text()
    (date,) = re.findall(r"^ -- .*  (.+)$", changelog, re.MULTILINE)
    return int(email.utils.parsedate_to_datetime(date).timestamp())


needs_debhelper = pytest.mark.skipif(not shutil.which("dh"), reason="there is no debhelper")


@needs_debhelper
def test_without_git_a_package_is_from_the_time_of_all_products(copy: pathlib.Path) -> None:
    done = run("sh", copy / BUILD, copy / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (copy / "launcher" / "build.py").read_text()
    (epoch,) = re.findall(r"^EPOCH = (\S+)$", text, re.MULTILINE)
    assert time_of(copy) == int(epoch)


@needs_debhelper
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to somebody else")
def test_somebody_else_s_folder_gives_the_time_of_the_commit(copy: pathlib.Path) -> None:
    """In a container of CI it is, and git would rather say nothing."""
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@promise.example"]
    moment = "1234567890 +0000"
    for command in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        done = run("git", "-C", copy, *command, GIT_COMMITTER_DATE=moment, HOME="")
        assert done.returncode == 0, done.stderr
    for path in (copy, copy / ".git"):
        os.chown(path, 1001, 1001)
    refused = run("git", "-C", copy, "log", HOME="")
    assert "dubious ownership" in refused.stderr
    done = run("sh", copy / BUILD, copy / "out", HOME="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fatal" not in done.stderr
    assert time_of(copy) == 1234567890


@needs_debhelper
def test_a_time_that_git_can_t_tell_stops_the_package(copy: pathlib.Path) -> None:
    assert run("git", "-C", copy, "init", "-q").returncode == 0
    done = run("sh", copy / BUILD, copy / "out")
    assert done.returncode != 0
    assert "does not have any commits" in done.stderr
    assert list((copy / "out").iterdir()) == []


SKELETON = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var", "var/tmp")


@pytest.fixture
def purge(tmp_path: pathlib.Path) -> Callable[[], None]:
    """Give what does what the package does at a purge, with hosts in ``srv``."""
    hosts = tmp_path / "srv"
    for name in SKELETON:
        (hosts / name).mkdir(parents=True, exist_ok=True)
    text = (REPOSITORY / "chroot/debian/sniproxy.postrm").read_text()
    script = tmp_path / "postrm"
    program = str(tmp_path / "program")
    script.write_text(
        text.replace("/srv/sniproxy", str(hosts)).replace("/usr/bin/sniproxy", program)
    )

    def run_it() -> None:
        done = run("sh", script, "purge")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    return run_it


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only what is root's is removed")


@needs_root
def test_a_purge_leaves_nothing(purge: Callable[[], None], tmp_path: pathlib.Path) -> None:
    for name in ("sniproxy", "usr/sniproxy"):
        (tmp_path / "srv" / name).touch()
        (tmp_path / "srv" / name).chmod(0o555)
    purge()
    assert not (tmp_path / "srv").exists()


@needs_root
def test_a_purge_leaves_to_the_other_flavour_what_it_has(
    purge: Callable[[], None], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "program").touch()
    purge()
    assert {path.name for path in (tmp_path / "srv").iterdir()} == {
        name for name in SKELETON if "/" not in name
    }


@needs_root
def test_a_purge_leaves_alone_what_is_not_ours(
    purge: Callable[[], None], tmp_path: pathlib.Path
) -> None:
    hosts, other = tmp_path / "srv", tmp_path / "other"
    (hosts / "sniproxy").mkdir()
    (hosts / "sniproxy" / "sniproxy").touch(0o555)
    (hosts / "usr" / "sniproxy").touch()
    os.chown(hosts / "usr" / "sniproxy", 1001, 1001)
    (hosts / "usr" / "sniproxy").chmod(0o555)
    os.chown(hosts / "dev", 1001, 1001)
    (other / "tmp").mkdir(parents=True)
    for name in ("var/tmp", "var"):
        (hosts / name).rmdir()
    (hosts / "var").symlink_to(other)
    (hosts / "etc" / "file").touch()
    (hosts / "empty.example").mkdir()
    purge()
    assert {path.name for path in hosts.iterdir()} == {
        "dev",
        "empty.example",
        "etc",
        "sniproxy",
        "usr",
        "var",
    }
    assert (hosts / "sniproxy" / "sniproxy").exists()
    assert (hosts / "usr" / "sniproxy").exists()
    assert (other / "tmp").is_dir()


@pytest.mark.parametrize("target", ["a host", "nothing"])
def test_a_purge_leaves_a_link_of_the_executable_s_name(
    purge: Callable[[], None], tmp_path: pathlib.Path, target: str
) -> None:
    (tmp_path / "srv" / "a host").mkdir()
    (tmp_path / "srv" / "sniproxy").symlink_to(target)
    purge()
    assert (tmp_path / "srv" / "sniproxy").is_symlink()


def test_a_purge_leaves_a_hosts_directory_that_is_elsewhere(
    purge: Callable[[], None], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "srv").rename(tmp_path / "elsewhere")
    (tmp_path / "srv").symlink_to("elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    purge()
    assert (tmp_path / "srv").is_symlink()
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before


@needs_root
def test_a_purge_leaves_a_hosts_directory_that_is_in_use(
    purge: Callable[[], None], tmp_path: pathlib.Path
) -> None:
    """A mount point can't be removed, however empty."""
    hosts, script = tmp_path / "srv", tmp_path / "postrm"
    mounted = f"mount -t tmpfs none '{hosts}' && sh '{script}' purge"
    done = run("unshare", "--mount", "sh", "-c", mounted)
    if "mount: " in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    assert hosts.is_dir()
