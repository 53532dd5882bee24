"""The preset `wild`: networks of every kind and shape, from which the encoder of all architectures learns."""
