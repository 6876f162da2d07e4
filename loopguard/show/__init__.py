"""How it looks: records in, something to look at out."""
