"""The proxy: sockets, relay, logs and the life cycle of the process."""
