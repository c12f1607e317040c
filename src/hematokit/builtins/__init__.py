"""The plugins that ship, registered through the same hooks as a stranger's."""
