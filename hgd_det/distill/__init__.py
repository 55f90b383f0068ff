"""Distillation: the step, what a term gets of it, and the terms."""
