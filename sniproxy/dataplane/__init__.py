"""The data plane: what a byte meets, from the accept to the close. It imports no asyncio."""
