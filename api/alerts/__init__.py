"""Alerts: rules from one file, asked of the stored samples, each answer with its evidence."""
