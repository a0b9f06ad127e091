"""The processes of a device: its trainer, its link to the server, what is served; started, watched, ended."""
