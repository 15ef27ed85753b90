"""The benchmark: tracks, the cells they are measured in, statistics and the report."""
