"""Processes of a test's own, for what must not happen to the test run itself."""

import os
import sys
import traceback
from collections.abc import Callable


def in_child(work: Callable[[], object]) -> None:
    """Do something in a forked process; fail where it fails there."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # whatever it was, this process must not go on as the test run
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
