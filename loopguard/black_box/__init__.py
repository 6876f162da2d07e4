"""What outlives the process: a file for each, in which the stall that it may not survive stands while that lasts."""
