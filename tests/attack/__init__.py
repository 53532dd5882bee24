"""An attack on what weightsearch promises, for as long as is asked: `make attack MINUTES=60`.

Hostile files and metadata, processes killed at random moments, damaged files, and readers beside a writer, all drawn
from one seed and judged by a brute-force oracle. Findings come with the smallest input that still shows them.
"""
