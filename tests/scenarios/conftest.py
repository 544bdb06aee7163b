"""The worlds live beside the scenarios, not in the package: pytest puts this folder on the path."""
