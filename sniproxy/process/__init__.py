"""The process: what the operating system meets. Sockets that are passed, signals, workers."""
