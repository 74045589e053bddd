"""Read images strictly: refuse damaged files, and report everything that changes the pixels."""
