"""Dots in one half of an image, a network that tells which, a method that finds the dot, a metric that checks it."""
