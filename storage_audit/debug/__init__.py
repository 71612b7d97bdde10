"""The addresses under /debug/, and two comparisons."""
