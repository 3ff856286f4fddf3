"""Grade the notebooks that students hand in: find them, run their answers apart, report."""
