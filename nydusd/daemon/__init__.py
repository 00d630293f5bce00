"""The daemon's life: state machine, mounts, signals. The composition root: config in, objects out."""
