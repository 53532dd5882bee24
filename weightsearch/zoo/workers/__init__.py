"""Processes that train groups of runs."""
