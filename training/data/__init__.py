"""Training data: motion capture readers, pose widening, synthesis of 2D observations and data-set files."""
