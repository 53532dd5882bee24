"""The encoder of all architectures: what is known of a network from its layers, whatever their number and shapes."""
