"""Training: recipes, the loop on Lightning Fabric, losses, schedules, augmentation and checkpoints."""
