"""The parts of `gpu.py`: shapes and rows, the loops that are compared, their measurement, the check and the report."""
