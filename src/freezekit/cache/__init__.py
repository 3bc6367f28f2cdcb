"""The activation cache: what the frozen part of a model answers, kept."""
