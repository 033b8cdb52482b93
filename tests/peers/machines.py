"""Machines that a test makes: network namespaces, with cables to the networks that they are in.

A machine is a process that holds its namespace. When that has ended, and what was started there,
the kernel takes away everything that was made in it; and it ends with the test run, however that
ends. ``Machine.entered`` moves one thread into a machine: the sockets that it opens there, and the
programs that it starts, stay in it.
"""

import contextlib
import ctypes
import ipaddress
import os
import pathlib
import signal
import subprocess
from collections.abc import Iterator

from tests.end_to_end.harness import TIMEOUT

CLONE_NEWNET = 0x40000000


class NotPermitted(Exception):  # noqa: N818 - why a test is skipped
    """No namespace can be made here."""


class Machine:
    """A network namespace with a loopback interface, and the programs that run in it."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        script = "ip link set lo up && echo && exec cat"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if not self._holder.stdout.readline():
            said = self._holder.stderr.read().decode().strip()
            self.close()
            raise NotPermitted(f"network namespaces take root and iproute2: {said}")
        self.pid = self._holder.pid
        self._namespace = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread be in the machine."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._namespace)
            yield
        finally:
            _enter(outside)
            os.close(outside)

    def run(self, *command: str, text: str | None = None) -> str:
        """Run a command in the machine, which must succeed; give what it says."""
        with self.entered():
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, input=text, timeout=TIMEOUT
            )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(
        self,
        command: list[str],
        log: pathlib.Path,
        cwd: pathlib.Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> "subprocess.Popen[bytes]":
        """Start a program, which runs until the machine is closed, or somebody ends it."""
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("LISTEN_", "NOTIFY"))}
        with log.open("ab") as stream, self.entered():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd=cwd,
                env=variables | (environment or {}),
            )
        self._running.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._running):
            # Two signals: at once, whoever is still connected.
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
        for process in self._running:
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._holder.kill()
        self._holder.communicate()
        if hasattr(self, "_namespace"):
            os.close(self._namespace)
            del self._namespace


def _enter(namespace: int) -> None:
    system = ctypes.CDLL(None, use_errno=True)
    if system.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Switches:
    """Networks, each a bridge of its name, in a namespace of their own."""

    def __init__(self, *networks: str) -> None:
        self._machine = Machine()
        self._ports = 0
        for network in networks:
            self._machine.run("ip", "link", "add", network, "type", "bridge", "mcast_snooping", "0")
            self._machine.run("ip", "link", "set", network, "up")

    def connect(self, machine: Machine, network: str, *addresses: str) -> None:
        """Lay a cable: the machine gets an interface that is called as the network, with addresses
        of so many bits, IPv4 first."""
        self._ports += 1
        port = f"port{self._ports}"
        # The number of its card follows from the address: others may still know who had it before.
        number = ipaddress.IPv4Interface(addresses[0]).packed
        card = ":".join(f"{byte:02x}" for byte in b"\2\0" + number)
        cable = ["name", network, "address", card, "type", "veth", "peer", "name", port]
        machine.run("ip", "link", "add", *cable, "netns", str(self._machine.pid))
        self._machine.run("ip", "link", "set", port, "master", network, "up")
        machine.run("ip", "link", "set", network, "up")
        for address in addresses:
            # Nobody else has it: it need not be asked for.
            once = ["nodad"] if ":" in address else []
            machine.run("ip", "address", "add", address, "dev", network, *once)

    def close(self) -> None:
        self._machine.close()
