"""Translation to other libraries, one file each; nothing is imported before it is asked for."""
