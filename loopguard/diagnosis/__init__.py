"""What this machine and this Python can do, and what the guard costs here: for `loopguard doctor`."""
