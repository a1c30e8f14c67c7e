"""Streamers: every source a GPU fleet has, turned into batches for the broker."""
