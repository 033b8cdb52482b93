"""The supervisor: the first of several processes. It proxies nothing itself.

It forks the workers, which share the listening sockets, and keeps their number: one that died is
started anew. It passes signals on, and makes one line of what the workers report. Only it listens
to signals, because a service manager may send the same one to every process there is; a worker is
told over its channel. A worker whose channel has ended finishes on its own.

Processes are forked between two turns of the loop: a worker leaves it at once. What is to be done
is read from what there is (a number without a worker, a question that nobody is awaited for) and
not from an event that says so only once, so that what has failed for want of memory is done later.
"""

import contextlib
import errno
import functools
import os
import signal
import time
from collections.abc import Callable, Sequence
from socket import socket
from typing import TYPE_CHECKING

from sniproxy.dataplane.barred import BARRED
from sniproxy.dataplane.connections import REFUSALS_REPORT
from sniproxy.dataplane.counts import Counts
from sniproxy.dataplane.listener import PAUSE
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.refusals import readable
from sniproxy.dataplane.sweep import Sweep
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.log.log import Log
from sniproxy.log.repeats import PERIOD
from sniproxy.process.channel import Channel
from sniproxy.process.inquiries import PAGE, REFRESH, Inquiries
from sniproxy.process.parcel import Parcel
from sniproxy.process.questions import ANSWER, Question
from sniproxy.process.renewal import Renewal
from sniproxy.process.resolvers import Resolvers
from sniproxy.process.server import BAR, CROWDED, DRAIN, FLUSH, HANGS, PACKING
from sniproxy.process.signals import SIGNALS, SignalHandlers
from sniproxy.process.source import Source, tell_totals
from sniproxy.process.sums import added
from sniproxy.process.worker import NOBODY, Worker
from sniproxy.status.overview import About

if TYPE_CHECKING:
    from sniproxy.process.status import Status

READY, PARCEL = "ready", "parcel"
STOP, STOP_NOW, LOOK = "stop", "stop_now", "look"
COUNT, ADOPT, HAND_OVER, HANDED_OVER = "count", "adopt", "hand_over", "handed_over"
"""Messages: the first two from a worker, the others to it. Whatever else a worker sends is an event
for the log, as are its answers to STOP and HAND_OVER."""

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds before a worker that died is started anew; each is twice the last, until one of its
successors has lived for longer than the longest."""

LAGGARDS = 2.0
"""Seconds from the first worker that serves until we are ready without the others."""

HANDING_OVER = 2.0
"""Seconds without a word after which a worker that is to hand over is killed: the others'
connections wait for it."""

UNDYING = 1.0
"""Seconds after SIGKILL for a worker to be gone."""

GRACE = 0.3
"""Seconds after ``DRAIN`` for workers to close what is left; then they are killed."""

_REFUSED = "refused"
_LAST_WORDS = (_REFUSED, HANDED_OVER, "connections_closed", "exit")
"""Events that no answer concludes: what is left of them is told when all have left."""

_LOOK_AT_LAGGARDS = 0.1


class Supervisor:
    """Keeps ``count`` workers until it is stopped. ``ready`` is called when all of them serve, with
    the number of connections that they have adopted where there were ``parcels``, and whether all
    have said it; ``stopping`` as soon as it is stopped: then our copies of the listening sockets
    are closed."""

    def __init__(
        self,
        count: int,
        log: Log,
        ready: Callable[[int, bool], None],
        stopping: Callable[[], None],
        renewal: Renewal,
        parts: Sequence[Counts],
        about: About,
        *,
        parcels: bool = False,
    ) -> None:
        self._log = log
        self._ready = ready
        self._when_stopping = stopping
        self._serving = False
        self._all_serve = True
        self._to_renew = False
        self._parcels = parcels
        self._keep: Callable[[Parcel], None] | None = None
        self._counted: Callable[[list[int]], object] = lambda _counts: None
        self.handed_over = False
        self.number = self.part = NOBODY
        """In a worker, which one it is, and where it counts."""
        self._status: Status | None = None
        self._poller = Poller(self._fault)
        self._later = self._poller.timers.later
        log.on_backlog = Sweep(self._later, FLUSH, log.flush).wake
        log.on_repeats = Sweep(self._later, PERIOD, log.report_repeats).wake
        self._workers: dict[int, Worker] = {}
        self.inquiries = Inquiries(about, parts, self._workers, self._later, lambda: log.lost)
        self._pauses = [FIRST_PAUSE] * count
        self._to_fork = list(range(count))
        self._questions = {event: Question({NOBODY}) for event in _LAST_WORDS}
        self._questions[READY] = Question({*range(count)})
        self._refusals = Sweep(self._later, REFUSALS_REPORT, self._report_refusals)
        self._stopping = False
        self._reason = ""
        """Why it is stopping, as long as workers are still to be told."""
        self._of_a_worker: Channel | None = None
        self._renewal = renewal
        self._barred: dict[str, float] = {}
        """Hosts whose owners are refused, and since when."""
        self._strays = False
        """Whether there may be processes whose number memory failed for when they were forked."""
        # From here on signals wait for ``run``.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._handlers = SignalHandlers(self._poller)
        self._handlers.handle_stops(self, in_place=not renewal.store.managed)
        self._handlers.handle(signal.SIGUSR1, tell_totals(self.inquiries, log))
        self._handlers.handle(signal.SIGUSR2, self._renew)
        self._handlers.handle(signal.SIGCHLD, self._reap)

    def attend(self, resolvers: Resolvers) -> None:
        """See to it that there is a warden."""
        resolvers.attend(self._poller, self._log)

    def show(self, serve: "Callable[[Source, Poller], Status | None]") -> None:
        """Have status sockets served, if there are any."""
        self._status = serve(self.inquiries, self._poller)

    def run(self) -> Channel | None:
        """Supervise. Give None at the end, or in a worker, which has just been made, its channel;
        there signals are ignored and nothing of the supervisor is left but the log."""
        self._poller.run(self._turned)
        if self._of_a_worker is not None:
            return self._of_a_worker
        # What can't be given back for want of memory, the kernel takes: this is the end. (To make a
        # contextlib.suppress takes some.)
        try:
            self._handlers.end()
            self._log.report_repeats()
            for event in _LAST_WORDS:
                fields = self._questions[event].fields
                if fields:
                    self._log.info(event, **readable(fields))
            self._log.flush()
            self._poller.close()
        except NO_MEMORY:
            pass
        return None

    def _turned(self) -> bool:
        """Do what is to be done between two turns; say whether that was the last."""
        # Who has adopted nothing yet would leave at once.
        if self._reason and not (self._parcels and self._workers):
            self._when_stopping()
            self._ask(STOP, reason=self._reason)
            self._reason = ""
        if self._to_fork and not self._stopping and not self._renewal.under_way:
            # A signal must not find a fork half done.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            while self._to_fork:
                self._of_a_worker = self._fork(self._to_fork[0])
                if self._of_a_worker is not None:
                    return True
                del self._to_fork[0]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for event, question in list(self._questions.items()):
            if not question.awaited:
                self._conclude(event, question)
        return self._stopping and not self._workers

    # Workers.

    def _fork(self, number: int) -> Channel | None:
        """Start worker ``number``; give its channel in it."""
        if number in self._workers:  # half made, and there may be a process of it
            self._strays = True
            self._let_go(self._workers[number])
        try:
            ours, theirs = Channel.pair()
            # All is made before there is a process: none may be without a parent that knows it.
            counting = {one.part for one in self._workers.values()}
            free = (part for part in range(len(self.inquiries.parts)) if part not in counting)
            worker = Worker(number, ours, next(free))
            self._workers[number] = worker
            self._poller.attend(ours.fileno(), functools.partial(self._receive, worker))
            worker.pid = os.fork()
        except (OSError, *NO_MEMORY) as error:
            # Should there be a process all the same, its channel ends, and so does it.
            self._strays = self._strays or isinstance(error, NO_MEMORY)
            if number in self._workers:
                self._let_go(self._workers[number])
            said = error.strerror if isinstance(error, OSError) else None
            self._log.error("no_worker", worker=number, error=said or type(error).__name__)
            self._fork_later(number)
            return None
        if worker.pid:
            theirs.close()
            for host, since in self._barred.items():
                if time.monotonic() - since < BARRED:
                    worker.tell(BAR, host=host)
            return None
        self.number, self.part = number, worker.part
        try:
            self._forsake()
        except BaseException:  # nothing of the supervisor may go on in a second process
            os._exit(1)
        return theirs

    def _forsake(self) -> None:
        """Close, in a worker that was just forked, what is the supervisor's."""
        for one in self._workers.values():
            # With a copy of ours open, a sibling would not see the supervisor go.
            one.channel.close()
        self._handlers.close()
        if self._status is not None:
            self._status.close()
        self._poller.close()
        for number in SIGNALS - {signal.SIGCHLD}:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._log.forsake()

    def _fork_later(self, number: int) -> None:
        pause = self._pauses[number]
        self._later(pause, functools.partial(self._fork_now, number))
        self._pauses[number] = min(2 * pause, LONGEST_PAUSE)

    def _fork_now(self, number: int) -> None:
        if number not in self._workers and number not in self._to_fork:
            self._to_fork.append(number)

    def _reap(self) -> None:
        """See which workers have ended."""
        for worker in list(self._workers.values()):
            try:
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
            except ChildProcessError:
                pass  # it was told once already, and memory failed
            else:
                if not pid:
                    continue
                worker.code = os.waitstatus_to_exitcode(status)
            self._ended(worker)
        # A trial's process is reaped by who has started it.
        if self._strays and not self._renewal.trying:
            known = {worker.pid for worker in self._workers.values()}
            with contextlib.suppress(ChildProcessError):
                while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    if ended.si_pid in known:  # since we have looked: there is another signal
                        break
                    os.waitpid(ended.si_pid, 0)

    def _ended(self, worker: Worker) -> None:
        while self._receive(worker):
            pass
        # One that hung has been replaced already.
        again = not self._stopping and worker.number < len(self._pauses)
        if not self._stopping or worker.code:
            if again and time.monotonic() - worker.started > LONGEST_PAUSE:
                self._pauses[worker.number] = FIRST_PAUSE
            self._log.error(
                "worker_died",
                worker=worker.number,
                pid=worker.pid,
                how=worker.how_it_ended(),
                again_in_seconds=self._pauses[worker.number] if again else "never",
            )
        for event, question in self._questions.items():
            if event != READY:
                question.awaited.discard(worker.number)
        if again:
            self._fork_later(worker.number)
            self.inquiries.restarts += 1
        self._let_go(worker)

    def _let_go(self, worker: Worker) -> None:
        """Close the channel to a worker that is gone, and know it no more."""
        # Closing does not take it out of the epoll while a worker just forked has a copy.
        self._poller.unwatch(worker.channel.fileno())
        worker.channel.close()
        if self._workers.get(worker.number) is worker:
            del self._workers[worker.number]
            self.inquiries.gone(worker)

    # What workers say.

    def _receive(self, worker: Worker) -> bool:
        """Take one message; say whether there was one."""
        try:
            message = worker.channel.receive()
        except BlockingIOError:
            return False
        if message is None:
            # It is ending; until it has, there is nothing more to be read.
            self._poller.unwatch(worker.channel.fileno())
            return False
        event, fields = message
        if worker.patience != float("inf"):
            if event in (PARCEL, PACKING):
                worker.patience = time.monotonic() + HANDING_OVER
            elif event == HANDED_OVER:
                worker.patience = time.monotonic() + DRAIN + GRACE
        if event == CROWDED:
            self._have_others_look(worker)
        elif event == BAR:
            self._have_others_bar(worker, str(fields["host"]))
        elif event == HANGS:
            self._replace(worker, str(fields["host"]), str(fields["at"]))
        elif event in (REFRESH, PAGE):
            self.inquiries.heard(worker, event, fields)
        elif event == PARCEL:
            self._pass_on(worker, int(fields["count"]))
        elif event in self._questions:
            question = self._questions[event]
            if event == COUNT:
                worker.open = int(fields["open"])
            elif event == READY and not question.fields:
                self._later(LAGGARDS, question.expire)
            elif event == _REFUSED:
                self._refusals.wake()
            if not question.awaited.isdisjoint((worker.number, NOBODY)):
                # What can fail comes before the message is done, what is counted after it: once.
                said = added(question.fields, fields)
                worker.channel.done()
                question.fields = said
                question.awaited.discard(worker.number)
                return True
        elif event == READY:
            # It came too late to be asked to give up its copies of parcels.
            worker.tell(ADOPT)
        worker.channel.done()
        return True

    def _have_others_look(self, worker: Worker) -> None:
        """Have the others accept what ``worker`` can't, not more often than it tries itself."""
        now = time.monotonic()
        for other in self._workers.values():
            if other is not worker and now - other.told_to_look >= PAUSE:
                other.told_to_look = now
                other.tell(LOOK)

    def _have_others_bar(self, worker: Worker, host: str) -> None:
        """Have the others refuse the owner of a host, and those that are started meanwhile."""
        now = time.monotonic()
        self._barred = {one: at for one, at in self._barred.items() if now < at + BARRED}
        self._barred[host] = now
        for other in self._workers.values():
            if other is not worker:
                other.tell(BAR, host=host)

    def _replace(self, worker: Worker, host: str, at: str) -> None:
        """Start another in place of one that hangs, which becomes one more if it ever comes back;
        and let no other look up what this one does."""
        number, count = worker.number, len(self._pauses)
        self._log.error("worker_hangs", worker=number, pid=worker.pid, host=host or "none", at=at)
        if host:
            self._have_others_bar(worker, host)
        if number < count and len(self._workers) < 2 * count:
            self.inquiries.restarts += 1
            worker.number = max(count - 1, *self._workers) + 1
            self._workers[worker.number] = self._workers.pop(number)
            self._fork_now(number)

    def _conclude(self, event: str, question: Question) -> None:
        """Act on what all workers have said, or on what some have said in time."""
        if event == READY and self._parcels:
            self._parcels = False
            self._all_serve = question.answered
            # Whoever has room takes what others had none for.
            self._ask(ADOPT, adopted=question.fields.get("adopted", 0))
        elif event in (READY, ADOPT):
            known = question.answered and self._all_serve
            self._ready(int(question.fields.get("adopted", 0)), known)
            self._serving = True
            if self._to_renew:
                self._renew()
        elif event == COUNT:
            self._counted([worker.open for worker in self._workers.values()])
        else:
            self._log.info(event, **question.fields)
        self._questions.pop(event, None)

    def _ask(self, event: str, **fields: int | str) -> None:
        """Send a message to all workers, and conclude when they have answered or time is up."""
        if event not in self._questions:
            question = Question(set(self._workers), {**fields})
            self._later(ANSWER, question.expire)
            self._questions[event] = question
        for worker in self._workers.values():
            worker.tell(event, last=event == STOP, **fields)

    def _report_refusals(self) -> bool:
        refused = self._questions[_REFUSED]
        if refused.fields:
            self._log.info(_REFUSED, **readable(refused.fields))
            refused.fields = {}
        return False

    # The next process (``renewal.Owner``).

    def _renew(self) -> None:
        # Not before all serve: until then connections are in nobody's hands, and workers that could
        # not be started are still to be.
        self._to_renew = True
        if self._serving:
            self._renewal.ask(self._poller, self, self._log)

    def count(self, then: Callable[[list[int]], object]) -> None:
        self._counted = then
        self._ask(COUNT)

    def hand_over(self, keep: Callable[[Parcel], None], shares: Sequence[int]) -> None:
        if self._stopping:
            return
        self._later(_LOOK_AT_LAGGARDS, self._kill_who_hangs)
        self._keep = keep
        for worker, share in zip(self._workers.values(), shares, strict=False):
            worker.patience = time.monotonic() + HANDING_OVER
            worker.tell(HAND_OVER, last=True, most=share)
        self._stopping = self.handed_over = True

    def stop(self, reason: str) -> bool:
        if self._stopping:
            return False
        # They hear of it only when they have adopted what there is.
        adopting = LAGGARDS + ANSWER if self._parcels else 0
        self._later(adopting + DRAIN + GRACE, self._kill)
        # From here on it is asked for: what is still to be done is done between two turns.
        self._reason = reason
        self._stopping = True
        return True

    def _pass_on(self, worker: Worker, count: int) -> None:
        """Have a parcel of a worker's kept."""
        try:
            if worker.channel.descriptor < 0:  # it did not fit, MSG_CTRUNC
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if self._keep is None:
                raise OSError(errno.EPERM, "nobody has asked for it")
            one = socket(fileno=worker.channel.descriptor)
            try:
                self._keep(Parcel(one, count))
            finally:
                one.detach()
        except OSError as error:
            self._log.error("connections_lost", count=count, error=error.strerror or error)

    def _kill_who_hangs(self) -> float:
        """End workers that have not said a word in time; give the seconds to the next look."""
        for worker in self._workers.values():
            # Nor one that we have not come to hear yet.
            while worker.patience < time.monotonic() and self._receive(worker):
                pass
            if worker.patience < time.monotonic():
                self._kill_one(worker)
        return _LOOK_AT_LAGGARDS

    # The end.

    def stop_now(self, reason: str) -> None:
        self._later(GRACE, self._kill)
        self._when_stopping()
        self.handed_over = False
        for worker in self._workers.values():
            worker.tell(STOP_NOW, last=True, reason=reason)
        self._stopping = True

    def _kill(self) -> None:
        """End workers that do not end by themselves."""
        for worker in self._workers.values():
            self._kill_one(worker)

    def _kill_one(self, worker: Worker) -> None:
        """End a worker, and wait no more for one that not even that ends: it may sleep for good."""
        os.kill(worker.pid, signal.SIGKILL)
        self._later(UNDYING, functools.partial(self._let_go, worker))

    def _fault(self, error: Exception) -> None:
        """Log an exception that nobody expected."""
        self._log.error("unexpected_error", type=type(error).__name__, error=error)
