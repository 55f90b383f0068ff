"""The command line: `hgd-det VERB ...`, one module per verb; `main` finds and runs them."""
