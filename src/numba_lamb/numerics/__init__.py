"""The arithmetic: scalar rules for every target, and the specification they are tested against."""
