"""Pictures of a run, gathered on one page that needs neither a network nor scripts."""
