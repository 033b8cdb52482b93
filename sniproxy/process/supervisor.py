"""The supervisor: the first of several processes. It proxies nothing itself.

It forks the workers, which share the listening sockets, and keeps their number: one that died is
started anew. It passes signals on, and makes one line of what the workers report. Only it listens
to signals, because a service manager may send the same one to every process there is; a worker is
told over its channel. A worker whose channel has ended finishes on its own.

Processes are forked between two runs of the loop and never inside it: a worker goes its own way
without a loop of its parent's on its stack.
"""

import asyncio
import errno
import functools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from socket import socket

from sniproxy.dataplane.connections import REFUSALS_REPORT
from sniproxy.dataplane.listener import PAUSE
from sniproxy.dataplane.sweep import Sweep
from sniproxy.log.log import Log
from sniproxy.process.channel import Channel, Fields
from sniproxy.process.parcel import Parcel
from sniproxy.process.renewal import Renewal
from sniproxy.process.server import CROWDED, DRAIN, FLUSH
from sniproxy.process.signals import SIGNALS, SignalHandlers

READY, PARCEL = "ready", "parcel"
STOP, STOP_NOW, SUMS, LOOK, COUNT, ADOPT, HAND_OVER, HANDED_OVER = (
    "stop",
    "stop_now",
    "totals",
    "look",
    "count",
    "adopt",
    "hand_over",
    "handed_over",
)
"""Messages: the first two from a worker, the others to it. Whatever else a worker sends is an event
for the log, as are its answers to STOP and SUMS, which have the same names."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker that died is started anew; each is twice the last, until one of its
successors has lived for longer than the longest."""

ANSWER = 1.0
"""Seconds that a worker has to answer before the line is written without it."""

LAGGARDS = 2.0
"""Seconds from the first worker that serves until we are ready without the others."""

HANDING_OVER = 2.0
"""Seconds without a parcel after which a worker that is to hand over is killed: the others'
connections wait for it."""

GRACE = 0.3
"""Seconds after ``DRAIN`` for workers to close what is left; then they are killed."""

NOBODY = -1
"""In place of a worker's number."""


@dataclass(slots=True)
class _Worker:
    """A worker process as the supervisor sees it."""

    number: int
    pid: int
    channel: Channel
    started: float
    """Seconds of the monotonic clock, as the next."""
    told_to_look: float = float("-inf")
    open: int = 0
    """Connections, when it was last asked."""
    deadline: asyncio.TimerHandle | None = None
    """When it is killed, while it hands over."""


@dataclass(slots=True)
class _Question:
    """An event that several workers report: what they said so far, who has not said it yet, and
    the end of the time that they have for it."""

    awaited: set[int]
    fields: Fields = field(default_factory=dict)
    deadline: asyncio.TimerHandle | None = None


class Supervisor:
    """Keeps ``count`` workers until it is stopped. ``ready`` is called when all of them serve, with
    the number of connections that they have adopted where there were ``parcels``; ``stopping`` as
    soon as it is stopped: then our copies of the listening sockets are closed."""

    def __init__(
        self,
        count: int,
        log: Log,
        ready: Callable[[int], None],
        stopping: Callable[[], None],
        renewal: Renewal,
        parcels: bool = False,
    ) -> None:
        self._log = log
        self._ready = ready
        self._when_stopping = stopping
        self._renewal = renewal
        self._serving = asyncio.Event()
        self._parcels = parcels
        self.number = NOBODY
        """In a worker, which one it is."""
        self._keep: Callable[[Parcel], None] | None = None
        self.handed_over = False
        """Whether what was open has been given away, and not only ended."""
        self._counted: asyncio.Future[None] | None = None
        # The poll selector: nothing of it is shared with the workers, as an epoll would be.
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())
        self._loop.set_exception_handler(lambda _loop, context: self._fault(context))
        log.on_backlog = Sweep(self._loop.call_later, FLUSH, log.flush).wake
        self._workers: dict[int, _Worker] = {}
        self._pauses = [FIRST_PAUSE] * count
        self._to_fork = list(range(count))
        self._questions: dict[str, _Question] = {READY: _Question(set(range(count)))}
        self._refused: Fields = {}
        self._refusals = Sweep(self._loop.call_later, REFUSALS_REPORT, self._report_refusals)
        self._stopping = False
        self._over = False
        # From here on signals wait for ``run``.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._handlers = SignalHandlers(self._loop)
        for number in (signal.SIGHUP, signal.SIGTERM):
            self._handlers.handle(number, functools.partial(self._stop, number))
        self._handlers.handle(signal.SIGINT, lambda: self._stop_now(signal.SIGINT))
        self._handlers.handle(signal.SIGUSR1, self._ask_for_sums)
        self._handlers.handle(signal.SIGUSR2, lambda: renewal.ask(self._loop, self, log))
        self._handlers.handle(signal.SIGCHLD, self._reap)

    def run(self) -> Channel | None:
        """Supervise. Give None at the end, or in a worker, which has just been made, its channel;
        there signals are ignored and nothing of the supervisor is left but the log."""
        while not self._over:
            if self._to_fork and self._renewal.under_way:
                # A worker would inherit half of it.
                self._loop.call_later(PAUSE, self._loop.stop)
            else:
                while self._to_fork and not self._stopping:
                    channel = self._fork(self._to_fork.pop(0))
                    if channel is not None:
                        return channel
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._loop.run_forever()
            # One more signal must find neither the loop half closed nor a fork half done.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._report_refusals()
        for event in (HANDED_OVER, "connections_closed", "exit"):
            fields = self._questions[event].fields
            if fields:
                self._log.info(event, **fields)
        self._log.flush()
        self._renewal.close(self._loop)
        self._handlers.close()
        self._loop.close()
        return None

    # Workers.

    def _fork(self, number: int) -> Channel | None:
        """Start worker ``number``; give its channel in it."""
        try:
            ours, theirs = Channel.pair()
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                theirs.close()
                raise
        except OSError as error:
            self._log.error("no_worker", worker=number, error=error.strerror or error)
            self._fork_later(number)
            return None
        if pid:
            theirs.close()
            worker = _Worker(number, pid, ours, time.monotonic())
            self._workers[number] = worker
            self._loop.add_reader(ours.fileno(), self._receive, worker)
            return None
        self.number = number
        ours.close()
        for sibling in self._workers.values():
            # With a copy of ours open, the sibling would not see the supervisor go.
            sibling.channel.close()
        self._handlers.close()
        self._loop.close()
        for one in SIGNALS - {signal.SIGCHLD}:
            signal.signal(one, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._log.forsake()
        return theirs

    def _fork_later(self, number: int) -> None:
        pause = self._pauses[number]
        self._pauses[number] = min(2 * pause, LONGEST_PAUSE)
        self._loop.call_later(pause, self._fork_now, number)

    def _fork_now(self, number: int) -> None:
        if not self._stopping:
            self._to_fork.append(number)
            self._loop.stop()

    def _reap(self) -> None:
        """See which workers have ended."""
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._ended(worker, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, code: int) -> None:
        while self._receive(worker):
            pass
        self._loop.remove_reader(worker.channel.fileno())
        worker.channel.close()
        if worker.deadline is not None:
            worker.deadline.cancel()
        del self._workers[worker.number]
        if not self._stopping or code:
            if time.monotonic() - worker.started > LONGEST_PAUSE:
                self._pauses[worker.number] = FIRST_PAUSE
            again = "never" if self._stopping else self._pauses[worker.number]
            self._log.error(
                "worker_died",
                worker=worker.number,
                pid=worker.pid,
                how=_how(code),
                again_in_seconds=again,
            )
        for event in self._questions.keys() - {READY}:
            self._answered(event, worker.number)
        if not self._stopping:
            self._fork_later(worker.number)
        elif not self._workers:
            self._over = True
            self._loop.stop()

    # What workers say.

    def _receive(self, worker: _Worker) -> bool:
        """Take one message; say whether there was one."""
        try:
            message = worker.channel.receive()
        except BlockingIOError:
            return False
        if message is None:
            # It is ending; until it has, there is nothing more to be read.
            self._loop.remove_reader(worker.channel.fileno())
            return False
        event, fields = message
        if worker.deadline is not None:
            self._kill_later(worker, HANDING_OVER if event == PARCEL else DRAIN + GRACE)
        if event == PARCEL:
            self._receive_parcel(fields)
        elif event == "refused":
            _add(self._refused, fields)
            self._refusals.wake()
        elif event == CROWDED:
            self._have_others_look(worker)
        elif event in self._questions:
            if event == COUNT:
                worker.open = int(fields["open"])
            elif event == READY and self._questions[READY].deadline is None:
                self._questions[READY].deadline = self._loop.call_later(
                    LAGGARDS, self._conclude, READY
                )
            _add(self._questions[event].fields, fields)
            self._answered(event, worker.number)
        elif event == READY:
            # It came too late to be asked to give up its copies of parcels.
            _tell(worker, ADOPT)
        return True

    def _have_others_look(self, worker: _Worker) -> None:
        """Have the others accept what ``worker`` can't, not more often than it tries itself."""
        now = time.monotonic()
        for other in self._workers.values():
            if other is not worker and now - other.told_to_look >= PAUSE:
                other.told_to_look = now
                _tell(other, LOOK)

    def _answered(self, event: str, number: int) -> None:
        question = self._questions[event]
        if number in question.awaited:
            question.awaited.remove(number)
            if not question.awaited:
                self._conclude(event)

    def _conclude(self, event: str) -> None:
        """Act on what all workers have said, or on what some have said in time."""
        question = self._questions.pop(event)
        if question.deadline is not None:
            question.deadline.cancel()
        if event == READY and self._parcels:
            # Whoever has room takes what others had none for.
            self._ask(ADOPT, adopted=question.fields["adopted"])
        elif event in (READY, ADOPT):
            self._ready(int(question.fields.get("adopted", 0)))
            self._serving.set()
        elif event == COUNT:
            if self._counted is not None and not self._counted.done():
                self._counted.set_result(None)
        elif event == SUMS:
            # Somebody has just asked for it.
            self._log.reply(event, **question.fields)
        else:
            self._log.info(event, **question.fields)

    def _ask(self, event: str, **fields: int | str) -> None:
        """Send a message to all workers, and conclude when they have answered or time is up."""
        deadline = self._loop.call_later(ANSWER, self._conclude, event)
        self._questions[event] = _Question(set(self._workers), {**fields}, deadline)
        if not self._workers:
            self._conclude(event)
        for worker in self._workers.values():
            _tell(worker, event, **fields)

    def _ask_for_sums(self) -> None:
        if SUMS not in self._questions:
            self._ask(SUMS)

    def _report_refusals(self) -> bool:
        if self._refused:
            self._log.info("refused", **self._refused)
            self._refused = {}
        return False

    # The next process.

    async def counts(self) -> list[int]:
        """Ask each worker for its open connections, once all serve and nothing is in our hands."""
        await self._serving.wait()
        self._counted = self._loop.create_future()
        self._ask(COUNT)
        await self._counted
        return [worker.open for worker in self._workers.values()]

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        """Have the workers give away what is open, as much as their shares."""
        if self._stopping:
            return
        self._keep = keep
        self.handed_over = True
        self._begin_to_stop()
        for worker, share in zip(self._workers.values(), shares, strict=False):
            _tell(worker, HAND_OVER, most=share)
            self._kill_later(worker, HANDING_OVER)

    def _kill_later(self, worker: _Worker, seconds: float) -> None:
        """End a worker that says nothing for so long: the others' connections wait for it."""
        if worker.deadline is not None:
            worker.deadline.cancel()
        worker.deadline = self._loop.call_later(seconds, self._kill, [worker])

    def stop(self, reason: str) -> None:
        """Have all workers accept no more and finish."""
        if self._stopping:
            return
        self._when_stopping()
        self._begin_to_stop()
        self._ask(STOP, reason=reason)
        self._loop.call_later(DRAIN + GRACE, self._kill)

    def _receive_parcel(self, fields: Fields) -> None:
        """Pass on what a worker gives away."""
        try:
            if "descriptor" not in fields:  # it did not fit, MSG_CTRUNC
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            with socket(fileno=int(fields["descriptor"])) as one:
                if self._keep is None:
                    raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
                self._keep(Parcel(one, int(fields["count"])))
        except OSError as error:
            self._log.error(
                "connections_lost", count=fields["count"], error=error.strerror or error
            )

    # The end.

    def _stop(self, number: signal.Signals) -> None:
        """Have all workers accept no more and finish; at the second signal, stop now."""
        if self._stopping:
            self._stop_now(number)
            return
        self.stop(number.name)

    def _stop_now(self, number: signal.Signals) -> None:
        self.handed_over = False
        if not self._stopping:
            self._when_stopping()
            self._begin_to_stop()
        for worker in self._workers.values():
            _tell(worker, STOP_NOW, reason=number.name)
        self._loop.call_later(GRACE, self._kill)

    def _begin_to_stop(self) -> None:
        self._stopping = True
        for event in (HANDED_OVER, "connections_closed", "exit"):
            # Nobody's answer concludes these: ``run`` does, when all have left.
            self._questions[event] = _Question({NOBODY})
        if not self._workers:
            self._over = True
            self._loop.stop()

    def _kill(self, workers: Iterable[_Worker] = ()) -> None:
        """End workers that do not end by themselves, all of them by default."""
        for worker in workers or self._workers.values():
            os.kill(worker.pid, signal.SIGKILL)

    def _fault(self, context: dict[str, object]) -> None:
        """Log what asyncio would print with a traceback."""
        error = context.get("exception")
        self._log.error(
            "unexpected_error", type=type(error).__name__, error=error or context.get("message")
        )


def _tell(worker: _Worker, event: str, **fields: int | str) -> None:
    """Send a message to a worker. One that hangs has not heard hundreds before; of those that come
    then, only the order to stop must not be lost, and the end of the stream is one."""
    try:
        worker.channel.send(event, **fields)
    except BlockingIOError:
        if event in (STOP, STOP_NOW, HAND_OVER):
            worker.channel.end()


def _how(code: int) -> str:
    """Say how a process ended: its status, or if negative the signal, as subprocess has them."""
    if code >= 0:
        return f"status_{code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal_{-code}"  # a real-time signal, most of which have no name


def _add(sum_: Fields, fields: Fields) -> None:
    """Add numbers to those of the same name; a word just stands."""
    for name, value in fields.items():
        have = sum_.get(name, 0)
        sum_[name] = have + value if isinstance(have, int) and isinstance(value, int) else value
