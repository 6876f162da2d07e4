"""Is the loop late? Heartbeats on the loops, and one thread that looks when one is overdue."""
