"""Where work runs: devices, processes, clusters and ranks, and how to interrupt them."""
