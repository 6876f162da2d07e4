"""Who hears of it? One sink for each signal."""
