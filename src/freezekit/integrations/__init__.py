"""Plans in the engines that train: one module for each, imported by its own name."""
