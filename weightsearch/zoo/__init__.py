"""Zoos: recipes, the base networks, training a population, the zoo's files."""
