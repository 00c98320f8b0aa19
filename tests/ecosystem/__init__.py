"""Other plugins beside this one."""
