"""A run: its runner, its hooks, how it stops, resumes and is looked after."""
