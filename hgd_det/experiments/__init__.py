"""What launches and supervises trainings: the paper's tables, the demo, the benchmarks; and their results."""
