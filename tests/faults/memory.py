"""A program whose memory fails when the test says so: the n-th allocation, and some after it."""

import mmap
import os
import pathlib
import struct
import subprocess

_LIBRARY = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

/* Shared with the test: how many allocations still succeed, how many fail then, how many have. */
static volatile struct { long armed, left, width, failed; } *told;

__attribute__((constructor)) static void begin(void)
{
    int file = open(getenv("FAILING_MEMORY"), O_RDWR | O_CLOEXEC);
    void *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || shared == MAP_FAILED)
        abort();
    told = shared;
}

static int fails(void)
{
    if (!told || !told->armed)
        return 0;
    long left = __atomic_sub_fetch(&told->left, 1, __ATOMIC_SEQ_CST);
    if (left > 0 || left <= -told->width)
        return 0;
    __atomic_add_fetch(&told->failed, 1, __ATOMIC_SEQ_CST);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) { return fails() ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return fails() ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return fails() ? NULL : __libc_realloc(old, size); }
"""
"""Takes the place of the C library's allocator, which Python uses for all with PYTHONMALLOC."""

_TOLD = struct.Struct("4l")


class Memory:
    """The memory of a program that is started with ``environment``, its children's included."""

    def __init__(self, folder: pathlib.Path) -> None:
        source, library, told = (folder / f"memory.{end}" for end in ("c", "so", "told"))
        source.write_text(_LIBRARY)
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        told.write_bytes(bytes(mmap.PAGESIZE))
        with told.open("r+b") as file:
            self._told = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAILING_MEMORY": str(told),
            "PYTHONMALLOC": "malloc",
        }

    def fail(self, first: int, width: int = 1) -> None:
        """Have allocation number ``first`` from now fail, and those after it up to ``width``."""
        self._told[: _TOLD.size] = _TOLD.pack(0, first, width, 0)
        self._told[: _TOLD.size] = _TOLD.pack(1, first, width, 0)

    def recover(self) -> int:
        """Let everything succeed from now on; say how many allocations have failed."""
        _, left, width, failed = _TOLD.unpack(self._told[: _TOLD.size])
        self._told[: _TOLD.size] = _TOLD.pack(0, left, width, failed)
        return int(failed)

    def close(self) -> None:
        self._told.close()
        os.unlink(self.environment["FAILING_MEMORY"])
