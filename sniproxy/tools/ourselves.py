"""Ourselves: which Unix sockets the sniproxy of this hosts directory listens on.

A host that leads to one of them leads in a circle. It is seen as far as /proc lets who runs this
look; where it doesn't, nothing is known. Forwarders on the way are not seen.
"""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator

_NAME = b"sniproxy"
_SOCKET = re.compile(r"socket:\[(\d+)\]")

# sock_diag(7): struct nlmsghdr with struct unix_diag_req or struct unix_diag_msg; struct rtattr.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_VFS = 2
_UNIX_DIAG_VFS = 1
_ANY_COOKIE = 2**32 - 1
_LISTENS = 10
_REQUEST = struct.Struct("=IHHII BBHIIIII")
_ANSWER = struct.Struct("=IHHII BBBxIII")
_ATTRIBUTE = struct.Struct("=HH")
_FILE = struct.Struct("=II")
_MINOR_BITS = 20


def own_sockets() -> set[tuple[int, int]]:
    """Name the files of these sockets by device and inode, as ``file_identity`` does."""
    here = os.stat(".")
    numbers: set[int] = set()
    with contextlib.suppress(OSError):
        for process in os.listdir("/proc"):
            if process.isdecimal():
                # What ends meanwhile, or is hidden, can't be asked.
                with contextlib.suppress(OSError):
                    if os.path.samestat(os.stat(f"/proc/{process}/cwd"), here):
                        numbers.update(_sockets(process))
    files: set[tuple[int, int]] = set()
    with contextlib.suppress(OSError):  # a kernel that can't be asked, sock_diag(7)
        files.update(_files(numbers))
    return files


def file_identity(device: int, inode: int) -> tuple[int, int]:
    """Name a file in as many bits as the kernel does in its answer."""
    return os.major(device) << _MINOR_BITS | os.minor(device), inode & 0xFFFFFFFF


def _sockets(process: str) -> Iterator[int]:
    """Give the inodes of a process's sockets, if it is sniproxy: called so, or run by Python."""
    with open(f"/proc/{process}/cmdline", "rb") as file:
        words = file.read(4096).split(b"\0")
    if not any(os.path.basename(word) == _NAME for word in words):
        return
    for descriptor in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):
            match = _SOCKET.fullmatch(os.readlink(f"/proc/{process}/fd/{descriptor}"))
            if match:
                yield int(match[1])


def _files(numbers: set[int]) -> Iterator[tuple[int, int]]:
    """Ask the kernel which of these are Unix sockets that listen, and on which file."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as kernel:
        for number in sorted(numbers):
            header = _REQUEST.size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0
            wanted = 1 << _LISTENS, number, _UDIAG_SHOW_VFS, _ANY_COOKIE, _ANY_COOKIE
            kernel.send(_REQUEST.pack(*header, socket.AF_UNIX, 0, 0, *wanted))
            answer = kernel.recv(1 << 16)
            size, kind, _, _, _, _, _, state, *_ = _ANSWER.unpack_from(answer)
            if kind != _SOCK_DIAG_BY_FAMILY or state != _LISTENS:
                continue  # it may be an error: it is no Unix socket
            place = _ANSWER.size
            while place + _ATTRIBUTE.size <= size:
                length, kind = _ATTRIBUTE.unpack_from(answer, place)
                if kind == _UNIX_DIAG_VFS:
                    inode, device = _FILE.unpack_from(answer, place + _ATTRIBUTE.size)
                    yield device, inode
                place += max(length + 3 & ~3, _ATTRIBUTE.size)
