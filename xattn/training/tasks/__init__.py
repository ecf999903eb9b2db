"""Tasks of training: what is learned, from which batches, and by what a network is judged."""

from __future__ import annotations

from xattn.registry import Registry
from xattn.training.tasks.task import Task

__all__ = ["Task", "tasks"]

tasks: Registry[Task] = Registry("task", "xattn.training.tasks", "xattn.tasks", named=True)
