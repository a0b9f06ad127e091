"""The way from Flower's app to the device service: what is asked and answered, as frames on a Unix socket."""
