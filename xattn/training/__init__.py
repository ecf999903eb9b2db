"""Training: recipes, the loop on Lightning Fabric, losses, schedules, augmentation and checkpoints."""

from xattn.errors import needs

needs("train", "xattn.training")
