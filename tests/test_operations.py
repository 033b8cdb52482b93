"""The manual and README: each block in them is used by a test, or by a person's hand.

What they say to type is typed by the deployment tests. Here, the configurations of other programs
are ones that these accept, and what README repeats of our own files is in them.
"""

import ast
import contextlib
import functools
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest
import trustme
import yaml

from sniproxy.log.log import Clients, Level
from sniproxy.process.settings import settings
from tests.deployment.inside import manual
from tests.deployment.inside.manual import block
from tests.hello import extension, message, records, server_name
from tests.ports import free_port

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NGINX_STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
TIMEOUT = 60

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def need(program: str, package: str, folders: str | None = "/usr/sbin") -> str:
    """Find a daemon where Debian's packages put it: ours has the name of one of them."""
    path = shutil.which(program, path=folders)
    if path is None:
        pytest.skip(f"{program} is missing: install {package}")
    return path


@functools.cache
def used() -> frozenset[tuple[object, ...]]:
    return frozenset(uses())


def uses() -> Iterator[tuple[object, ...]]:
    """Find what blocks the tests take: document, heading and number, where these are literals."""
    for file in (ROOT / "tests").rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if not isinstance(function, ast.FunctionDef) or not runs(function):
                continue
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "block":
                    said = [one.value for one in call.args if isinstance(one, ast.Constant)]
                    yield (*said, 0) if len(said) == 2 else tuple(said)


def runs(function: ast.FunctionDef) -> bool:
    """Tell whether pytest calls a function: a test or a fixture."""
    marks = [ast.unparse(mark) for mark in function.decorator_list]
    return function.name.startswith("test_") or any("pytest.fixture" in mark for mark in marks)


def steps() -> set[str]:
    """Name the commands of the run of everything, without the variables of make, and the targets
    that others call."""
    run = (ROOT / ".ci" / "run").read_text()
    found = re.findall(r"^(?:step|beside) \S+ (.+)$", run, re.MULTILINE)
    called = re.findall(r"^\t\$\(MAKE\) (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    found += [f"make {target}" for line in called for target in line.split()]
    return {re.sub(r" \w+=\S+", "", command) for command in found}


def documents() -> list[str]:
    """Name README and what of the manual says what to do; what explains has figures to type."""
    pages = [
        page for kind in ("start", "how-to", "reference") for page in (DOCS / kind).rglob("*.md")
    ]
    return ["README.md", *sorted(str(page.relative_to(DOCS)) for page in pages)]


@pytest.mark.parametrize("document", documents())
def test_every_block_is_used_by_a_test_or_marked(document: str) -> None:
    blocks = manual.blocks(document)
    assert len({(one.heading, one.number) for one in blocks}) == len(blocks)
    for one in blocks:
        by_run = {line.partition("#")[0].strip() for line in one.text.splitlines()} <= steps()
        by_test = (document, one.heading, one.number) in used()
        where = f"{document}, {one.heading!r}, block {one.number}"
        assert by_test or by_run or one.by_hand, f"{where}: no test uses it:\n{one.text}"
        assert not (by_test and one.by_hand), f"{where} is not done by hand only"


def test_every_block_that_a_test_takes_is_there() -> None:
    """Those that boot machines are not run as often as pages are moved."""
    there = {(page, one.heading, one.number) for page in documents() for one in manual.blocks(page)}
    taken = {use for use in used() if len(use) == 3 and str(use[0]).endswith(".md")}
    assert len(taken) > 50
    assert taken <= there


@pytest.mark.parametrize(
    "text",
    [
        "Do:\n\n    true\n",
        "Do:\n\n\ttrue\n",
        "Do:\n```\ntrue\n```\n",
        "Do:\n\n```sh\ntrue\n```\n",
        "Do:\n\n~~~ sh\ntrue\n~~~\n",
        "- Do:\n\n      true\n",
        "- Do:\n\n  ```console\n  true\n  ```\n",
    ],
)
def test_a_block_is_found_however_it_is_written(
    text: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manual, "PLACES", [tmp_path])
    for words, by_hand in (("Do", False), ("Do (*by hand*)", True)):
        page = f"# A\n\nWords.\n\n{text.replace('Do', words)}\nMore.\n\n## B\n\nWords.\n"
        (tmp_path / "a.md").write_text(page)
        assert manual.blocks("a.md") == [manual.Block("A", 0, "true\n", by_hand)]


def accepted(*command: str | pathlib.Path) -> None:
    done = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout


def nginx_accepts(text: str, kind: str, folder: pathlib.Path) -> None:
    """Let nginx test a configuration, with files and addresses of our own: it binds them."""
    program = need("nginx", "nginx-light")
    pem = folder / "web.pem"
    trustme.CA().issue_cert("web.example").private_key_and_cert_chain_pem.write_to_path(str(pem))
    text = re.sub(r"/etc/letsencrypt/\S+\.pem", str(pem), text)
    numbers = iter(range(100))
    text, listens = re.subn(
        r"\blisten [^ ;]+", lambda _: f"listen unix:{folder}/{next(numbers)}", text
    )
    assert listens
    start = f"pid {folder}/pid; error_log stderr; events {{}}\n"
    if kind == "stream":
        if not NGINX_STREAM.exists():
            pytest.skip("nginx has no stream module: install libnginx-mod-stream")
        text = f"load_module {NGINX_STREAM};\n{start}{text}"
    else:
        paths = "".join(
            f"{name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"{start}http {{ access_log off;\n{paths}{text} }}"
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    accepted(program, "-t", "-q", "-p", folder, "-c", configuration)


def test_haproxy_accepts_what_is_moved_from(tmp_path: pathlib.Path) -> None:
    program = need("haproxy", "haproxy")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(block("how-to/moving/haproxy.md", "From HAProxy", 0))
    accepted(program, "-c", "-q", "-f", configuration)


def test_haproxy_accepts_how_it_is_kept_behind(tmp_path: pathlib.Path) -> None:
    program = need("haproxy", "haproxy")
    (bind,) = re.findall(r"`(bind\s[^`]*)`", (DOCS / "how-to/moving/haproxy.md").read_text())
    server = "server one 192.0.2.1:443"
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(f"listen blog\n mode tcp\n {' '.join(bind.split())}\n {server}\n")
    accepted(program, "-c", "-q", "-f", configuration)


def test_nginx_accepts_what_is_moved_from(tmp_path: pathlib.Path) -> None:
    nginx_accepts(block("how-to/moving/nginx.md", "From nginx"), "stream", tmp_path)


def test_nginx_accepts_the_servers_with_certificates_by_http(tmp_path: pathlib.Path) -> None:
    plain = block("how-to/certificates.md", "Certificates by http-01", 1)
    tls = block("how-to/certificates.md", "Certificates by http-01", 3)
    nginx_accepts(plain + tls, "http", tmp_path)


def test_nginx_accepts_who_lets_prometheus_in(tmp_path: pathlib.Path) -> None:
    nginx_accepts(block("how-to/monitoring.md", "Prometheus", 2), "http", tmp_path)


def connected(process: "subprocess.Popen[bytes]", port: int, log: pathlib.Path) -> socket.socket:
    """Connect to a program as soon as it listens on a port of 127.0.0.1."""
    while process.poll() is None:
        client = socket.socket()
        client.settimeout(TIMEOUT)
        # Nobody may listen yet, and then a socket can be connected with itself.
        if client.connect_ex(("127.0.0.1", port)) == 0 and client.getsockname()[1] != port:
            return client
        client.close()
    pytest.fail(log.read_text())


def test_the_other_sniproxy_accepts_what_is_moved_from(tmp_path: pathlib.Path) -> None:
    """It can't just test a configuration: it is started, on a port of our own."""
    program = need("sniproxy", "sniproxy")
    before = block("how-to/moving/sniproxy.md", "From dlundquist's sniproxy", 0)
    port = free_port()
    text, listens = re.subn(r"listener 443", f"listener 127.0.0.1:{port}", before)
    assert listens == 1
    configuration, log = tmp_path / "sniproxy.conf", tmp_path / "log"
    configuration.write_text(text)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "-f", "-c", configuration], stdout=stream, stderr=stream
        )
    try:
        connected(process, port, log).close()
    finally:
        process.terminate()
        process.wait(TIMEOUT)
    # What it does not understand of a table it passes over.
    parsed = re.findall(r"Parsed (\S+ \S+)", log.read_text())
    (table,) = re.findall(r"^table hosts \{\n(.*?)^\}", before, re.MULTILINE | re.DOTALL)
    assert parsed == [line.strip() for line in table.splitlines()]


def hello(name: str | None, protocol: str | None) -> bytes:
    """Build a hello that asks for a name and offers a protocol by ALPN, or not."""
    extensions = server_name((0, name.encode())) if name else b""
    if protocol:
        offered = bytes([len(protocol)]) + protocol.encode()
        extensions += extension(16, struct.pack("!H", len(offered)) + offered)
    return records(message(extensions))


def test_sslh_sends_hellos_where_the_manual_says(tmp_path: pathlib.Path) -> None:
    """It can't just test a configuration: it is started, with addresses of our own."""
    program = need("sslh-select", "sslh")
    servers = {}

    def ours(place: re.Match[str]) -> str:
        servers[":".join(place.groups())] = server = socket.create_server(("127.0.0.1", 0))
        stack.enter_context(server).settimeout(TIMEOUT)
        return f'host: "127.0.0.1"; port: "{server.getsockname()[1]}"'

    with contextlib.ExitStack() as stack:
        before = block("how-to/moving/sslh.md", "From sslh", 0)
        text = re.sub(r'host: "(.+?)"; port: "(.+?)"', ours, before)
        configuration, log = tmp_path / "sslh.cfg", tmp_path / "log"
        configuration.write_text(text)
        with servers.pop("0.0.0.0:443") as probe:
            port = probe.getsockname()[1]
        stream = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [program, f"-F{configuration}", "-f"], stdout=stream, stderr=stream
        )
        try:
            for name, protocol, place in (
                ("blog.example", None, "127.0.0.1:8443"),
                ("blog.example", "acme-tls/1", "127.0.0.1:8402"),
                ("one.shop.example", None, "192.0.2.7:443"),
                ("another.one.shop.example", "h2", "192.0.2.7:443"),
                ("shop.example", None, "127.0.0.1:8444"),
                (None, None, "127.0.0.1:8444"),
            ):
                sent = hello(name, protocol)
                with connected(process, port, log) as client:
                    client.sendall(sent)
                    with servers[place].accept()[0] as came:
                        assert came.recv(len(sent), socket.MSG_WAITALL) == sent
        finally:
            process.terminate()
            process.wait(TIMEOUT)


def made(commands: str, folder: pathlib.Path) -> pathlib.Path:
    """Make the hosts that the manual says to make, but all ours, and give their directory."""
    hosts = folder / "hosts"
    hosts.mkdir()
    commands, places = re.subn("/srv/sniproxy", str(hosts), commands)
    assert places
    accepted("sh", "-euc", re.sub(r" -[og] \w+", "", commands))
    return hosts


def directories(names: Iterable[str]) -> set[str]:
    """Name the directories that names of a configuration become, where ``*`` is the default."""
    found = {"_default" if name == "*" else re.sub(r"^\*\.", "_.", name) for name in names}
    return found | {"_nosni"}


def those_with(file: str, hosts: pathlib.Path) -> set[str]:
    return {path.parent.name for path in hosts.glob(f"*/{file}")}


def test_each_name_of_snid_is_made_a_host(tmp_path: pathlib.Path) -> None:
    """The program itself is tried in a booted Debian 13, which has it."""
    sockets = re.findall(r"`/run/snid/(.+?)`", (DOCS / "how-to/moving/snid.md").read_text())
    hosts = made(block("how-to/moving/snid.md", "From snid", 1), tmp_path)
    assert set(os.listdir(hosts)) == directories(sockets)
    assert those_with("send-proxy-v2", hosts) == directories(sockets)
    (host,) = re.findall(r"-default-hostname (\S+)", block("how-to/moving/snid.md", "From snid", 0))
    link = hosts / "_nosni" / "tls-socket"
    assert os.path.realpath(link) == os.path.realpath(hosts / host / "tls-socket")


def test_each_name_of_sslh_is_made_a_host(tmp_path: pathlib.Path) -> None:
    before = block("how-to/moving/sslh.md", "From sslh", 0)
    lists = re.findall(r"sni_hostnames: \[(.*?)\]", before)
    hosts = made(block("how-to/moving/sslh.md", "From sslh", 1), tmp_path)
    assert set(os.listdir(hosts)) == directories({"*", *re.findall(r'"(.+?)"', "".join(lists))})


def test_each_name_of_traefik_is_made_a_host(tmp_path: pathlib.Path) -> None:
    """Debian has no Traefik: what it is told is read here, and not by it."""
    tcp = yaml.safe_load(block("how-to/moving/traefik.md", "From Traefik", 0))["tcp"]
    assert all(router["tls"]["passthrough"] for router in tcp["routers"].values())
    services = {
        re.fullmatch(r"HostSNI\(`(.+)`\)", router["rule"])[1]: tcp["services"][router["service"]]
        for router in tcp["routers"].values()
    }
    hosts = made(block("how-to/moving/traefik.md", "From Traefik", 1), tmp_path)
    assert set(os.listdir(hosts)) == directories(services)
    headers = {
        (name, tcp["serversTransports"][transport]["proxyProtocol"]["version"])
        for name, service in services.items()
        if (transport := service["loadBalancer"].get("serversTransport"))
    }
    assert headers == {(name, 2) for name in those_with("send-proxy-v2", hosts)}


def test_each_name_of_caddy_s_module_is_made_a_host(tmp_path: pathlib.Path) -> None:
    """Debian has not the module: what it is told is read here, and not by it."""
    before = block("how-to/moving/caddy.md", "From Caddy's layer4", 0)
    matchers = dict(re.findall(r"^\t\t\t@(\w+) tls(?: sni (\S+))?$", before, re.MULTILINE))
    routes = re.findall(r"^\t\t\troute @(\w+) \{\n(.*?)^\t\t\t\}", before, re.MULTILINE | re.DOTALL)
    assert list(matchers) == [matcher for matcher, _ in routes]
    hosts = made(block("how-to/moving/caddy.md", "From Caddy's layer4", 1), tmp_path)
    assert set(os.listdir(hosts)) == directories(name or "*" for name in matchers.values())
    for option, file in (
        ("proxy_protocol v2", "send-proxy-v2"),
        ("lb_try_duration 10s", "wait-for-backend"),
    ):
        having = {matchers[matcher] for matcher, handlers in routes if option in handlers}
        assert having == those_with(file, hosts)


def test_debian_s_caddy_has_not_the_module(tmp_path: pathlib.Path) -> None:
    program = need("caddy", "caddy", folders=None)
    before = block("how-to/moving/caddy.md", "From Caddy's layer4", 0)
    configuration = tmp_path / "Caddyfile"
    configuration.write_text(before)
    environment = os.environ | {"HOME": str(tmp_path)}
    for command, status, stream, said in (
        (("fmt", configuration), 0, "stdout", before),
        (
            ("adapt", "--adapter", "caddyfile", "--config", configuration),
            1,
            "stderr",
            f"Error: {configuration}:2: unrecognized global option: layer4\n",
        ),
    ):
        done = subprocess.run(
            [program, *command],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT,
        )
        assert (done.returncode, getattr(done, stream)) == (status, said)


def test_each_name_of_envoy_is_made_a_host(tmp_path: pathlib.Path) -> None:
    """Debian has no Envoy: what it is told is read here, and not by it."""
    resources = yaml.safe_load(block("how-to/moving/envoy.md", "From Envoy", 0))["static_resources"]
    (listener,) = resources["listeners"]
    chains = [*listener["filter_chains"], listener["default_filter_chain"]]
    used = [only["typed_config"]["cluster"] for chain in chains for only in chain["filters"]]
    assert used == [cluster["name"] for cluster in resources["clusters"]]
    matches = [chain["filter_chain_match"] for chain in listener["filter_chains"]]
    names = {name for match in matches for name in match["server_names"]}
    hosts = made(block("how-to/moving/envoy.md", "From Envoy", 1), tmp_path)
    assert set(os.listdir(hosts)) == directories(names | {"*"})


def test_the_example_of_the_log_says_what_the_proxy_understands() -> None:
    commands = block("how-to/logs.md", "Read the log", 0)
    (shipped,) = re.findall(r"^cp /usr/share/doc/sniproxy/examples/(\S+) ", commands, re.MULTILINE)
    drop_in = (ROOT / "chroot" / shipped).read_text()
    words = re.findall(r"^Environment=(\w+)=(\S+)$", drop_in, re.MULTILINE)
    found = settings(dict(words))
    assert found.complaints == []
    assert (found.level, found.clients) == (Level.CONNECTIONS, Clients.PREFIX)


LINES = (
    "6 event=refused count=17 no_such_host=17 names=old.example:17",
    "4 event=backend_fault host=blog.example error=failed",
    "6 {} host=blog.example end=closed {}",
    "6 {} host=blog.example end=reset_by_backend {}",
    r'6 {} host="a host=blog.example end=reset_by_client \" x" end=refused:not_a_host_name {}',
    r'6 {} host="a end=open " end=refused:not_a_host_name {}',
    "6 {} host=other.example end=reset_by_backend {}",
    "6 {} host=blog.example end=open {}",
)
"""Priorities and lines, with what all lines of connections have."""


def written(line: str) -> str:
    """Give one of these lines as it is written."""
    return line[2:].format(
        "event=connection client=192.0.2.7:5 local=192.0.2.1:443",
        "hello_ms=1 seconds=1.0 bytes_up=1 bytes_down=1",
    )


def test_journalctl_finds_what_the_manual_says(tmp_path: pathlib.Path) -> None:
    """In a journal of our own."""
    program = need("systemd-journal-remote", "systemd-journal-remote", "/lib/systemd")
    journal, exported = tmp_path / "x.journal", tmp_path / "export"
    entries = [
        f"__REALTIME_TIMESTAMP={1764216000000000 + number}\n__MONOTONIC_TIMESTAMP={number + 1}\n"
        f"_BOOT_ID={'b' * 32}\n_MACHINE_ID={'c' * 32}\n_SYSTEMD_UNIT=sniproxy.service\n"
        f"PRIORITY={line[0]}\nMESSAGE={written(line)}\n"
        for number, line in enumerate(LINES)
    ]
    exported.write_text("\n".join(entries) + "\n")
    accepted(program, "-o", journal, exported)
    commands = block("how-to/logs.md", "journald", 0).replace("journalctl", '"$@"').splitlines()
    for command, numbers in zip(commands, ([1], [0], [3], [7]), strict=True):
        done = subprocess.run(
            ["sh", "-euc", command, "sh", "journalctl", "--no-pager", f"--file={journal}"],
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=TIMEOUT,
        )
        found = [one[one.index("event=") :] for one in done.stdout.splitlines()]
        assert found == [written(LINES[number]) for number in numbers], command


def test_readers_of_logfmt_are_told_fields_that_there_are() -> None:
    """Debian has neither program: what they are told is read here, and not by them."""
    line = written(LINES[2])
    fields = {word.partition("=")[0] for word in line.split()}
    labels = r"by \((\w+)\)|\| (?!logfmt)(?:unwrap )?(\w+)"
    for query in block("how-to/logs.md", "Loki", 0).splitlines():
        assert {one or other for one, other in re.findall(labels, query)} <= fields
        assert query.count("(") == query.count(")")
    vector = yaml.safe_load(block("how-to/logs.md", "Vector", 0))
    (name, source), (_, transform) = (*vector["sources"].items(), *vector["transforms"].items())
    assert source["include_units"] == ["sniproxy"]
    assert transform["inputs"] == [name]
    used = set(re.findall(r"\.(\w+)", transform["source"]))
    assert {"event", "bytes_up"} < used - {"message"} <= fields


def test_fail2ban_takes_what_the_manual_says_to_copy(tmp_path: pathlib.Path) -> None:
    need("fail2ban-client", "fail2ban", folders=None)
    configuration = tmp_path / "fail2ban"
    shutil.copytree("/etc/fail2ban", configuration)
    _, *copies, _ = block("how-to/logs.md", "fail2ban", 0).splitlines()
    for command in copies:
        ours = command.replace("/usr/share/doc/sniproxy/examples", str(ROOT / "chroot"))
        accepted("sh", "-euc", ours.replace("/etc/fail2ban", str(configuration)))
    done = subprocess.run(
        ["fail2ban-client", "-c", configuration, "-d"],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert "['add', 'sniproxy', 'systemd']" in done.stdout


def test_from_nothing_takes_as_many_commands_as_it_says() -> None:
    page, heading = "start/served-name.md", "From nothing to a served name"
    text = "".join(one.text for one in manual.blocks(page) if one.heading == heading)
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line for line in re.split(r"\n|&&|;|\|", text) if line.strip()]
    (said,) = re.findall(r"It takes (\w+) commands", (DOCS / page).read_text())
    assert said == NUMBERS[len(commands)]


def test_readme_shows_the_unit_as_it_is() -> None:
    unit = (ROOT / "chroot" / "sniproxy.service").read_text().splitlines()
    assert set(block("README.md", "Deploy it", 4).splitlines()) <= set(unit)


def exposure(folder: pathlib.Path) -> str:
    """Ask systemd how much the service of a folder may do, of ten."""
    command = (need("systemd-analyze", "systemd", None), "security", "--offline=true", "--no-pager")
    done = subprocess.run(
        [*command, folder / "sniproxy.service"], check=False, capture_output=True, text=True
    )
    found = re.search(r"Overall exposure level for sniproxy.service: (\S+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return found[1]


def test_the_exposure_of_the_service_is_what_is_said(tmp_path: pathlib.Path) -> None:
    for unit in ("sniproxy.service", "sniproxy.socket"):
        shutil.copy(ROOT / "chroot" / unit, tmp_path)
    alone = exposure(tmp_path)
    assert f"(`systemd-analyze security` says {alone})" in (ROOT / "README.md").read_text()
    (tmp_path / "sniproxy.service.d").mkdir()
    shutil.copy(ROOT / "chroot/sniproxy.service.d/users.conf", tmp_path / "sniproxy.service.d")
    said = f"`systemd-analyze security` says {exposure(tmp_path)} then, and not {alone}."
    assert said in (DOCS / "how-to" / "users.md").read_text()


def test_readme_shows_inetd_s_line_and_s6_s_script_as_they_are() -> None:
    assert block("README.md", "Deploy it", 5) in (ROOT / "chroot" / "inetd.conf").read_text()
    script = (ROOT / "chroot" / "s6" / "sniproxy-listen" / "run").read_text()
    first, comment, rest = script.split("\n", 2)
    assert comment.startswith("# ")
    assert block("README.md", "Deploy it", 6) == f"{first}\n{rest}"


def test_what_readme_says_to_run_serves(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    for name in ("sniproxy", "docs", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    address = f"127.0.0.1:{free_port()}"
    commands = block("README.md", "Run it")
    assert commands.count("127.0.0.1:8443") == 1
    # The last command, which is the proxy, takes the shell's place so that it can be stopped.
    commands = commands.replace(
        "&& sniproxy-listen 127.0.0.1:8443", f"&& exec sniproxy-listen {address}"
    )
    path = f"{pathlib.Path(sys.base_prefix) / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["sh", "-euc", commands],
        cwd=source,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told = []
    try:
        for line in process.stdout:
            told.append(line)
            if "event=start" in line:
                break
        else:
            pytest.fail("".join(told))
        assert (source / "hosts" / "blog.example").is_dir()
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port)), TIMEOUT) as client:
            client.sendall(b"no hello")
            assert client.recv(1) == b"\x15"
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT)
