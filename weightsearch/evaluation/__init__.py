"""How true a method's answers are about networks of runs that it has not seen."""

from weightsearch.evaluation.bootstrap import BlockMeans, block_means

__all__ = ["BlockMeans", "block_means"]
