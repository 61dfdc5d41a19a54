"""The law of every parameter, read from the trace of its initializer: exact, nothing is drawn."""
