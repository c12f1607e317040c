"""The command line: one module per verb; each parses, calls one function of the layers below, and prints."""
