"""What `python -m benchmarks gpu` runs on a device: parity with stored values, and speed."""
