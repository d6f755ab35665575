"""What measurements stand on: child processes, memory limits, the disk, the machine, counts."""
