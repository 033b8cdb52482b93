"""What takes the place of the standard library's ``dis`` in the executable.

``inspect`` takes the names of the flags of code objects from it when it is imported, and uses the
rest only to disassemble, which nothing here does. The real one would bring the table of opcodes.
"""

# The names are those of CPython's CO_… (Include/cpython/code.h).
COMPILER_FLAG_NAMES = {
    1: "OPTIMIZED",
    2: "NEWLOCALS",
    4: "VARARGS",
    8: "VARKEYWORDS",
    16: "NESTED",
    32: "GENERATOR",
    64: "NOFREE",
    128: "COROUTINE",
    256: "ITERABLE_COROUTINE",
    512: "ASYNC_GENERATOR",
}
