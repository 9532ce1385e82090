"""Upkeep of a bucket: what failed saves left there, and how fast it is."""
