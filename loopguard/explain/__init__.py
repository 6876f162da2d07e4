"""Why, and whose code? Samples and evidence in, records out: no clock, no thread."""
