"""Where and by whom: devices, processes, clusters, ranks, and how they are interrupted."""
