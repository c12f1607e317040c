"""What the built-in explainers compute. Imports torch and captum, so it is imported by their factories only."""
