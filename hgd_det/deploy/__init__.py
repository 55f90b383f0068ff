"""From a checkpoint to something that runs elsewhere: export, verification, prediction, benchmarks."""
