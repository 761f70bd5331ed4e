"""Training: schedules, optimisers, state, step and loop."""
