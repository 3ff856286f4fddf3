"""The course's site: the pages that are made from notebooks, data and docstrings, and the build."""
