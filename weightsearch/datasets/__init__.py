"""Image datasets: found, downloaded, parsed, normalised."""
