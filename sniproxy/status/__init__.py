"""What may be seen of the proxy while it runs: nothing can be changed through it."""
