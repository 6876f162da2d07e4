"""What was the loop doing? Evidence, taken raw."""
