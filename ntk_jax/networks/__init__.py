"""Networks of any kind as functions of parameters and examples."""
