"""Conformal intervals, calibration, and what is unlike everything known."""
