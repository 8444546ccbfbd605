"""What is computed, and how it is kept: no queue, no scheduler, no plotting."""
