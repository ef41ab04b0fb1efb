"""When to save and how: snapshots in memory, the process that writes them, and saves that training waits for."""
