"""Logged data with propensities: its formats, and what it says of other agents."""
