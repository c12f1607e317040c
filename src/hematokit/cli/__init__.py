"""The command line: one module per command; each parses, calls one function of the packages below, and prints."""
