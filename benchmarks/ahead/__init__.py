"""Programs for devices that are not here, compiled ahead of time, in an environment of its own."""
