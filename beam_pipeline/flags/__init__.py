"""The flags of the commands that read a trace table, a file for each subject."""
