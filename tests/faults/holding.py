"""A user who keeps the kernel's lock on a directory of theirs, without any privilege.

The directory is read into memory that is mapped from a FUSE file whose reads are never answered:
the reader holds the lock, shared, as long as it waits for its own memory. Somebody who
wants it alone (mkdir) waits behind, and whoever looks something up there waits behind that one.
"""

import ctypes
import mmap
import os
import pathlib
import platform
import signal
import stat
import struct
from collections.abc import Callable

from tests.end_to_end.harness import state, wait_until

_GETDENTS64 = {"x86_64": 217, "aarch64": 61}
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000
_SIZE = 1 << 16
_LONGEST = 45
"""Seconds that a directory is held at most."""


libc = ctypes.CDLL(None, use_errno=True)


def why_impossible(folder: pathlib.Path) -> str:
    """Say why nobody can hold a directory here, or nothing."""
    if os.geteuid() != 0:
        return "only root can be several users"
    try:
        os.close(os.open(node(folder), os.O_RDWR))
    except OSError:
        return "not applicable: the kernel has no FUSE, or lets nobody have it here"
    return ""


def node(folder: pathlib.Path) -> pathlib.Path:
    """Give a device file of FUSE for everybody, as the usual one is."""
    path = folder / "fuse"
    if not path.exists():
        os.mknod(path, stat.S_IFCHR, os.makedev(10, 229))
        path.chmod(0o666)
    return path


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Holder:
    """User ``uid`` holds a directory, which is made unless it exists, until the ``release``."""

    def __init__(self, uid: int, directory: pathlib.Path, folder: pathlib.Path) -> None:
        scratch = folder / f"of-{uid}-{directory.name}"
        scratch.mkdir()
        os.chown(scratch, uid, uid)
        device = node(folder)
        told, tell = os.pipe()

        def attack() -> None:
            try:
                self._attack(uid, directory, scratch, device, tell)
            except Exception as error:
                os.write(tell, f"{error!r}\n".encode())
                raise

        self._pids = [self._fork(attack)]
        os.close(tell)
        with os.fdopen(told) as lines:
            said = lines.readline()
        if not said.startswith("holds "):
            os.waitpid(self._pids[0], 0)
            raise PermissionError(said)
        self._pids += [int(pid) for pid in said.split()[1:]]
        wait_until(lambda: state(self._pids[2]) == "D")

    def _fork(self, work: Callable[[], object]) -> int:
        pid = os.fork()
        if not pid:
            try:
                work()
            finally:
                os._exit(0)
        return pid

    def _attack(
        self,
        uid: int,
        directory: pathlib.Path,
        scratch: pathlib.Path,
        device: pathlib.Path,
        tell: int,
    ) -> None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        if not directory.exists():
            directory.mkdir()
            directory.chmod(0o755)
        # A user namespace of one's own takes a dumpable process.
        libc.prctl(4, 1, 0, 0, 0)
        _call(libc.unshare(_NEW_USER | _NEW_MOUNTS))
        pathlib.Path("/proc/self/setgroups").write_text("deny")
        pathlib.Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        pathlib.Path("/proc/self/gid_map").write_text(f"0 {uid} 1")
        fuse = os.open(device, os.O_RDWR)
        path = scratch / "file"
        path.touch()
        options = f"fd={fuse},rootmode=100000,user_id=0,group_id=0".encode()
        _call(libc.mount(b"x", os.fsencode(path), b"fuse", 2 | 4, options))
        asked, ask = os.pipe()
        daemon = self._fork(lambda: self._serve(fuse, tell, ask))
        # The daemon alone has it: with it, all ends.
        os.close(fuse)
        file = os.open(path, os.O_RDWR)
        memory = mmap.mmap(
            file, _SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        writer = self._fork(lambda: self._wait_behind(directory, asked))
        os.write(tell, f"holds {daemon} {writer}\n".encode())
        number = _GETDENTS64[platform.machine()]
        libc.syscall(number, held, ctypes.c_void_p(address), _SIZE)

    def _serve(self, fuse: int, tell: int, ask: int) -> None:
        """Answer what the kernel asks of the file system, but reads, while there is a reader."""
        os.close(tell)
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)
        # Whatever becomes of the test, nobody on this machine waits for longer.
        signal.alarm(_LONGEST)
        while True:
            request = os.read(fuse, 1 << 18)
            operation, unique = struct.unpack_from("=IQ", request, 4)

            def reply(data: bytes = b"", error: int = 0, unique: int = unique) -> None:
                os.write(fuse, struct.pack("=IiQ", 16 + len(data), -error, unique) + data)

            if operation == 26:  # INIT
                ours = struct.pack("=IIIIHHIIHH8I", 7, 31, 0, 0, 12, 9, 65536, 1, 16, 0, *[0] * 8)
                reply(ours)
            elif operation == 3:  # GETATTR: a large file
                times = struct.pack("=QQQQQQ", 1, _SIZE, 2048, 0, 0, 0)
                rest = struct.pack("=10I", 0, 0, 0, stat.S_IFREG | 0o666, 1, 0, 0, 0, 4096, 0)
                reply(struct.pack("=QII", 1000, 0, 0) + times + rest)
            elif operation == 14:  # OPEN
                reply(struct.pack("=QII", 1, 0, 0))
            elif operation == 15:  # READ: whoever reads the directory has its lock now
                os.write(ask, b"!")
            elif operation not in (2, 36, 42):  # FORGET, INTERRUPT and so on have no answer
                reply(error=38)

    def _wait_behind(self, directory: pathlib.Path, asked: int) -> None:
        libc.prctl(1, signal.SIGKILL, 0, 0, 0)
        os.read(asked, 1)
        os.mkdir(directory / "new")
        os.rmdir(directory / "new")

    def release(self) -> None:
        """Let go. Done again, it changes nothing."""
        if not self._pids:
            return
        reader, daemon, writer = self._pids
        os.kill(daemon, signal.SIGKILL)
        for pid in (reader, writer):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(reader, 0)
        wait_until(lambda: not os.path.exists(f"/proc/{writer}") or state(writer) == "Z")
        self._pids = []
