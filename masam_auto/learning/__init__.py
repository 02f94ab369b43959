"""What training needs: sampling, augmentation, losses, schedules and checkpoints."""
