"""Scoring every method by every metric on every model and data set, and reading the scores."""

from xattn.errors import needs

needs("bench", "xattn.benchmark")
