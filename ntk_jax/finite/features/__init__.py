"""Tangent features: what each parameter contributes to each output, per example."""
