"""The operations manual: the configurations of other programs in it are ones that these accept.

What it says to type is typed by the deployment tests.
"""

import pathlib
import re
import shutil
import socket
import subprocess
import textwrap

import pytest
import trustme

MANUAL = pathlib.Path(__file__).parent.parent / "docs" / "operations.md"
NGINX_STREAM = pathlib.Path("/usr/lib/nginx/modules/ngx_stream_module.so")
TIMEOUT = 60

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def need(program: str, package: str) -> str:
    """Find a daemon where Debian's packages put it: ours has the name of one of them."""
    path = shutil.which(program, path="/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is missing: install {package}")
    return path


def section(heading: str) -> str:
    pattern = rf"^#+ {heading}\n(.*?)(?=^#|\Z)"
    (text,) = re.findall(pattern, MANUAL.read_text(), re.MULTILINE | re.DOTALL)
    return text


def blocks(heading: str) -> list[str]:
    """Give the indented blocks below a heading."""
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section(heading), re.MULTILINE)
    return [textwrap.dedent(block).lstrip("\n") for block in found]


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
    before, _ = blocks("From HAProxy")
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(before)
    accepted(program, "-c", "-q", "-f", configuration)


def test_haproxy_accepts_how_it_is_kept_behind(tmp_path: pathlib.Path) -> None:
    program = need("haproxy", "haproxy")
    (bind,) = re.findall(r"`(bind\s[^`]*)`", section("From HAProxy"))
    server = "server one 192.0.2.1:443"
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text(f"listen blog\n mode tcp\n {' '.join(bind.split())}\n {server}\n")
    accepted(program, "-c", "-q", "-f", configuration)


def test_nginx_accepts_what_is_moved_from(tmp_path: pathlib.Path) -> None:
    (before,) = blocks("From nginx")
    nginx_accepts(before, "stream", tmp_path)


def test_nginx_accepts_the_servers_with_certificates_by_http(tmp_path: pathlib.Path) -> None:
    text = "".join(blocks("Certificates by http-01"))
    plain, tls = re.findall(r"^server \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    nginx_accepts(plain + tls, "http", tmp_path)


def test_the_other_sniproxy_accepts_what_is_moved_from(tmp_path: pathlib.Path) -> None:
    """It can't just test a configuration: it is started, on a port of our own."""
    program = need("sniproxy", "sniproxy")
    before, _ = blocks("From dlundquist's sniproxy")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    text, listens = re.subn(r"listener 443", f"listener 127.0.0.1:{port}", before)
    assert listens == 1
    configuration, log = tmp_path / "sniproxy.conf", tmp_path / "log"
    configuration.write_text(text)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [program, "-f", "-c", configuration], stdout=stream, stderr=stream
        )
    try:
        while process.poll() is None:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
        assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(TIMEOUT)
    # What it does not understand of a table it passes over.
    parsed = re.findall(r"Parsed (\S+ \S+)", log.read_text())
    (table,) = re.findall(r"^table hosts \{\n(.*?)^\}", before, re.MULTILINE | re.DOTALL)
    assert parsed == [line.strip() for line in table.splitlines()]


def test_from_nothing_takes_as_many_commands_as_it_says() -> None:
    heading = "From nothing to a served name"
    text = "".join(blocks(heading))
    text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line for line in re.split(r"\n|&&|;|\|", text) if line.strip()]
    (said,) = re.findall(r"It takes (\w+) commands", section(heading))
    assert said == NUMBERS[len(commands)]
