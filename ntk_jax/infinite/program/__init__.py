"""The tensor program of a traced network: its values, their moments, and a rule for each operation."""
