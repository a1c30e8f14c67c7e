"""The vocabulary that every part shares: batches, the metric catalogue, options, service plumbing."""

__version__ = "0.1.0"
