"""What starts and stops of a server leave behind, and what a start of ours costs."""
