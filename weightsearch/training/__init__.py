"""From a zoo to an index: data, fit, random search, baselines."""
