"""The parser: bytes to host name. Sans I/O: it imports no socket, no asyncio and no logging."""
