"""The resolver: host name to backend."""
