"""Strangers' files of weights: readers by format, discovery, what is known of them. The only place that opens them."""
