"""The resolvers, as the first process of the proxy has them: it starts their warden, and another
one where that has died, and gives every process that proxies a desk to ask at.

All sockets are made before the first fork and kept by the first process, so that what is asked
meanwhile waits for the next warden.
"""

import contextlib
import os
import resource
import signal
from _socket import socketpair
from socket import AF_UNIX, SOCK_SEQPACKET, SocketType

from sniproxy.dataplane.asking import Desk
from sniproxy.dataplane.poller import Poller
from sniproxy.log.log import Log
from sniproxy.process.board import HELD, NO_PROCESS, Board
from sniproxy.process.signals import SIGNALS
from sniproxy.process.warden import AGAIN, Warden, leaving
from sniproxy.resolver.hosts import Hosts
from sniproxy.resolver.reach import HOSTS_DIRECTORY_HANGS

_MOST_DESCRIPTORS = 1 << 20
"""What a process has open at most, where nobody has raised it (fs.nr_open)."""


class Resolvers:
    """Those for ``workers`` processes, which are numbered from 0."""

    def __init__(self, hosts: Hosts, workers: int) -> None:
        self._hosts = hosts
        self._board = Board()
        # Of each pair the first end is the warden's or a resolver's.
        self._questions = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._bell = socketpair(AF_UNIX, SOCK_SEQPACKET)
        self._answers = [socketpair(AF_UNIX, SOCK_SEQPACKET) for _ in range(workers)]
        self._life: SocketType | None = None
        """Ends with the warden."""
        self._pid = 0

    def desk(self, worker: int) -> Desk:
        """Give a process its own place to ask at."""
        answers = self._answers[worker][1]
        return Desk(worker, self._questions[1], answers, self._bell[1], self._trouble)

    def forsake(self, worker: int) -> None:
        """Close, in a worker that was just forked, what is others'."""
        for number, pair in enumerate(self._answers):
            pair[0].close()
            if number != worker:
                pair[1].close()
        self._questions[0].close()
        self._bell[0].close()

    def _trouble(self) -> str:
        why = self._board.trouble
        if why >= NO_PROCESS:
            return f"no_resolver {os.strerror(why - NO_PROCESS)}"
        return HOSTS_DIRECTORY_HANGS if why == HELD else ""

    def start(self) -> bool:
        """Start the warden; say whether that was possible."""
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._pid = os.fork()
            if not self._pid:
                with leaving():
                    self._become_warden(theirs)
        except OSError as error:
            self._board.trouble = NO_PROCESS + (error.errno or 0)
            ours.close()
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        self._life = ours
        return True

    def attend(self, poller: Poller, log: Log) -> None:
        """Have another warden started whenever there is none."""

        def again() -> float | None:
            if not self.start():
                return AGAIN
            self.attend(poller, log)
            return None

        def ended() -> None:
            if self._life is not None:
                poller.unwatch(self._life.fileno())
                self._bury()
                log.error("warden_died", again_in_seconds=AGAIN)
                poller.timers.later(AGAIN, again)

        if self._life is None:
            poller.timers.later(AGAIN, again)
        else:
            poller.attend(self._life.fileno(), ended)

    def end(self) -> None:
        """End the warden: it never sleeps where that would have to wait. Resolvers leave when the
        last who could ask has gone, or when they come loose."""
        if self._life is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._bury()
        for pair in (self._questions, self._bell, *self._answers):
            for one in pair:
                one.close()

    def _bury(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    def _become_warden(self, life: SocketType) -> None:
        """Go on as the warden, with nothing else of the first process than it needs."""
        for number in SIGNALS - {signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        questions, bell = self._questions[0], self._bell[0]
        answers = [pair[0] for pair in self._answers]
        ours = [one.fileno() for one in (life, questions, bell, *answers)]
        kept = sorted({2, self._hosts.fileno(), *ours})
        # Who waits for the end of our standard error must not wait for one that hangs.
        for fd in (0, 1, 2):
            os.dup2(self._hosts.fileno(), fd)
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], _MOST_DESCRIPTORS)
        for before, behind in zip(kept, [*kept[1:], limit], strict=True):
            if before + 1 < behind:
                os.closerange(before + 1, behind)
        Warden(self._hosts, self._board, questions, answers, bell, life).run()


def reap() -> None:
    """See off processes that a program before us in this process has left: its resolvers, where
    nobody else takes orphans (we are the first process of a container)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
