"""The commands: what each name that this program is called by runs.

One executable serves all names (it is installed under one and linked to the others); a source
install has a script for each. Everything is imported only when it is called for.
"""

import os
import signal
import sys

from sniproxy.tools.output import complain, tell
from sniproxy.version import FORMATS_OPTION, version_line

_USAGE = """\
usage: sniproxy < LISTENING-SOCKET

Forwards each TLS connection, undecrypted, to the Unix socket ./HOST-NAME/tls-socket, by the host
name that the client asks for. The working directory is the hosts directory; standard input (or
LISTEN_FDS) is the listening socket. There are no options but these:

  --help               show this text and exit
  --version            show the version and flavour and exit
  --hand-over-formats  show which connections of another release it can go on with, and exit

Try it:         sniproxy-listen 127.0.0.1:8443 sniproxy
Environment:    SNIPROXY_LOG=error|info|connections, SNIPROXY_LOG_CLIENTS=full|prefix|none,
                SNIPROXY_WORKERS=NUMBER, SNIPROXY_ACCEPT_PROXY=1, SNIPROXY_ISOLATE=1|0
See also:       sniproxy-listen, sniproxy-check, sniproxy-hostname and sniproxy-status, each with
                --help
Manual:         man 8 sniproxy
"""

USAGE_ERROR = 2
FAILURE = 1


def sniproxy() -> int:
    """Run the proxy; give the exit status."""
    if sys.argv[1:]:
        return _answer(sys.argv[1:])
    _end_at_interrupt()
    from sniproxy.process.inherited import NoListeningSocket  # noqa: PLC0415
    from sniproxy.process.service import serve  # noqa: PLC0415

    try:
        return serve(os.environ)
    except NoListeningSocket as error:
        complain(f"sniproxy: {error}")
        return USAGE_ERROR
    except OSError as error:
        complain(f"sniproxy: can't start: {error}")
        return FAILURE


def _answer(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        return 0 if tell(version_line("sniproxy") + "\n") else FAILURE
    if arguments == [FORMATS_OPTION]:
        from sniproxy.dataplane.state import formats_line  # noqa: PLC0415

        return 0 if tell(formats_line() + "\n") else FAILURE
    if arguments in (["--help"], ["-h"]):
        return 0 if tell(_USAGE) else FAILURE
    wrong = arguments[1] if arguments[0] in ("--version", "--help", "-h") else arguments[0]
    complain(f"sniproxy: unknown argument {wrong!a}: there are no options, try sniproxy --help")
    return USAGE_ERROR


def _end_at_interrupt() -> None:
    """Let Ctrl-C end the process without a traceback, until a loop takes the signal over.

    Where it is ignored (a job in the background), it stays so, for the commands that we start too.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def sniproxy_hostname() -> int:
    _end_at_interrupt()
    from sniproxy.tools import hostname  # noqa: PLC0415

    return hostname.main(sys.argv[1:])


def sniproxy_check() -> int:
    _end_at_interrupt()
    from sniproxy.tools import check  # noqa: PLC0415

    return check.main(sys.argv[1:])


def sniproxy_listen() -> int:
    _end_at_interrupt()
    from sniproxy.tools import listen  # noqa: PLC0415

    return listen.main(sys.argv[1:])


def sniproxy_status() -> int:
    _end_at_interrupt()
    from sniproxy.tools import look  # noqa: PLC0415

    return look.main(sys.argv[1:])


_COMMANDS = {
    "sniproxy": sniproxy,
    "sniproxy-hostname": sniproxy_hostname,
    "sniproxy-check": sniproxy_check,
    "sniproxy-listen": sniproxy_listen,
    "sniproxy-status": sniproxy_status,
}


def main() -> int:
    """Run the command that ``sys.argv`` names by the last component of its first word.

    An unknown name runs the proxy: a copy may be called anything.
    """
    name = os.path.basename(sys.argv[0])
    return _COMMANDS.get(name, sniproxy)()
