"""The small commands beside the proxy."""
