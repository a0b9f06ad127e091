"""One data set dealt out to the devices of a simulation."""
