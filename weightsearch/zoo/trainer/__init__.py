"""Trains populations of base networks."""
