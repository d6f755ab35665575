"""The ground of measurements: child processes, memory limits, the disk, the machine, counts."""
