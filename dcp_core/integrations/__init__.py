"""Code that calls DCP itself, brought to our classes."""
