"""Stands for a program that knows nothing of a hand-over: it finishes when asked to by SIGHUP."""

import signal

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
signal.sigwait([signal.SIGHUP])
print("older: asked to finish", flush=True)
